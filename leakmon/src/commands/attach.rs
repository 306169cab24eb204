//! `leakmon attach`: watches running processes for a while.

use super::{Destination, Exit, analyst, observation, progress::Spinner, rules};
use crate::{
    cli::AttachArgs,
    daemon::{Observer, Watchable},
    kernel::host::require_capabilities,
    symbols::hidden::HideTable,
};
use anyhow::Context;
use std::{pin::pin, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn execute(args: AttachArgs) -> anyhow::Result<Exit> {
    HideTable::new(args.observe.hide.iter().cloned())?;
    observation::check_output(&args.observe)?;
    let rules = rules(&args.rules.include, &args.rules.exclude)?;
    require_capabilities()?;
    let analyst = analyst()?;
    let watchable = {
        let _scanning = Spinner::new("looking for probe sites");
        Watchable::find(&analyst, &args.exe, &args.pid)?
    };
    let mut observer = observation::observer(&args.observe, analyst)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be listened to")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be listened to")?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let mut stop = pin!(stop);
    if args.all {
        observer.discover(Arc::clone(&rules))?;
    }
    observer.show_only(rules);
    observer.watch_all(watchable).await?;
    let looked = async {
        if args.all {
            observer.first_look().await;
        }
    };
    tokio::select! {
        () = looked => {}
        // The report says what was found until then.
        () = &mut stop => return conclude(observer, &args).await,
    }
    tracing::info!("attached {} probe sites", observer.attached_sites());
    let duration = observation::progress(args.observe.duration, "watching; Ctrl-C prints the report");
    // Executables and the host may get new processes at any time; numbers won't.
    let until_all_gone = args.exe.is_empty() && !args.all;
    observer
        .observe(until_all_gone, async {
            tokio::select! {
                () = stop => {}
                () = duration => {}
            }
        })
        .await;
    conclude(observer, &args).await
}

async fn conclude(observer: Observer, args: &AttachArgs) -> anyhow::Result<Exit> {
    let destination = args
        .observe
        .output
        .as_deref()
        .map_or(Destination::Stdout, Destination::File);
    let leaks = observation::conclude(observer, &args.observe, destination).await?.leaks;
    Ok(if leaks { Exit::Leak } else { Exit::Done })
}
