//! Spawns through what stands between people and `tokio::spawn`: axum's server, hyper's client and its executor, `JoinSet`,
//! futures in a `FuturesUnordered`, a `TaskTracker`, and a generic function of its own.
//!
//! `spawned_by` names the function that a person would look at first. Every task lives until the program exits. `--count N`
//! tasks of each sort.

mod victim;

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, connect_info::Connected},
    routing::get,
    serve::IncomingStream,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;
use std::{
    future::{Future, pending},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet, yield_now},
};
use tokio_util::task::TaskTracker;
use victim::{Arguments, Presence, Site};

static SCENARIO: Site = Site::new("scenario", "task", "main");
static ANSWER: Site = Site::new("answer", "task", "serve_api");
static CONNECTION: Site = Site::new("connection", "task", "call_upstream");
static EXECUTED: Site = Site::new("executed", "task", "refresh_caches");
static PAGE: Site = Site::new("page", "task", "collect_pages");
static ENTRY: Site = Site::new("entry", "task", "read_feed");
static JOB: Site = Site::new("job", "task", "track_jobs");
static SESSION: Site = Site::new("session", "task", "open_sessions");
static SITES: [&Site; 8] = [
    &SCENARIO,
    &ANSWER,
    &CONNECTION,
    &EXECUTED,
    &PAGE,
    &ENTRY,
    &JOB,
    &SESSION,
];

/// One a function below that never returns.
const SCENARIOS: usize = 7;

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["count"])?;
    let count = arguments.number("count", 12);
    let runtime = victim::runtime(1)?;
    victim::first_phase(&arguments)?;
    victim::second_phase(&arguments, &SITES)?;
    runtime.block_on(async {
        let (bound, address) = oneshot::channel();
        tokio::spawn(serve_api(bound, SCENARIO.enter()));
        let address = address.await.map_err(io::Error::other)?;
        tokio::spawn(call_upstream(address, count, SCENARIO.enter()));
        tokio::spawn(refresh_caches(count, SCENARIO.enter()));
        tokio::spawn(collect_pages(count, SCENARIO.enter()));
        tokio::spawn(poll_feeds(count, SCENARIO.enter()));
        tokio::spawn(track_jobs(count, SCENARIO.enter()));
        tokio::spawn(open_sessions(count, SCENARIO.enter()));
        // The client's connections and the server's, and one of each other sort.
        victim::settle(SCENARIOS + 7 * count).await;
        io::Result::Ok(())
    })?;
    victim::leave(&arguments, &SITES, json!({}))
}

/// Made by axum for each connection just before it spawns the connection's task, and dropped with that task.
#[derive(Clone)]
struct Visit {
    _presence: Arc<Presence>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Visit {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Self {
            _presence: Arc::new(ANSWER.enter()),
        }
    }
}

async fn serve_api(bound: oneshot::Sender<SocketAddr>, _presence: Presence) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let _ = bound.send(listener.local_addr()?);
    let app = Router::new().route("/", get(|_visit: ConnectInfo<Visit>| async { "hello" }));
    axum::serve(listener, app.into_make_service_with_connect_info::<Visit>()).await
}

/// hyper's client spawns a task for each connection; these are kept open.
async fn call_upstream(server: SocketAddr, count: usize, _presence: Presence) -> io::Result<()> {
    let url: axum::http::Uri = format!("http://{server}/").parse().map_err(io::Error::other)?;
    let mut kept = Vec::new();
    for _ in 0..count {
        let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
        // The connection's task can't own it, but lives as long.
        kept.push(CONNECTION.enter());
        let answer = client.get(url.clone()).await.map_err(io::Error::other)?;
        axum::body::to_bytes(Body::new(answer.into_body()), 1024)
            .await
            .map_err(io::Error::other)?;
        std::mem::forget(client);
    }
    pending().await
}

/// An executor of hyper's that is given futures by hand.
async fn refresh_caches(count: usize, _presence: Presence) {
    let executor = TokioExecutor::new();
    for _ in 0..count {
        hyper::rt::Executor::execute(&executor, executed(EXECUTED.enter()));
        yield_now().await;
    }
    pending::<()>().await;
}

async fn executed(_presence: Presence) {
    pending::<()>().await;
}

async fn collect_pages(count: usize, _presence: Presence) {
    let mut pages = JoinSet::new();
    for _ in 0..count {
        pages.spawn(page(PAGE.enter()));
        yield_now().await;
    }
    while pages.join_next().await.is_some() {}
}

async fn page(_presence: Presence) {
    pending::<()>().await;
}

async fn poll_feeds(count: usize, _presence: Presence) {
    let mut feeds: FuturesUnordered<_> = (0..count).map(|_| read_feed()).collect();
    while feeds.next().await.is_some() {}
    pending::<()>().await;
}

/// One of many futures in one task.
async fn read_feed() {
    yield_now().await;
    tokio::spawn(entry(ENTRY.enter()));
    yield_now().await;
}

async fn entry(_presence: Presence) {
    pending::<()>().await;
}

async fn track_jobs(count: usize, _presence: Presence) {
    let tracker = TaskTracker::new();
    for _ in 0..count {
        tracker.spawn(job(JOB.enter()));
        yield_now().await;
    }
    tracker.close();
    tracker.wait().await;
}

async fn job(_presence: Presence) {
    pending::<()>().await;
}

async fn open_sessions(count: usize, _presence: Presence) {
    for _ in 0..count {
        spawn_named("session", session(SESSION.enter()));
        yield_now().await;
    }
    pending::<()>().await;
}

async fn session(_presence: Presence) {
    pending::<()>().await;
}

/// What people write around `tokio::spawn`: every task is spawned here, and nobody wants to read that.
#[inline(never)]
fn spawn_named<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    std::hint::black_box(name);
    tokio::spawn(future)
}
