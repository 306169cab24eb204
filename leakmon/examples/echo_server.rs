//! An HTTP server that gives back what it gets, one task a connection: the victim of `cargo xtask bench server`.
//!
//! It prints its port and serves until the end of its input.

use axum::{Router, body::Bytes, routing::post};
use std::{
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
};
use tokio::net::TcpListener;

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut output = io::stdout();
        writeln!(output, "{}", listener.local_addr()?.port())?;
        output.flush()?;
        let app = Router::new().route("/", post(|body: Bytes| async move { body }));
        let ended = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
        tokio::select! {
            served = axum::serve(listener, app).into_future() => served,
            _ = ended => Ok(()),
        }
    })
}
