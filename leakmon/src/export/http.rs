//! The HTTP interface: it only routes.
//!
//! In: requests, and what [`super::snapshot`] holds. Out: texts of the formats. A request never symbolises, never
//! touches BPF, never waits for the event path; texts are made on a blocking thread, a few at a time.
//!
//! How many clients there may be, and how slow, is in `connections`; who may ask, and whether connections are encrypted, in `gate`.

mod access;
mod connections;
mod gate;
mod web_config;

pub use connections::Limits;
pub use gate::Gate;
pub use web_config::WebConfigError;

use super::Format;
use super::escape;
use super::filter::{Filter, KINDS};
use super::metrics;
use super::page;
use super::pyroscope::Pushes;
use super::snapshot::{Heartbeat, Snapshot};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use hyper_util::service::TowerToHyperService;
use std::future::{Future, ready as done};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// `/livez` fails when the event loop has not run for this long. It ticks every second or so.
pub const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(30);

/// Texts that are made at once; further requests wait.
const RENDERS_MAX: usize = 2;

/// `PID_MAX_LIMIT`, `include/linux/threads.h`.
const TGID_MAX: u32 = 1 << 22;

/// Media type of sentences.
const TEXT: &str = "text/plain; charset=utf-8";

/// What requests may read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Replaced by the daemon's loop at every tick.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Beaten by the daemon's loop.
    pub heartbeat: Arc<Heartbeat>,
    /// Connections that had to make room for others, counted by the server.
    pub evicted: Arc<AtomicU64>,
    /// Profiles pushed, counted by who pushes.
    pub pushes: Arc<Pushes>,
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
    gate: Arc<Gate>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let evicted = Arc::clone(&source.evicted);
    let pages = router(source).layer(axum::middleware::from_fn_with_state(Arc::clone(&gate), gate::authorise));
    let server = connections::Server {
        service: TowerToHyperService::new(pages),
        gate: Arc::clone(&gate),
        limits,
    };
    let look = async {
        let mut look = tokio::time::interval(gate::LOOK_INTERVAL);
        loop {
            look.tick().await;
            gate.reload_if_changed();
        }
    };
    tokio::select! {
        served = connections::serve(listener, server, &evicted, shutdown) => served,
        never = look => never,
    }
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
    with_page(Router::new())
        .route("/metrics", data(metrics::CONTENT_TYPE, Snapshot::metrics))
        .route(
            "/folded",
            data(Format::Folded.content_type(), |snapshot, filter| {
                Ok(snapshot.folded(filter))
            }),
        )
        .route(
            "/debug/pprof/task",
            data(Format::Pprof.content_type(), |snapshot, filter| {
                Ok(snapshot.pprof(filter))
            }),
        )
        .route(
            "/flamegraph.svg",
            with_policy(
                data(Format::Svg.content_type(), |snapshot, filter| Ok(snapshot.svg(filter))),
                page::FLAME_GRAPH_POLICY,
            ),
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
        .fallback(async || plain(StatusCode::NOT_FOUND, "No such page; / is the first one.\n"))
        .with_state(shared)
}

/// The files of the page, each a route.
fn with_page(router: Router<Arc<Shared>>) -> Router<Arc<Shared>> {
    page::FILES.into_iter().fold(router, |router, file| {
        let answer = async move || {
            typed(
                StatusCode::OK,
                file.content_type,
                Bytes::from_static(file.text.as_bytes()),
            )
        };
        router.route(file.path, with_policy(get(answer), page::POLICY))
    })
}

/// Puts a content security policy on what a route answers.
fn with_policy(route: MethodRouter<Arc<Shared>>, policy: &'static str) -> MethodRouter<Arc<Shared>> {
    let policy = HeaderValue::from_static(policy);
    route.layer(map_response(move |mut response: Response| {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, policy.clone());
        done(response)
    }))
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
