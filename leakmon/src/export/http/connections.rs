//! The server's connections: how many, for how long, and which one makes room.
//!
//! In: a listener and what answers requests. Out: replies. Every client is bounded: so many connections, so long for a request's
//! head, so long for a connection as a whole. Where the bound is reached, a new connection takes the place of the one whose last
//! request is longest ago: slow clients, however many, can only push out each other, and a client that asks and reads gets its
//! reply. It knows no page.

use super::gate::Gate;
use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// Bytes buffered for a connection; bounds a request's head, too (431 beyond it).
pub(super) const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Pause after a failed accept that is likely to fail again at once, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once, at least 1.
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

/// What answers, and within which bounds.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) service: TowerToHyperService<Router>,
    pub(super) gate: Arc<Gate>,
    pub(super) limits: Limits,
}

/// One client.
struct Peer {
    origin: Instant,
    /// Nanoseconds from `origin` to its last request, or to its arrival.
    asked_ns: AtomicU64,
    /// Told to make room.
    evicted: Notify,
}

impl Peer {
    fn new(origin: Instant) -> Self {
        let peer = Self {
            origin,
            asked_ns: AtomicU64::new(0),
            evicted: Notify::new(),
        };
        peer.asks();
        peer
    }

    fn asks(&self) {
        let now_ns = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Relaxed: the number is all that is shared.
        self.asked_ns.store(now_ns, Ordering::Relaxed);
    }
}

/// Serves until `shutdown` is done, then lets replies under way finish. `evicted` counts the connections that had to make room.
///
/// # Errors
/// The listener is unusable (`EBADF`, `EINVAL`, `ENOTSOCK`); failures of single connections are no errors.
pub(super) async fn serve(
    listener: TcpListener,
    server: Server,
    evicted: &AtomicU64,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    // Dropping the sender tells all connections to stop.
    let (stop, stopped) = watch::channel(());
    let origin = Instant::now();
    let mut peers: HashMap<u64, Arc<Peer>> = HashMap::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    for number in 0_u64.. {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener) => accepted,
        };
        let stream = accepted?;
        while let Some(ended) = connections.try_join_next() {
            forget(&mut peers, &ended);
        }
        while peers.len() >= server.limits.connections {
            if let Some(idle) = peers.values().min_by_key(|peer| peer.asked_ns.load(Ordering::Relaxed)) {
                idle.evicted.notify_one();
                evicted.fetch_add(1, Ordering::Relaxed);
            }
            // It ends as soon as it runs; if another one ends first, that makes room as well.
            match connections.join_next().await {
                Some(ended) => forget(&mut peers, &ended),
                None => peers.clear(),
            }
        }
        let peer = Arc::new(Peer::new(origin));
        peers.insert(number, Arc::clone(&peer));
        let served = accepted_connection(stream, server.clone(), stopped.clone(), peer);
        connections.spawn(async move {
            served.await;
            number
        });
    }
    drop(stop);
    // Each ends within `limits.drain`.
    while connections.join_next().await.is_some() {}
    Ok(())
}

fn forget(peers: &mut HashMap<u64, Arc<Peer>>, ended: &Result<u64, tokio::task::JoinError>) {
    match ended {
        Ok(number) => drop(peers.remove(number)),
        // Nothing aborts a connection, and a handler that panics is a bug; its peer is forgotten with the others that have gone.
        Err(_) => peers.retain(|_, peer| Arc::strong_count(peer) > 1),
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        let error = match listener.accept().await {
            Ok((stream, _)) => return Ok(stream),
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

/// A connection from its first byte: encrypted where the gate says so.
async fn accepted_connection(stream: TcpStream, server: Server, mut stopped: watch::Receiver<()>, peer: Arc<Peer>) {
    // Without it a reply may wait for the client's delayed acknowledgement; nothing is lost if it can't be set.
    let _ = stream.set_nodelay(true);
    let Some(tls) = server.gate.tls() else {
        return connection(stream, server, stopped, peer).await;
    };
    let handshake = tokio::time::timeout(server.limits.head, TlsAcceptor::from(tls).accept(stream));
    let encrypted = tokio::select! {
        encrypted = handshake => encrypted,
        () = peer.evicted.notified() => return,
        _ = stopped.changed() => return,
    };
    // A client that speaks no TLS, or has no certificate where one is asked for, is told so by the handshake itself.
    if let Ok(Ok(encrypted)) = encrypted {
        connection(encrypted, server, stopped, peer).await;
    }
}

async fn connection<S>(stream: S, server: Server, mut stopped: watch::Receiver<()>, peer: Arc<Peer>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Server { service, limits, .. } = server;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER_BYTES_MAX);
    let counted = service_fn(|request| {
        peer.asks();
        service.call(request)
    });
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), counted));
    tokio::select! {
        // A client that breaks off or breaks the protocol is its own problem.
        _ = &mut served => return,
        () = peer.evicted.notified() => return,
        _ = stopped.changed() => {}
        () = tokio::time::sleep(limits.connection) => {}
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = tokio::time::timeout(limits.drain, served) => {}
        () = peer.evicted.notified() => {}
    }
}
