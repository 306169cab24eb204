//! `leakmon daemon`: watches executables and processes, and serves HTTP until it is told to stop.

use super::{Exit, say};
use crate::{
    cli::DaemonArgs,
    config::Config,
    daemon::{Observer, Watchable},
    export::{
        http::{self, Limits, Source},
        snapshot::{Heartbeat, Snapshot},
    },
    kernel::{detach, host::require_capabilities},
};
use anyhow::Context;
use arc_swap::ArcSwap;
use std::{sync::Arc, thread::JoinHandle, time::Instant};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

pub(super) async fn execute(args: DaemonArgs) -> anyhow::Result<Exit> {
    let config = Config::from_args(&args)?;
    require_capabilities()?;
    let watchable = Watchable::find(&config.exes, &config.pids)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be listened to")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be listened to")?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!(
            "{}: can't be listened on: choose another address with --listen",
            config.listen
        )
    })?;
    let address = listener.local_addr().context("the address in use can't be known")?;
    let source = Source {
        snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::initial())),
        heartbeat: Arc::new(Heartbeat::since(Instant::now())),
        evicted: Arc::default(),
    };
    let (stop, stopped) = oneshot::channel();
    let server = start_server(listener, source.clone(), stopped)?;
    let mut observer = Observer::new(config.settings(), &config.hide)?;
    observer.watch_all(watchable).await?;
    observer.publish_to(source, config.interval);
    say(&format!("serving http://{address}"));
    observer
        .observe(false, async {
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

/// Serves on a thread of its own: a request never waits for the event loop, nor the loop for a request.
fn start_server(
    listener: TcpListener,
    source: Source,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let listener = listener
        .into_std()
        .context("the listener can't be handed to its thread")?;
    std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                // Whether it is told to stop or the sender is gone: both mean the end.
                let stop = async { stopped.await.unwrap_or_default() };
                http::serve(listener, source, Limits::default(), stop).await
            })
        })
        .context("the HTTP thread can't be started")
}
