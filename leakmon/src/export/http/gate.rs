//! The gate before the pages: TLS and users, as the web configuration file says now.
//!
//! In: the file, again whenever it or a certificate changes. Out: how a connection begins, and whether a request is answered. A
//! file that is wrong changes nothing.

use super::web_config::{WebConfig, WebConfigError};
use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use rustls::ServerConfig;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often the files are looked at; certificates are renewed by programs that know nothing of leakmon.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Pages that say nothing but whether leakmon works; the kubelet asks for them and has no password.
const OPEN_PAGES: [&str; 2] = ["/livez", "/readyz"];

/// TLS and users.
#[derive(Debug)]
pub struct Gate {
    path: Option<PathBuf>,
    /// An address from elsewhere, which must not stand open.
    guarded: Option<SocketAddr>,
    current: ArcSwap<WebConfig>,
    /// Why the files, as they are now, are not in force.
    refused: Mutex<Option<String>>,
}

impl Gate {
    /// A gate that lets everybody in, in the clear.
    #[must_use]
    pub fn open() -> Self {
        Self {
            path: None,
            guarded: None,
            current: ArcSwap::from_pointee(WebConfig::default()),
            refused: Mutex::default(),
        }
    }

    /// The gate of an address: as the file says, if one is named. An address that is no loopback one must be protected by it,
    /// unless `allow_open` says otherwise.
    ///
    /// # Errors
    /// The file can't be used, or the address would stand open.
    pub fn new(address: SocketAddr, allow_open: bool, path: Option<&Path>) -> Result<Self, WebConfigError> {
        let loopback = address.ip().to_canonical().is_loopback();
        let gate = Self {
            path: path.map(Path::to_owned),
            guarded: (!loopback && !allow_open).then_some(address),
            ..Self::open()
        };
        gate.reload()?;
        Ok(gate)
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// The file can't be used; what was in force stays.
    pub fn reload(&self) -> Result<(), WebConfigError> {
        let read = self
            .path
            .as_deref()
            .map_or_else(|| Ok(WebConfig::default()), WebConfig::read);
        let outcome = read.and_then(|config| match self.guarded {
            Some(address) if config.is_open() => Err(WebConfigError::Open(address)),
            _ => {
                self.current.store(Arc::new(config));
                Ok(())
            }
        });
        *self.refused() = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    /// Reads the file again where it, or a certificate, has changed, or where it was refused: what it lacked may be there now.
    pub(super) fn reload_if_changed(&self) {
        let before = self.refused().clone();
        if before.is_none() && self.current.load().is_fresh() {
            return;
        }
        match self.reload() {
            Ok(()) => tracing::warn!("the web configuration has changed and is in force"),
            Err(error) if before.as_ref() != Some(&error.to_string()) => {
                tracing::warn!(
                    "the web configuration has changed and can't be used, the old one stays in force: {error}"
                );
            }
            Err(_) => {}
        }
    }

    fn refused(&self) -> MutexGuard<'_, Option<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a connection is encrypted, if it is.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.current.load().tls.clone()
    }
}

/// Answers 401 to whoever is not known.
pub(super) async fn authorise(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let users = Arc::clone(&gate.current.load().users);
    let header = request.headers().get(header::AUTHORIZATION);
    if OPEN_PAGES.contains(&request.uri().path()) || users.allows(header).await {
        return next.run(request).await;
    }
    const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"leakmon\", charset=\"UTF-8\"");
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, CHALLENGE)],
        "A name and a password are needed.\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests;
