//! `leakmon daemon`: watches executables and processes, and serves HTTP until it is told to stop.
//!
//! In: options and the configuration file, read again at SIGHUP. Out: HTTP, and what the service manager is told. Once probes are
//! attached it gives up what it no longer needs ([`crate::privileges`]).

use super::{Exit, analyst, rules, say};
use crate::{
    cli::DaemonArgs,
    config::Config,
    daemon::{Observer, Watchable},
    export::{
        http::{self, Gate, Limits, Source},
        pods::Pods,
        pyroscope,
        snapshot::{Heartbeat, Snapshot},
    },
    kernel::{
        detach,
        host::require_capabilities,
        pins::{PinError, Pins},
    },
    privileges, supervision,
    targets::rules::Rules,
};
use anyhow::Context;
use arc_swap::ArcSwap;
use std::{net::SocketAddr, sync::Arc, thread::JoinHandle, time::Instant};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

pub(super) async fn execute(args: DaemonArgs) -> anyhow::Result<Exit> {
    let config = Config::from_args(&args)?;
    let rules = rules(&config.include, &config.exclude)?;
    require_capabilities()?;
    if args.cleanup {
        return clean_up(&config);
    }
    let pins = open_pins(&config)?;
    let analyst = analyst()?;
    let watchable = Watchable::find(&analyst, &config.exes, &config.pids)?;
    let mut signals = Signals::listen()?;
    let gate = gate(&config)?;
    let listener = listen(config.listen).await?;
    let address = listener.local_addr().context("the address in use can't be known")?;
    // After the port, which may be a privileged one, and before any thread.
    privileges::keep_needed()?;
    let source = Source {
        snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::initial())),
        heartbeat: Arc::new(Heartbeat::since(Instant::now())),
        evicted: Arc::default(),
        pushes: Arc::default(),
    };
    let network = Network {
        source: source.clone(),
        gate: Arc::new(gate),
        pods: config.kubernetes.pods.then(|| Arc::new(Pods::default())),
    };
    let (stop, stopped) = oneshot::channel();
    let server = network.start(listener, &config, stopped)?;
    let mut observer = Observer::new(config.settings(), config.inspection(), &config.hide, analyst, pins)?;
    watch(&mut observer, &config, rules, watchable).await?;
    observer.publish_to(source, config.interval);
    observer.name_pods(network.pods.clone());
    privileges::restrict_system_calls()?;
    let status = format!("serving http://{address}");
    say(&status);
    supervision::ready(&status);
    let mut settled = Settled {
        args,
        config,
        gate: network.gate,
        status,
    };
    let mut wake = observer.observe(false, signals.next()).await;
    while let Some(Wake::Reload) = wake {
        settled.reload(&mut observer).await;
        wake = observer.observe(false, signals.next()).await;
    }
    supervision::stopping();
    drop(stop);
    let mut kernel = observer.into_kernel();
    if matches!(wake, Some(Wake::Interrupted)) {
        kernel.unpin()?;
    }
    if kernel.is_pinned() {
        say(&format!(
            "what is watched stays so, in {}: start the daemon again, or remove it with `leakmon daemon --cleanup`",
            settled.config.pin_directory.display()
        ));
    } else {
        detach::in_background(kernel);
    }
    match server.join() {
        Ok(served) => served.context("HTTP can't be served")?,
        Err(_) => anyhow::bail!("the HTTP thread panicked"),
    }
    Ok(Exit::Done)
}

/// Goes on with what an earlier daemon watched, and begins with what this one is to watch.
async fn watch(
    observer: &mut Observer,
    config: &Config,
    rules: Arc<Rules>,
    watchable: Watchable,
) -> anyhow::Result<()> {
    observer.allow(&config.allow)?;
    observer.show_only(Arc::clone(&rules));
    observer.resume().await;
    if config.searches() {
        observer.discover(rules)?;
    }
    observer.watch_all(watchable).await
}

/// Who may ask, and how.
fn gate(config: &Config) -> Result<Gate, http::WebConfigError> {
    Gate::new(
        config.listen,
        config.allow_open_listen,
        config.web_config_file.as_deref(),
    )
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{address}: can't be listened on: choose another address with --listen"))
}

/// What a signal asks for.
enum Wake {
    /// By the service manager, which may start it again.
    Stop,
    /// By a person.
    Interrupted,
    Reload,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("SIGINT can't be listened to")?,
            terminate: signal(SignalKind::terminate()).context("SIGTERM can't be listened to")?,
            hangup: signal(SignalKind::hangup()).context("SIGHUP can't be listened to")?,
        })
    }

    async fn next(&mut self) -> Wake {
        tokio::select! {
            _ = self.interrupt.recv() => Wake::Interrupted,
            _ = self.terminate.recv() => Wake::Stop,
            _ = self.hangup.recv() => Wake::Reload,
        }
    }
}

