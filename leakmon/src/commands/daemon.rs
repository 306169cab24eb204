//! `leakmon daemon`: watches executables and processes, and serves HTTP until it is told to stop.

use super::Exit;
use crate::{
    cli::DaemonArgs,
    config::Config,
    daemon::Observer,
    export::http::{self, Snapshots},
    kernel::detach,
};
use anyhow::Context;
use std::sync::Arc;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

pub(super) async fn execute(args: DaemonArgs) -> anyhow::Result<Exit> {
    let config = Config::from_args(&args)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be listened to")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be listened to")?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("{}: can't be listened on: choose another address with --listen", config.listen))?;
    let address = listener.local_addr().context("the address in use can't be known")?;
    let snapshots = Arc::new(Snapshots::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = std::thread::Builder::new()
        .name("http".to_owned())
        .spawn({
            let snapshots = Arc::clone(&snapshots);
            let listener = listener.into_std().context("the listener can't be handed over")?;
            move || serve(listener, snapshots, stopped)
        })
        .context("the HTTP thread can't be started")?;
    let mut observer = Observer::new(config.settings(), &config.hide)?;
    observer.watch_all(&config.exes, &config.pids)?;
    observer.publish_to(snapshots, config.interval);
    eprintln_line(&format!("leakmon: serving http://{address}"));
    observer
        .observe(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        })
        .await;
    drop(stop);
    detach::in_background(observer.into_kernel());
    match server.join() {
        Ok(served) => served.context("HTTP can't be served")?,
        Err(_) => anyhow::bail!("the HTTP thread panicked"),
    }
    Ok(Exit::Done)
}
