//! The gate over real sockets: certificates, passwords, changed and broken files.

use super::*;
use crate::export::http::{Limits, Source, serve};
use crate::export::{
    samples,
    series::SeriesTable,
    snapshot::{Heartbeat, Snapshot},
};
use crate::outbound::Outbound;
use arc_swap::ArcSwap;
use axum::http::{Method, Uri};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use std::fs;
use std::time::Instant;
use tokio::net::TcpListener;

/// What a client needs and a server shows: an authority, and a certificate of it for 127.0.0.1.
struct Certificates {
    authority: String,
    certificate: String,
    key: String,
}

impl Certificates {
    fn new() -> Self {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(authority, authority_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let own = own.signed_by(&key, &authority).unwrap();
        Self {
            authority: authority.pem(),
            certificate: own.pem(),
            key: key.serialize_pem(),
        }
    }

    fn write(&self, folder: &Path) {
        for (file, text) in [
            ("ca.pem", &self.authority),
            ("cert.pem", &self.certificate),
            ("key.pem", &self.key),
        ] {
            fs::write(folder.join(file), text).unwrap();
        }
    }
}

/// A server behind a gate, and the folder of its files.
struct Guarded {
    folder: tempfile::TempDir,
    gate: Arc<Gate>,
    address: SocketAddr,
}

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";

fn users(names: &[(&str, &str)]) -> String {
    let hash = |password| bcrypt::hash(password, 4).unwrap();
    let lines: Vec<_> = names
        .iter()
        .map(|(name, password)| format!("  {name}: {}\n", hash(password)))
        .collect();
    format!("basic_auth_users:\n{}", lines.concat())
}

impl Guarded {
    async fn start(web: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Certificates::new().write(folder.path());
        let file = folder.path().join("web.yml");
        fs::write(&file, web).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new(Gate::new(address, false, Some(&file)).unwrap());
        let source = Source {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::new(
                samples::busy(),
                SeriesTable::default(),
                samples::own(),
                true,
            ))),
            heartbeat: Arc::new(Heartbeat::since(Instant::now())),
            evicted: Arc::default(),
            pushes: Arc::default(),
        };
        tokio::spawn(serve(
            listener,
            source,
            Arc::clone(&gate),
            Limits::default(),
            std::future::pending(),
        ));
        Self { folder, gate, address }
    }

    fn web(&self, text: &str) {
        fs::write(self.folder.path().join("web.yml"), text).unwrap();
    }

    /// Status of a page, or why there was none.
    async fn ask(&self, scheme: &str, page: &str, user: Option<&str>) -> Result<u16, String> {
        let uri: Uri = format!("{scheme}://{}{page}", self.address).parse().unwrap();
        let basic = user.map(|user| HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(user))).unwrap());
        let authority = self.folder.path().join("ca.pem");
        let outcome = Outbound {
            method: Method::GET,
            uri: &uri,
            headers: basic.map(|basic| (header::AUTHORIZATION, basic)).into_iter().collect(),
            body: Bytes::new(),
            authorities: Some(&authority),
            reply_bytes_max: 1 << 20,
        };
        outcome
            .send()
            .await
            .map(|(status, _)| status)
            .map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn users_are_let_in_over_tls_and_nobody_else() {
    let server = Guarded::start(&format!("{TLS}{}", users(&[("anna", "secret")]))).await;
    for (page, user, status) in [
        ("/metrics", Some("anna:secret"), 200),
        ("/", Some("anna:secret"), 200),
        ("/metrics", Some("anna:wrong"), 401),
        ("/metrics", Some("bert:secret"), 401),
        ("/metrics", None, 401),
        ("/", None, 401),
        ("/nothing", None, 401),
        ("/nothing", Some("anna:secret"), 404),
        // The kubelet has no password.
        ("/livez", None, 200),
        ("/readyz", None, 200),
        ("/livez/", None, 401),
    ] {
        assert_eq!(server.ask("https", page, user).await, Ok(status), "{page} {user:?}");
    }
    assert!(server.ask("http", "/metrics", Some("anna:secret")).await.is_err());
}

#[tokio::test]
async fn a_changed_file_is_in_force_and_a_broken_one_keeps_the_old() {
    let server = Guarded::start(&users(&[("anna", "secret")])).await;
    let (anna, bert) = (Some("anna:secret"), Some("bert:other"));
    assert_eq!(server.ask("http", "/metrics", anna).await, Ok(200));

    server.web(&users(&[("bert", "other"), ("carl", "x")]));
    server.gate.reload_if_changed();
    assert_eq!(server.ask("http", "/metrics", anna).await, Ok(401));
    assert_eq!(server.ask("http", "/metrics", bert).await, Ok(200));

    for broken in [
        "basic_auth_users: [",
        "basic_auth_users:\n  anna: secret\n",
        "rate_limit: 1\n",
        "tls_server_config:\n  cert_file: gone.pem\n  key_file: key.pem\n",
        "tls_server_config:\n  cert_file: key.pem\n  key_file: key.pem\n",
        "tls_server_config:\n  cert_file: cert.pem\n  key_file: cert.pem\n",
        "tls_server_config:\n  cert_file: ca.pem\n  key_file: key.pem\n",
    ] {
        server.web(broken);
        assert!(server.gate.reload().is_err(), "{broken}");
        server.gate.reload_if_changed();
        assert_eq!(server.ask("http", "/metrics", bert).await, Ok(200), "{broken}");
        assert_eq!(server.ask("http", "/metrics", None).await, Ok(401), "{broken}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_then_on() {
    let server = Guarded::start(TLS).await;
    assert_eq!(server.ask("https", "/metrics", None).await, Ok(200));
    // A client that trusts the new authority does not trust the old certificate.
    let renewed = Certificates::new();
    fs::write(server.folder.path().join("ca.pem"), &renewed.authority).unwrap();
    assert!(server.ask("https", "/metrics", None).await.is_err());
    renewed.write(server.folder.path());
    server.gate.reload_if_changed();
    assert_eq!(server.ask("https", "/metrics", None).await, Ok(200));
    // Only half of it written: the old pair stays.
    let half = Certificates::new();
    fs::write(server.folder.path().join("key.pem"), &half.key).unwrap();
    server.gate.reload_if_changed();
    assert_eq!(server.ask("https", "/metrics", None).await, Ok(200));
}

#[tokio::test]
async fn a_client_certificate_can_be_asked_for() {
    let server = Guarded::start(&format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
    ))
    .await;
    assert!(server.ask("https", "/metrics", None).await.is_err());
    server.web(&format!(
        "{TLS}  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n"
    ));
    server.gate.reload().unwrap();
    assert_eq!(server.ask("https", "/metrics", None).await, Ok(200));
}

#[test]
fn an_address_for_others_does_not_stand_open_unless_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("web.yml");
    fs::write(&empty, "{}").unwrap();
    for (address, allowed) in [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("192.0.2.1:1", false),
    ] {
        let address = address.parse().unwrap();
        for file in [None, Some(empty.as_path())] {
            assert_eq!(Gate::new(address, false, file).is_ok(), allowed, "{address}");
            assert!(Gate::new(address, true, file).is_ok());
        }
    }
    let error = Gate::new("0.0.0.0:1".parse().unwrap(), false, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("allow_open_listen") && error.contains("web_config_file"),
        "{error}"
    );
}
