//! The HTTP interface: it only routes.
//!
//! In: requests, and what [`super::snapshot`] holds. Out: texts of the formats. A request never symbolises, never
//! touches BPF, never waits for the event path; texts are made on a blocking thread, a few at a time.
//!
//! Every client is bounded: so many connections, so long for a request's head, so long for a connection as a whole. A
//! connection beyond the bound is not refused, it waits in the listener's backlog, which the kernel bounds.

use super::Format;
use super::escape;
use super::filter::{Filter, KINDS};
use super::metrics;
use super::snapshot::{Heartbeat, Snapshot};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// `/livez` fails when the event loop has not run for this long. It ticks every second or so.
pub const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(30);

/// Texts that are made at once; further requests wait.
const RENDERS_MAX: usize = 2;

/// Bytes buffered for a connection; bounds a request's head, too (431 beyond it).
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Pause after a failed accept that is likely to fail again at once, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// `PID_MAX_LIMIT`, `include/linux/threads.h`.
const TGID_MAX: u32 = 1 << 22;

/// Media type of sentences.
const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "leakmon

/metrics         Prometheus text
/folded          folded stacks of the live tasks
/api/v1/report   the report in JSON
/livez           200 while the event loop runs
/readyz          200 once probes are attached

The first three take ?pid= and ?kind=.
";

/// Bounds of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once.
    pub connections: usize,
    /// Longest wait for a request's head, idle time between requests included.
    pub head: Duration,
    /// Longest life of a connection; a reply under way then has `drain` left.
    pub connection: Duration,
    /// Longest wait for replies under way when the server or a connection is shut down.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            head: Duration::from_secs(10),
            connection: Duration::from_secs(120),
            drain: Duration::from_secs(5),
        }
    }
}

/// What requests may read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Replaced by the daemon's loop at every tick.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Beaten by the daemon's loop.
    pub heartbeat: Arc<Heartbeat>,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    renders: Arc<Semaphore>,
}

/// Makes one of the texts.
type Text = fn(&Snapshot, &Filter) -> Result<Bytes, String>;

/// A query's parameters, or what axum could not make of it.
type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// Serves until `shutdown` is done, then lets replies under way finish.
///
/// # Errors
///
/// The listener is unusable (`EBADF`, `EINVAL`, `ENOTSOCK`); failures of single connections are no errors.
pub async fn serve(
    listener: TcpListener,
    source: Source,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let service = TowerToHyperService::new(router(source));
    let slots = Arc::new(Semaphore::new(limits.connections));
    // Dropping the sender tells all connections to stop.
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (stream, slot) = accepted?;
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, service.clone(), limits, stopped.clone(), slot));
    }
    drop(stop);
    // Each ends within `limits.drain`.
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    loop {
        let error = match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, slot)),
            Err(error) => error,
        };
        // accept(2): errors that are already pending on the new socket come out of accept, so most are no fault of the
        // listener.
        match error.raw_os_error() {
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => return Err(error),
            Some(libc::ECONNABORTED | libc::ECONNRESET | libc::EINTR) => {}
            _ => {
                tracing::warn!(%error, "an HTTP connection could not be accepted; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    limits: Limits,
    mut stopped: watch::Receiver<()>,
    _slot: OwnedSemaphorePermit,
) {
    // Without it a reply may wait for the client's delayed acknowledgement; nothing is lost if it can't be set.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER_BYTES_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that breaks off or breaks the protocol is its own problem.
        _ = &mut served => return,
        _ = stopped.changed() => {}
        () = tokio::time::sleep(limits.connection) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(limits.drain, served).await;
}

fn router(source: Source) -> Router {
    let shared = Arc::new(Shared {
        source,
        renders: Arc::new(Semaphore::new(RENDERS_MAX)),
    });
    let data = |content_type: &'static str, text: Text| {
        get(move |State(shared): State<Arc<Shared>>, parameters: Parameters| {
            reply(shared, parameters, content_type, text)
        })
    };
    Router::new()
        .route("/", get(async || plain(StatusCode::OK, INDEX)))
        .route("/metrics", data(metrics::CONTENT_TYPE, Snapshot::metrics))
        .route(
            "/folded",
            data(Format::Folded.content_type(), |snapshot, filter| {
                Ok(snapshot.folded(filter))
            }),
        )
        .route(
            "/api/v1/report",
            data(
                Format::Json.content_type(),
                |snapshot, filter| Ok(snapshot.json(filter)),
            ),
        )
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .fallback(async || plain(StatusCode::NOT_FOUND, "No such page; / lists them.\n"))
        .with_state(shared)
}

async fn reply(shared: Arc<Shared>, parameters: Parameters, content_type: &'static str, text: Text) -> Response {
    let filter = match parameters
        .map_err(|error| error.body_text())
        .and_then(|Query(pairs)| parse_filter(&pairs))
    {
        Ok(filter) => filter,
        Err(sentence) => return plain(StatusCode::BAD_REQUEST, format!("{sentence}\n")),
    };
    let turn = Arc::clone(&shared.renders).acquire_owned().await;
    let snapshot = shared.source.snapshot.load_full();
    let rendered = tokio::task::spawn_blocking(move || {
        // Held by the work, not by the request: a client that goes away does not make room for one more at once.
        let _turn = turn;
        text(&snapshot, &filter)
    });
    let rendered = rendered.await;
    match rendered.map_err(|error| error.to_string()).and_then(|text| text) {
        Ok(body) => typed(StatusCode::OK, content_type, body),
        Err(sentence) => {
            tracing::error!(error = sentence, "a text could not be made");
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The text could not be made; the log says why.\n",
            )
        }
    }
}

async fn live(State(shared): State<Arc<Shared>>) -> Response {
    let age = shared.source.heartbeat.age();
    if age < HEARTBEAT_AGE_MAX {
        plain(StatusCode::OK, "ok\n")
    } else {
        let seconds = age.as_secs();
        plain(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("The event loop has not run for {seconds} seconds.\n"),
        )
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.source.snapshot.load().ready {
        plain(StatusCode::OK, "ok\n")
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, "No probe is attached yet.\n")
    }
}

/// `pid` and `kind` of a query; other parameters are ignored.
fn parse_filter(pairs: &[(String, String)]) -> Result<Filter, String> {
    let mut filter = Filter::default();
    for (key, value) in pairs {
        let twice = match key.as_str() {
            "pid" => {
                let tgid = value
                    .parse()
                    .ok()
                    .filter(|tgid| (1..=TGID_MAX).contains(tgid))
                    .ok_or_else(|| {
                        format!(
                            "pid={} is no process number: give one from 1 to {TGID_MAX}.",
                            escape::name(value)
                        )
                    })?;
                filter.tgid.replace(tgid).is_some()
            }
            "kind" => {
                let kind = KINDS.into_iter().find(|kind| kind == value).ok_or_else(|| {
                    format!(
                        "kind={} is no kind: give one of {}.",
                        escape::name(value),
                        KINDS.join(", ")
                    )
                })?;
                filter.kind.replace(kind).is_some()
            }
            _ => false,
        };
        if twice {
            return Err(format!("{key} is given twice: give it once."));
        }
    }
    Ok(filter)
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response {
    typed(status, TEXT, text.into())
}

fn typed(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    // Names in the texts are untrusted: a browser must not take them for a page.
    const NOSNIFF: (HeaderName, HeaderValue) = (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    (status, [content_type, NOSNIFF], body).into_response()
}

#[cfg(test)]
mod tests;
