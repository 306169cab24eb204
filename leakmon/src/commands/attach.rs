//! `leakmon attach`: watches running processes for a while.

use super::{Destination, Exit, analyst, inspection, observation, progress::Spinner, settings};
use crate::{
    cli::AttachArgs,
    daemon::{Observer, Watchable},
    kernel::host::require_capabilities,
    symbols::hidden::HideTable,
};
use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn execute(args: AttachArgs) -> anyhow::Result<Exit> {
    HideTable::new(args.observe.hide.iter().cloned())?;
    observation::check_output(&args.observe)?;
    require_capabilities()?;
    let analyst = analyst()?;
    let watchable = {
        let _scanning = Spinner::new("looking for probe sites");
        Watchable::find(&analyst, &args.exe, &args.pid)?
    };
    let mut observer = Observer::new(
        settings(&args.observe),
        inspection(&args.observe),
        &args.observe.hide,
        analyst,
        None,
    )?;
    if args.observe.trace.is_some() {
        observer.keep_timeline();
    }
    observer.allow(&args.observe.allow)?;
    if let Some(path) = &args.observe.record {
        observer.record(path)?;
    }
    observer.watch_all(watchable).await?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be listened to")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be listened to")?;
    tracing::info!("attached {} probe sites", observer.attached_sites());
    let duration = observation::progress(args.observe.duration, "watching; Ctrl-C prints the report");
    // Executables may get new processes at any time; numbers won't.
    let until_all_gone = args.exe.is_empty();
    observer
        .observe(until_all_gone, async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = duration => {}
            }
        })
        .await;
    let destination = args
        .observe
        .output
        .as_deref()
        .map_or(Destination::Stdout, Destination::File);
    let leaks = observation::conclude(observer, &args.observe, destination).await?.leaks;
    Ok(if leaks { Exit::Leak } else { Exit::Done })
}
