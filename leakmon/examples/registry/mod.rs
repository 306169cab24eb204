//! A small publish-and-subscribe server, and the clients that come and go. It leaks, unless it is repaired.
//!
//! A client that subscribes gets a callback in the [`Registry`], a boxed closure that owns the sending end of a channel.
//! Its handler waits at the receiving end. When the client has gone, nobody calls the closure's owner back: the entry
//! stays, its sender stays, and the handler waits for ever. The repair is one line: take the entry out.

use crate::victim::{self, Arguments, Presence, Site};
use serde_json::json;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

static ACCEPT_LOOP: Site = Site::new("accept_loop", "task", "spawn_servers");
static HEARTBEAT: Site = Site::new("heartbeat", "task", "spawn_servers");
static WRITE_LOG: Site = Site::new("write_log", "task", "spawn_servers");
static HANDLE_CONN: Site = Site::new("handle_conn", "task", "accept_loop");
static NOTE_VISIT: Site = Site::new("note_visit", "task", "accept_loop");
static SITES: [&Site; 5] = [&ACCEPT_LOOP, &HEARTBEAT, &WRITE_LOG, &HANDLE_CONN, &NOTE_VISIT];

/// Tasks that live as long as the server, by design.
const SERVER_TASKS: usize = 3;
/// Clients of the first phase that subscribe, and that say what they want only in the second phase.
const EARLY_SUBSCRIBERS: usize = 5;
const EARLY_PINGS: usize = 3;

type Callback = Box<dyn Fn(&str) + Send>;

/// Whom to tell about an event.
struct Registry {
    callbacks: Mutex<(u64, HashMap<u64, Callback>)>,
    repaired: bool,
}

impl Registry {
    fn subscribe(&self) -> (u64, mpsc::Receiver<String>) {
        let (sender, events) = mpsc::channel(16);
        let callback: Callback = Box::new(move |event| {
            // A subscriber that is too slow misses events.
            let _ = sender.try_send(event.to_owned());
        });
        let mut callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.0 += 1;
        let id = callbacks.0;
        callbacks.1.insert(id, callback);
        (id, events)
    }

    fn unsubscribe(&self, id: u64) {
        self.callbacks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .remove(&id);
    }

    fn publish(&self, event: &str) {
        for callback in self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).1.values() {
            callback(event);
        }
    }
}

/// Runs the server and its clients to the end, and leaves.
pub(crate) fn serve(repaired: bool) -> io::Result<()> {
    let arguments = Arguments::read(&["connections", "pings", "pace-ms"])?;
    let pings = arguments.number("pings", 14);
    let subscribers = arguments.number("connections", 52).saturating_sub(pings);
    let pace = Duration::from_millis(arguments.number("pace-ms", 0) as u64);
    let runtime = victim::runtime(1)?;

    victim::first_phase(&arguments)?;
    let (address, mut early, patient) = runtime.block_on(async {
        let address = start(repaired).await?;
        let mut early = Vec::new();
        for _ in 0..EARLY_SUBSCRIBERS {
            early.push(ask(connect(address).await?, "subscribe").await?);
        }
        let mut patient = Vec::new();
        for _ in 0..EARLY_PINGS {
            patient.push(connect(address).await?);
        }
        victim::settle(SERVER_TASKS + EARLY_SUBSCRIBERS + EARLY_PINGS).await;
        io::Result::Ok((address, early, patient))
    })?;

    victim::second_phase(&arguments, &SITES)?;
    runtime.block_on(async {
        for client in patient {
            ask(client, "ping").await?;
        }
        for number in 0..pings.max(subscribers) {
            if number < subscribers {
                early.push(ask(connect(address).await?, "subscribe").await?);
            }
            if number < pings {
                ask(connect(address).await?, "ping").await?;
            }
            if !pace.is_zero() {
                // Spreads the connections as a real service sees them; nothing waits for this.
                tokio::time::sleep(pace).await;
            }
        }
        // Every client goes. The handlers should, too.
        let gone = early.len();
        drop(early);
        victim::settle(SERVER_TASKS + if repaired { 0 } else { gone }).await;
        io::Result::Ok(())
    })?;
    victim::leave(&arguments, &SITES, json!({}))
}

async fn start(repaired: bool) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    spawn_servers(listener, repaired);
    Ok(address)
}

#[inline(never)]
fn spawn_servers(listener: TcpListener, repaired: bool) {
    let callbacks = Mutex::default();
    let registry = Arc::new(Registry { callbacks, repaired });
    let (log, lines) = mpsc::channel(64);
    tokio::spawn(write_log(lines, WRITE_LOG.enter()));
    tokio::spawn(heartbeat(Arc::clone(&registry), HEARTBEAT.enter()));
    tokio::spawn(accept_loop(listener, registry, log, ACCEPT_LOOP.enter()));
}

async fn accept_loop(listener: TcpListener, registry: Arc<Registry>, log: mpsc::Sender<String>, _presence: Presence) {
    while let Ok((stream, peer)) = listener.accept().await {
        tokio::spawn(note_visit(peer, log.clone(), NOTE_VISIT.enter()));
        tokio::spawn(handle_conn(stream, Arc::clone(&registry), HANDLE_CONN.enter()));
    }
}

async fn handle_conn(stream: TcpStream, registry: Arc<Registry>, _presence: Presence) {
    let (reader, mut writer) = stream.into_split();
    let mut requests = BufReader::new(reader).lines();
    let _ = writer.write_all(b"hello\n").await;
    let Ok(Some(request)) = requests.next_line().await else {
        return;
    };
    if request == "ping" {
        let _ = writer.write_all(b"pong\n").await;
        return;
    }
    let (id, mut events) = registry.subscribe();
    let _ = writer.write_all(b"subscribed\n").await;
    let mut connected = true;
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                let _ = writer.write_all(event.as_bytes()).await;
            }
            request = requests.next_line(), if connected => {
                connected = matches!(request, Ok(Some(_)));
                if !connected && registry.repaired {
                    registry.unsubscribe(id);
                }
            }
        }
    }
}

async fn note_visit(peer: SocketAddr, log: mpsc::Sender<String>, _presence: Presence) {
    let _ = log.send(format!("{peer} came")).await;
}

async fn write_log(mut lines: mpsc::Receiver<String>, _presence: Presence) {
    let mut bytes = 0;
    while let Some(line) = lines.recv().await {
        bytes += line.len();
    }
    std::hint::black_box(bytes);
}

async fn heartbeat(registry: Arc<Registry>, _presence: Presence) {
    let mut beats = tokio::time::interval(Duration::from_secs(1));
    loop {
        beats.tick().await;
        registry.publish("still here\n");
    }
}

/// Connects, and waits for the handler's greeting: by then its task exists.
async fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let mut client = BufReader::new(TcpStream::connect(address).await?);
    hear(&mut client, "hello").await?;
    Ok(client)
}

/// Sends a request and waits for the first line of the answer.
async fn ask(mut client: BufReader<TcpStream>, request: &str) -> io::Result<BufReader<TcpStream>> {
    client.write_all(format!("{request}\n").as_bytes()).await?;
    hear(&mut client, if request == "ping" { "pong" } else { "subscribed" }).await?;
    Ok(client)
}

async fn hear(client: &mut BufReader<TcpStream>, expected: &str) -> io::Result<()> {
    let mut line = String::new();
    client.read_line(&mut line).await?;
    if line.trim_end() != expected {
        return Err(io::Error::other(format!(
            "expected {expected:?}, the server said {line:?}"
        )));
    }
    Ok(())
}
