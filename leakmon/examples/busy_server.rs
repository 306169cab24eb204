//! Victim (c): a healthy, busy server on the loopback interface. Everything that it spawns ends, but the accept loop.
//!
//! `--clients N` connect at the same time, each makes `--requests N`, in either phase.

mod victim;

use serde_json::json;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use victim::{Arguments, Presence, Site};

static ACCEPT_LOOP: Site = Site::new("accept_loop", "task", "main");
static SERVE_CONN: Site = Site::new("serve_conn", "task", "accept_loop");
static ANSWER: Site = Site::new("answer", "task", "serve_conn");
static CLIENT: Site = Site::new("client", "task", "visit");
static SITES: [&Site; 4] = [&ACCEPT_LOOP, &SERVE_CONN, &ANSWER, &CLIENT];

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["clients", "requests"])?;
    let clients = arguments.number("clients", 8);
    // A client that asks nothing might be gone before its connection is accepted.
    let requests = arguments.number("requests", 125).max(1);
    let runtime = victim::runtime(1)?;

    victim::first_phase(&arguments)?;
    let address = runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(accept_loop(listener, ACCEPT_LOOP.enter()));
        visit(address, clients, requests).await?;
        io::Result::Ok(address)
    })?;
    victim::second_phase(&arguments, &SITES)?;
    runtime.block_on(visit(address, clients, requests))?;
    victim::leave(&arguments, &SITES, json!({}))
}

async fn accept_loop(listener: TcpListener, _presence: Presence) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_conn(stream, SERVE_CONN.enter()));
    }
}

async fn serve_conn(stream: TcpStream, _presence: Presence) {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    while stream.read_line(&mut request).await.is_ok_and(|bytes| bytes > 0) {
        let answer = tokio::spawn(answer(std::mem::take(&mut request), ANSWER.enter())).await;
        if stream.write_all(answer.unwrap_or_default().as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn answer(request: String, _presence: Presence) -> String {
    tokio::task::yield_now().await;
    request.to_uppercase()
}

/// Has the clients come, ask and go; only the accept loop is left.
async fn visit(address: SocketAddr, clients: usize, requests: usize) -> io::Result<()> {
    let mut visitors = JoinSet::new();
    for _ in 0..clients {
        visitors.spawn(client(address, requests, CLIENT.enter()));
    }
    while let Some(visitor) = visitors.join_next().await {
        visitor??;
    }
    victim::settle(1).await;
    Ok(())
}

async fn client(address: SocketAddr, requests: usize, _presence: Presence) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let mut reply = String::new();
    for number in 0..requests {
        stream.write_all(format!("request {number}\n").as_bytes()).await?;
        reply.clear();
        stream.read_line(&mut reply).await?;
        if reply != format!("REQUEST {number}\n") {
            return Err(io::Error::other(format!("request {number} was answered by {reply:?}")));
        }
    }
    Ok(())
}
