//! The file that says who may ask and whether connections are encrypted.
//!
//! In: a YAML file as Prometheus's exporters read it (`exporter-toolkit`, `docs/web-configuration.md`), and the certificates that
//! it names. Out: a TLS configuration and users with their bcrypt hashes, or why not. It accepts no connection and checks no
//! password.
//!
//! Understood: `tls_server_config` with `cert_file`, `key_file`, `client_auth_type`, `client_ca_file`, `min_version`, and
//! `basic_auth_users`. Any other key is refused by its name rather than left out of account.

use super::access::Users;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of the file, and of each file that it names.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the file says, ready for use.
#[derive(Debug, Default)]
pub(super) struct WebConfig {
    /// Encryption, where asked for.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Who may ask; everybody where empty.
    pub(super) users: Arc<Users>,
    /// The files it was made from, as they were just before.
    files: Vec<(PathBuf, Stamp)>,
}

/// Device, inode, bytes and time of the last change of a file that is there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WebConfigError {
    /// A file can't be read.
    #[error("{}: {source}: check the path and that leakmon's own user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not understood.
    #[error("{}: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// A certificate or key is not usable.
    #[error("{}: {problem}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A user's entry is not usable.
    #[error("basic_auth_users: `{user}` {problem}")]
    User {
        /// The name.
        user: String,
        /// Why.
        problem: &'static str,
    },
    /// Anybody could ask from elsewhere.
    #[error(
        "{0} is reachable from elsewhere, and neither TLS nor basic auth protects it: set `web_config_file`, listen on 127.0.0.1, or allow \
         it with `allow_open_listen = true`"
    )]
    Open(std::net::SocketAddr),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WebFile {
    tls_server_config: Option<TlsServerConfig>,
    basic_auth_users: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsServerConfig {
    cert_file: PathBuf,
    key_file: PathBuf,
    #[serde(default)]
    client_auth_type: ClientAuth,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    min_version: MinVersion,
}

/// Names of Go's `tls.ClientAuthType` that check what they ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum ClientAuth {
    #[default]
    NoClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum MinVersion {
    #[default]
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

impl MinVersion {
    const fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        static NEW: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &NEW,
        }
    }
}

impl WebConfig {
    /// Reads the file and what it names; relative paths start at its folder.
    pub(super) fn read(path: &Path) -> Result<Self, WebConfigError> {
        let mut files = vec![(path.to_owned(), stamp(path))];
        let text = String::from_utf8_lossy(&read_bounded(path)?).into_owned();
        let file: WebFile = serde_saphyr::from_str(&text).map_err(|error| WebConfigError::Parse {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        let users = Arc::new(Users::new(file.basic_auth_users.unwrap_or_default())?);
        let mut encryption = None;
        if let Some(tls) = file.tls_server_config {
            let folder = path.parent().unwrap_or(Path::new(""));
            let tls = TlsServerConfig {
                cert_file: folder.join(tls.cert_file),
                key_file: folder.join(tls.key_file),
                client_ca_file: tls.client_ca_file.map(|file| folder.join(file)),
                ..tls
            };
            let named = [Some(&tls.cert_file), Some(&tls.key_file), tls.client_ca_file.as_ref()];
            files.extend(named.into_iter().flatten().map(|file| (file.clone(), stamp(file))));
            encryption = Some(Arc::new(server_config(&tls)?));
        }
        Ok(Self {
            tls: encryption,
            users,
            files,
        })
    }

    /// Whether the files are as they were.
    pub(super) fn is_fresh(&self) -> bool {
        self.files.iter().all(|(path, before)| stamp(path) == *before)
    }

    /// Whether nobody is kept out.
    pub(super) fn is_open(&self) -> bool {
        self.tls.is_none() && self.users.is_empty()
    }
}

fn server_config(tls: &TlsServerConfig) -> Result<ServerConfig, WebConfigError> {
    let refused = |path: &Path, problem: &dyn std::fmt::Display| WebConfigError::Certificate {
        path: path.to_owned(),
        problem: problem.to_string(),
    };
    let chain = certificates(&tls.cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read_bounded(&tls.key_file)?)
        .map_err(|error| refused(&tls.key_file, &format!("no private key in PEM form: {error}")))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(tls.min_version.versions())
        .map_err(|error| refused(&tls.cert_file, &error))?;
    let builder = match (tls.client_auth_type, &tls.client_ca_file) {
        (ClientAuth::NoClientCert, None) => builder.with_no_client_auth(),
        (ClientAuth::NoClientCert, Some(file)) => {
            return Err(refused(
                file,
                &"client_ca_file needs a client_auth_type that checks certificates",
            ));
        }
        (_, None) => return Err(refused(&tls.cert_file, &"client_auth_type needs a client_ca_file")),
        (kind, Some(file)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| refused(file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match kind {
                ClientAuth::VerifyClientCertIfGiven => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| refused(file, &error))?)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| refused(&tls.cert_file, &format!("it does not go with the key: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, WebConfigError> {
    let bytes = read_bounded(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(WebConfigError::Certificate {
            path: path.to_owned(),
            problem: "no certificate in PEM form".to_owned(),
        }),
        Err(error) => Err(WebConfigError::Certificate {
            path: path.to_owned(),
            problem: error.to_string(),
        }),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, WebConfigError> {
    let read = || {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other("larger than 1 MiB"));
        }
        Ok(bytes)
    };
    read().map_err(|source| WebConfigError::Read {
        path: path.to_owned(),
        source,
    })
}
