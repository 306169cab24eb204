//! The server over real loopback sockets: routes, limits, slow and broken clients.

use super::connections::BUFFER_BYTES_MAX;
use super::*;
use crate::export::samples;
use crate::export::series::{Limits as SeriesLimits, SeriesBook};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// Longer than any answer here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    source: Source,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

fn snapshot() -> Snapshot {
    let report = samples::busy();
    let series = SeriesBook::new(SeriesLimits::default()).observe(&report);
    Snapshot::new(report, series, samples::own(), true)
}

async fn start(snapshot: Snapshot, origin: Instant, limits: Limits) -> Server {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let source = Source {
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        heartbeat: Arc::new(Heartbeat::since(origin)),
        evicted: Arc::default(),
        pushes: Arc::default(),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let served = tokio::spawn(serve(
        listener,
        source.clone(),
        Arc::new(Gate::open()),
        limits,
        shutdown,
    ));
    Server {
        address,
        source,
        stop,
        served,
    }
}

async fn started() -> Server {
    start(snapshot(), Instant::now(), Limits::default()).await
}

/// Everything that the server sends until it closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server closes")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

/// Status, head and body of a request.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn data_is_what_the_formats_make_of_the_snapshot() {
    let server = started().await;
    let snapshot = server.source.snapshot.load_full();
    let part = Filter {
        tgid: Some(83_920),
        kind: Some("task"),
    };
    for (path, query, filter) in [
        ("/metrics", "", Filter::default()),
        ("/metrics", "?pid=83920&kind=task", part),
        ("/folded", "", Filter::default()),
        ("/folded", "?pid=83920&kind=task&name[]=ignored", part),
        ("/api/v1/report", "", Filter::default()),
        ("/api/v1/report", "?kind=task&pid=83920", part),
        (
            "/api/v1/report",
            "?pid=4194304",
            Filter {
                tgid: Some(TGID_MAX),
                kind: None,
            },
        ),
    ] {
        let (want, content_type) = match path {
            "/metrics" => (snapshot.metrics(&filter).unwrap(), metrics::CONTENT_TYPE),
            "/folded" => (snapshot.folded(&filter), TEXT),
            _ => (snapshot.json(&filter), "application/json"),
        };
        let (status, head, body) = ask(server.address, "GET", &format!("{path}{query}")).await;
        assert_eq!((status, body.as_bytes()), (200, &want[..]), "{path}{query}");
        assert!(head.contains(&format!("content-type: {content_type}\r\n")), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
}

#[tokio::test]
async fn a_request_sees_the_latest_snapshot() {
    let server = started().await;
    let (_, _, before) = ask(server.address, "GET", "/folded").await;
    assert!(!before.is_empty());
    server.source.snapshot.store(Arc::new(Snapshot::initial()));
    assert_eq!(ask(server.address, "GET", "/folded").await.2, "");
}

#[tokio::test]
async fn bad_requests_get_a_sentence() {
    let server = started().await;
    for (method, path, status, sentence) in [
        (
            "GET",
            "/metrics?pid=",
            400,
            "pid= is no process number: give one from 1 to 4194304.\n",
        ),
        (
            "GET",
            "/metrics?pid=0",
            400,
            "pid=0 is no process number: give one from 1 to 4194304.\n",
        ),
        (
            "GET",
            "/folded?pid=-1",
            400,
            "pid=-1 is no process number: give one from 1 to 4194304.\n",
        ),
        (
            "GET",
            "/folded?pid=4194305",
            400,
            "pid=4194305 is no process number: give one from 1 to 4194304.\n",
        ),
        (
            "GET",
            "/folded?pid=%1b[2J",
            400,
            "pid=\\u{1b}[2J is no process number: give one from 1 to 4194304.\n",
        ),
        (
            "GET",
            "/api/v1/report?kind=goroutine",
            400,
            "kind=goroutine is no kind: give one of task, local, blocking, held, thread.\n",
        ),
        (
            "GET",
            "/api/v1/report?pid=1&pid=1",
            400,
            "pid is given twice: give it once.\n",
        ),
        ("GET", "/nothing", 404, "No such page; / is the first one.\n"),
    ] {
        let (got, head, body) = ask(server.address, method, path).await;
        assert_eq!((got, body.as_str()), (status, sentence), "{method} {path}");
        assert!(head.contains("content-type: text/plain"), "{head}");
    }
}

#[tokio::test]
async fn only_get_and_head_are_methods() {
    let server = started().await;
    for path in ["/", "/metrics", "/folded", "/api/v1/report", "/livez", "/readyz"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let (status, head, body) = ask(server.address, method, path).await;
            assert_eq!((status, body.as_str()), (405, ""), "{method} {path}");
            assert!(head.contains("allow: get,head"), "{head}");
        }
        let (status, head, body) = ask(server.address, "HEAD", path).await;
        assert_eq!((status, body.as_str()), (200, ""), "HEAD {path}");
        let length = ask(server.address, "GET", path).await.2.len();
        assert!(
            head.contains(&format!("content-length: {length}\r\n")),
            "{path}: {length} in {head}"
        );
    }
}

#[tokio::test]
async fn the_page_comes_with_its_files_and_its_policy() {
    let server = started().await;
    for file in page::FILES {
        let (status, head, body) = ask(server.address, "GET", file.path).await;
        assert_eq!((status, body.as_str()), (200, file.text), "{}", file.path);
        assert!(
            head.contains(&format!("content-type: {}\r\n", file.content_type)),
            "{head}"
        );
        assert!(
            head.contains("content-security-policy: default-src 'none'; script-src 'self';"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_flame_graph_is_served_in_an_origin_of_its_own() {
    let server = started().await;
    let (status, head, body) = ask(server.address, "GET", "/flamegraph.svg?kind=task").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: image/svg+xml\r\n"), "{head}");
    assert!(
        head.contains("content-security-policy: sandbox allow-scripts;"),
        "{head}"
    );
    assert!(body.contains("all (43 tasks, 100%)") && body.ends_with("</svg>\n"));
}

#[tokio::test]
async fn a_profile_is_what_the_format_makes_of_the_part() {
    let server = started().await;
    let filter = Filter {
        tgid: None,
        kind: Some("task"),
    };
    let want = server.source.snapshot.load().pprof(&filter);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /debug/pprof/task?kind=task HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&want));
}

#[tokio::test]
async fn probes_of_health_tell_a_stuck_loop_and_a_missing_attach() {
    let long_ago = Instant::now().checked_sub(HEARTBEAT_AGE_MAX).unwrap();
    let server = start(Snapshot::initial(), long_ago, Limits::default()).await;
    assert_eq!(ask(server.address, "GET", "/livez").await.0, 503);
    assert_eq!(ask(server.address, "GET", "/readyz").await.0, 503);
    server.source.heartbeat.beat();
    assert_eq!(ask(server.address, "GET", "/livez").await.0, 200);
    server.source.snapshot.store(Arc::new(snapshot()));
    assert_eq!(ask(server.address, "GET", "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_connection_beyond_the_bound_takes_the_place_of_the_one_that_asked_longest_ago() {
    let limits = Limits {
        connections: 2,
        // Not what ends them.
        head: 9 * PATIENCE,
        connection: 9 * PATIENCE,
        ..Limits::default()
    };
    let server = start(snapshot(), Instant::now(), limits).await;
    let mut idle = asked(server.address).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // The server has seen both once this one has asked again.
    let mut busy = asked(server.address).await;
    assert_eq!(rest(&mut idle).await, "ok\n", "closed after what it had asked for");
    ask_again(&mut busy).await;
    assert_eq!(ask(server.address, "GET", "/livez").await.0, 200);
    assert_eq!(rest(&mut silent).await, "", "closed without having asked");
    ask_again(&mut busy).await;
    assert_eq!(server.source.evicted.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn slow_clients_push_out_each_other_only() {
    let limits = Limits {
        connections: 8,
        head: 9 * PATIENCE,
        connection: 9 * PATIENCE,
        ..Limits::default()
    };
    let server = start(snapshot(), Instant::now(), limits).await;
    let mut slow = Vec::new();
    for number in 0..200_u64 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: ").await.unwrap();
        slow.push(stream);
        if number % 10 == 0 {
            assert_eq!(ask(server.address, "GET", "/metrics").await.0, 200);
        }
    }
    // Whoever came before this one has been let in by the time it is answered.
    assert_eq!(ask(server.address, "GET", "/metrics").await.0, 200);
    assert!(server.source.evicted.load(Ordering::Relaxed) >= 200 - 8);
}

/// A connection that has asked once and been answered but for the body.
async fn asked(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    read_head(&mut stream).await;
    stream
}

async fn ask_again(stream: &mut TcpStream) {
    let mut body = [0; 3];
    stream.read_exact(&mut body).await.unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    read_head(stream).await;
}

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
}

#[tokio::test]
async fn a_client_that_never_ends_its_head_is_cut_off() {
    let limits = Limits {
        connections: 1,
        head: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = start(snapshot(), Instant::now(), limits).await;
    for unfinished in ["", "GET /metrics HTTP/1.1\r\nhost: te"] {
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(unfinished.as_bytes()).await.unwrap();
        assert!(!rest(&mut slow).await.contains("200 OK"), "{unfinished:?}");
    }
    assert_eq!(ask(server.address, "GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn a_connection_has_an_end() {
    let limits = Limits {
        connection: Duration::from_millis(50),
        // Not what ends it.
        head: 9 * PATIENCE,
        ..Limits::default()
    };
    let server = start(snapshot(), Instant::now(), limits).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    assert!(rest(&mut idle).await.ends_with("ok\n"));
}

#[tokio::test]
async fn a_head_beyond_the_buffer_is_refused() {
    let server = started().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nhost: test\r\nx: {}",
        "a".repeat(2 * BUFFER_BYTES_MAX)
    );
    // The server may close before it has read all of it.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 431");
    assert_eq!(ask(server.address, "GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_returns() {
    let limits = Limits {
        head: 9 * PATIENCE,
        drain: 9 * PATIENCE,
        ..Limits::default()
    };
    let server = start(snapshot(), Instant::now(), limits).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 12];
    idle.read_exact(&mut status).await.unwrap();
    server.stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, server.served)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(rest(&mut idle).await.ends_with("ok\n"));
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "the listener is closed"
    );
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_client_that_reads_nothing() {
    let mut report = samples::busy();
    let stack = report.callsites[0].stacks[0].clone();
    report.callsites[0].stacks = (0..60_000)
        .map(|number| {
            let mut stack = stack.clone();
            stack.frames.truncate(1);
            stack.frames[0].function = Some(format!("{number:0250}"));
            stack
        })
        .collect();
    let large = Snapshot::new(report, Default::default(), samples::own(), true);
    let whole = large.folded(&Filter::default()).len();
    assert!(whole > 16_000_000, "more than sockets buffer: {whole}");
    let limits = Limits {
        drain: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = start(large, Instant::now(), limits).await;
    let mut stuck = TcpStream::connect(server.address).await.unwrap();
    stuck
        .write_all(b"GET /folded HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 12];
    stuck.read_exact(&mut status).await.unwrap();
    server.stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, server.served)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let mut rest = Vec::new();
    // Cut off in the middle: an end or a reset, not the whole text.
    let _ = tokio::time::timeout(PATIENCE, stuck.read_to_end(&mut rest))
        .await
        .unwrap();
    assert!(rest.len() < whole);
}

#[tokio::test]
async fn many_clients_at_once_are_all_served() {
    let server = started().await;
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        clients.spawn(ask(server.address, "GET", "/metrics"));
    }
    let want = server.source.snapshot.load().metrics(&Filter::default()).unwrap();
    while let Some(answer) = clients.join_next().await {
        let (status, _, body) = answer.unwrap();
        assert_eq!((status, body.as_bytes()), (200, &want[..]));
    }
}
