//! Requests to other servers: profiles pushed, pod names asked for.
//!
//! In: an address, headers, a body. Out: status and body of the reply, within bounds of time and size. It keeps no connection and
//! follows no redirection, so nothing is sent but where the configuration says.

use axum::http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Time for a request as a whole.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Where Debian and its like keep the certificates of public authorities, in one file.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address is not usable.
    #[error("{0}: not an address: write http://HOST:PORT/ or https://HOST:PORT/")]
    Address(Uri),
    /// The authorities' certificates can't be used.
    #[error("{}: {problem}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// No connection, or it broke.
    #[error("{0}: {1}")]
    Connection(Uri, String),
    /// It took too long.
    #[error("{0}: no answer within 20 seconds")]
    Slow(Uri),
}

/// One request.
#[derive(Debug)]
pub struct Outbound<'a> {
    /// How.
    pub method: Method,
    /// Where: scheme, host, perhaps a port, path and query.
    pub uri: &'a Uri,
    /// Headers beside those that every request has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is sent.
    pub body: Bytes,
    /// Certificates of the authorities that the server's is checked against; the system's where `None`.
    pub authorities: Option<&'a Path>,
    /// Bytes of a reply's body; a longer one is an error.
    pub reply_bytes_max: usize,
}

impl Outbound<'_> {
    /// Sends it, and gives the reply's status and body.
    ///
    /// # Errors
    /// [`OutboundError`]; a status that says no is none.
    pub async fn send(self) -> Result<(u16, Bytes), OutboundError> {
        let uri = self.uri.clone();
        timeout(TIME_MAX, self.exchange())
            .await
            .unwrap_or(Err(OutboundError::Slow(uri)))
    }

    async fn exchange(self) -> Result<(u16, Bytes), OutboundError> {
        let refused = || OutboundError::Address(self.uri.clone());
        let host = self.uri.host().ok_or_else(refused)?;
        // An IPv6 address stands in brackets in a URI, and nowhere else.
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let encrypted = match self.uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refused()),
        };
        let port = self.uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let broken = |error: &dyn std::fmt::Display| OutboundError::Connection(self.uri.clone(), error.to_string());
        let stream = TcpStream::connect((bare.as_str(), port))
            .await
            .map_err(|error| broken(&error))?;
        if !encrypted {
            return self.over(stream).await;
        }
        let name = ServerName::try_from(bare).map_err(|error| broken(&error))?;
        let config = client_config(self.authorities.unwrap_or(Path::new(SYSTEM_CERTIFICATES)))?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| broken(&error))?;
        self.over(stream).await
    }

    async fn over<S>(self, stream: S) -> Result<(u16, Bytes), OutboundError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: &dyn std::fmt::Display| OutboundError::Connection(self.uri.clone(), error.to_string());
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(self.method)
            .uri(path)
            .header(
                header::HOST,
                self.uri.authority().map_or("", |authority| authority.as_str()),
            )
            .header(header::USER_AGENT, concat!("leakmon/", env!("CARGO_PKG_VERSION")));
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body)).map_err(|error| broken(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let exchange = async {
            let reply = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = reply.status().as_u16();
            let body = Limited::new(reply.into_body(), self.reply_bytes_max).collect().await;
            Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
        };
        // The connection moves the bytes of the exchange, and may end first where the server closes it.
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            done = &mut exchange => done,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(broken(&error)),
            },
        }
    }
}

fn client_config(authorities: &Path) -> Result<ClientConfig, OutboundError> {
    let refused = |problem: &dyn std::fmt::Display| OutboundError::Certificates {
        path: authorities.to_owned(),
        problem: problem.to_string(),
    };
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(authorities).map_err(|error| refused(&error))?;
    // One that is not understood, among a hundred, is no reason to trust none.
    let (added, _ignored) = roots.add_parsable_certificates(found.flatten());
    if added == 0 {
        return Err(refused(&"no certificate in PEM form"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