/// The configuration in force, and where it came from.
struct Settled {
    args: DaemonArgs,
    config: Config,
    gate: Arc<Gate>,
    /// What the service manager shows.
    status: String,
}

impl Settled {
    /// Reads the configuration again. One that is wrong changes nothing.
    async fn reload(&mut self, observer: &mut Observer) {
        supervision::reloading();
        let outcome = Config::from_args(&self.args);
        let web = self.gate.reload();
        let successful = outcome.is_ok() && web.is_ok();
        if let Err(error) = web {
            say(&format!(
                "web configuration not reloaded, the old one stays in force: {error}"
            ));
        }
        match outcome {
            Ok(config) => {
                self.apply(config, observer).await;
                say("configuration reloaded");
            }
            Err(error) => say(&format!(
                "configuration not reloaded, the old one stays in force: {error}"
            )),
        }
        observer.note_reload(successful);
        supervision::ready(&self.status);
    }

    async fn apply(&mut self, config: Config, observer: &mut Observer) {
        for key in self.config.only_at_start(&config) {
            say(&format!("`{key}` has changed: that takes effect at the next start"));
        }
        let new = |exe: &&std::path::PathBuf| !self.config.exes.contains(exe);
        let exes: Vec<_> = config.exes.iter().filter(new).cloned().collect();
        let pids: Vec<_> = config
            .pids
            .iter()
            .filter(|pid| !self.config.pids.contains(pid))
            .copied()
            .collect();
        let watched = match Watchable::find(observer.analyst(), &exes, &pids) {
            Ok(watchable) => observer.watch_all(watchable).await,
            Err(error) => Err(error),
        };
        if let Err(error) = watched {
            say(&format!("what is new in the configuration can't be watched: {error:#}"));
        }
        observer.publish_every(config.interval);
        self.config = config;
    }
}

/// The directory that outlives the daemon, where there is to be one. Another daemon there is a failure in any case.
fn open_pins(config: &Config) -> anyhow::Result<Option<Pins>> {
    if config.pin == Some(false) {
        return Ok(None);
    }
    match Pins::open(&config.pin_directory) {
        Ok(pins) => Ok(Some(pins)),
        Err(error) if config.pin == Some(true) || matches!(error, PinError::Busy(_)) => Err(error.into()),
        Err(error) => {
            tracing::warn!("nothing outlives this daemon: {error}");
            Ok(None)
        }
    }
}

fn clean_up(config: &Config) -> anyhow::Result<Exit> {
    let directory = &config.pin_directory;
    if directory.exists() {
        Pins::open(directory)?.remove()?;
        say(&format!(
            "{}: removed, with all probes that were kept there",
            directory.display()
        ));
    } else {
        say(&format!("{}: is not there, so nothing is left", directory.display()));
    }
    Ok(Exit::Done)
}

/// What has to do with other hosts.
struct Network {
    source: Source,
    gate: Arc<Gate>,
    /// Names of pods, where they are asked for.
    pods: Option<Arc<Pods>>,
}

impl Network {
    /// Serves, pushes and asks on a thread of its own: a request never waits for the event loop, nor the loop for a request.
    fn start(
        &self,
        listener: TcpListener,
        config: &Config,
        stopped: oneshot::Receiver<()>,
    ) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
        let listener = listener
            .into_std()
            .context("the listener can't be handed to its thread")?;
        let (source, gate) = (self.source.clone(), Arc::clone(&self.gate));
        let pushing = config.pyroscope.url.is_some().then(|| {
            let snapshot = Arc::clone(&source.snapshot);
            pyroscope::push_forever(config.pyroscope.clone(), snapshot, Arc::clone(&source.pushes))
        });
        let asking = self
            .pods
            .clone()
            .map(|pods| pods.ask_forever(config.kubernetes.clone()));
        let thread = move || {
            // Requests come from outside, and answering them takes no rights at all.
            privileges::keep_none().map_err(std::io::Error::other)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                // Both end with the runtime.
                pushing.map(tokio::spawn);
                asking.map(tokio::spawn);
                // Whether it is told to stop or the sender is gone: both mean the end.
                let stop = async { stopped.await.unwrap_or_default() };
                http::serve(listener, source, gate, Limits::default(), stop).await
            })
        };
        std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(thread)
            .context("the HTTP thread can't be started")
    }
}
