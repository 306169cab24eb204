//! `leakmon top`: the live view, of processes that it attaches to or of what a daemon knows.
//!
//! In: reports once a second, from the own loop or a daemon's `/api/v1/report`, and keys. Out: a screen. The terminal has a
//! thread of its own: a key never waits for a report. Whatever ends the view, a panic included, the terminal is given back as it
//! was.

mod remote;

use super::{Exit, Unprobeable, analyst, progress::Spinner};
use crate::{
    cli::TopArgs,
    config::Config,
    daemon::{Observer, Watchable},
    export::{
        http::Source,
        report::Report,
        snapshot::{Heartbeat, Snapshot},
        top::{Asked, View, page},
    },
    kernel::{Settings, detach, host::require_capabilities},
};
use anyhow::Context;
use arc_swap::{ArcSwap, ArcSwapOption};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use remote::Daemon;
use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

/// How often there is a new report.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the screen waits for a key before it looks for a new report.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// How long the screen's thread may take to give the terminal back. With a terminal that has gone it never does: crossterm 0.29
/// reads its end again and again (`event/source/unix/mio.rs`, `try_read`).
const GIVE_BACK_MAX: Duration = Duration::from_secs(2);

/// What the screen's thread reads: the newest report, or why there is none.
type Feed = Arc<ArcSwapOption<Result<Report, String>>>;

pub(super) async fn execute(args: TopArgs) -> anyhow::Result<Exit> {
    if !std::io::stdout().is_terminal() {
        return Err(Unprobeable("stdout is no terminal: `leakmon attach` prints a report instead".to_owned()).into());
    }
    match &args.connect {
        Some(url) => watch_daemon(url).await,
        None => watch_processes(&args).await,
    }
}

async fn watch_daemon(url: &str) -> anyhow::Result<Exit> {
    let daemon = Daemon::at(url)?;
    let feed = Feed::default();
    let mut screen = Screen::start(Arc::clone(&feed))?;
    let fetch = async {
        loop {
            let report = daemon
                .report()
                .await
                .map_err(|error| format!("{error:#}; trying again"));
            feed.store(Some(Arc::new(report)));
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = fetch => {}
        () = screen.quit() => {}
        () = told_to_end()? => {}
    }
    screen.end().await
}

async fn watch_processes(args: &TopArgs) -> anyhow::Result<Exit> {
    require_capabilities()?;
    let analyst = analyst()?;
    let watchable = {
        let _scanning = Spinner::new("looking for probe sites");
        Watchable::find(&analyst, &args.exe, &args.pid)?
    };
    let settings = Settings {
        walk_stacks: !args.no_stacks,
        ..Settings::default()
    };
    let mut observer = Observer::new(settings, Config::default().inspection(), &args.hide, analyst, None)?;
    observer.allow(&args.allow)?;
    observer.watch_all(watchable).await?;
    let source = Source {
        snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::initial())),
        heartbeat: Arc::new(Heartbeat::since(Instant::now())),
        evicted: Arc::default(),
        pushes: Arc::default(),
    };
    let snapshots = Arc::clone(&source.snapshot);
    observer.publish_to(source, INTERVAL);
    let feed = Feed::default();
    let mut screen = Screen::start(Arc::clone(&feed))?;
    let told = told_to_end()?;
    let pass_on = async {
        let mut last = snapshots.load_full();
        loop {
            tokio::time::sleep(KEY_WAIT).await;
            let now = snapshots.load_full();
            if !Arc::ptr_eq(&last, &now) {
                feed.store(Some(Arc::new(Ok(now.report.clone()))));
                last = now;
            }
        }
    };
    observer
        .observe(false, async {
            tokio::select! {
                () = pass_on => {}
                () = screen.quit() => {}
                () = told => {}
            }
        })
        .await;
    let outcome = screen.end().await;
    detach::in_background(observer.into_kernel());
    outcome
}

/// Ends when a signal says so; Ctrl-C is a key here.
fn told_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be listened to")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP can't be listened to")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// The thread that has the terminal.
struct Screen {
    thread: JoinHandle<std::io::Result<()>>,
    stop: Arc<AtomicBool>,
    /// Closed when the thread ends.
    ended: oneshot::Receiver<()>,
}

impl Screen {
    /// Takes the terminal.
    fn start(feed: Feed) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (quit, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("screen".to_owned())
            .spawn(move || {
                // Dropped at the end, be it a panic's: that is how the other side is told.
                let _quit = quit;
                // Sets a panic hook, too, that gives the terminal back before the message is printed.
                let mut terminal = ratatui::try_init()?;
                let outcome = show(&mut terminal, &feed, &stopped);
                ratatui::restore();
                outcome
            })
            .context("the screen's thread can't be started")?;
        Ok(Self { thread, stop, ended })
    }

    /// Until the view is quit. It is no error to ask again.
    async fn quit(&mut self) {
        if !self.ended.is_terminated() {
            let _closed = (&mut self.ended).await;
        }
    }

    /// Gives the terminal back, where there still is one.
    async fn end(mut self) -> anyhow::Result<Exit> {
        self.stop.store(true, Ordering::Relaxed);
        if timeout(GIVE_BACK_MAX, self.quit()).await.is_err() {
            return Ok(Exit::Done);
        }
        match self.thread.join() {
            Ok(outcome) => outcome.context("the terminal can't be used")?,
            Err(_) => anyhow::bail!("the screen's thread panicked"),
        }
        Ok(Exit::Done)
    }
}

fn show(terminal: &mut DefaultTerminal, feed: &Feed, stop: &AtomicBool) -> std::io::Result<()> {
    let mut view = View::default();
    let mut changed = true;
    while !stop.load(Ordering::Relaxed) {
        if let Some(news) = feed.swap(None) {
            match Arc::unwrap_or_clone(news) {
                Ok(report) => view.take(report),
                Err(why) => view.trouble(why),
            }
            changed = true;
        }
        if changed {
            terminal.draw(|frame| page::draw(frame, &view))?;
        }
        changed = event::poll(KEY_WAIT)?;
        // All keys that wait, before the next drawing.
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && view.press(key) == Asked::Quit
            {
                return Ok(());
            }
        }
    }
    Ok(())
}
