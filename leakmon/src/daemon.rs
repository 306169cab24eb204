//! The only loop, and the owner of all mutable state.
//!
//! In: what is to be watched. Out: reports, and snapshots for HTTP. Events, the kernel's counters and resolved names come
//! together here and nowhere else; `run`, `attach` and `daemon` differ only in what ends the loop. It waits for
//! nobody: symbols are resolved on another thread, requests are answered from snapshots.

mod assembly;
mod hold;
mod images;
mod names;
mod processes;
mod unwinding;

use crate::{
    export::{
        http::Source,
        report::Report,
        series::{Limits, SeriesBook},
        snapshot::Snapshot,
    },
    kernel::{Kernel, KernelError, Settings, attach::ImageNumber, clock::monotonic_ns, event::Event, ring::EventRing},
    live::{Live, StackKey},
    self_metrics::{MapFill, SelfMetrics},
    targets::{self, plan::ProbePlan, processes::ProcessImage},
};
use anyhow::Context;
use images::{Image, Images};
use leakmon_ebpf::abi::{FOLLOW, HOLD, Loss, TargetId};
use names::Names;
use processes::Processes;
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use unwinding::Unwinding;

/// How often the counters are read while nothing is published.
const TICK: Duration = Duration::from_millis(250);

/// A sweep visits every live task, so the next one waits at least this many times as long as the last one took: it never
/// takes more than half a percent of a processor.
const SWEEP_REST: u32 = 200;

/// How long an attach waits for unwind tables; what has none by then is walked as far as is known.
const TABLES_WAIT: Duration = Duration::from_secs(10);

/// How long the last report waits for names; what is not resolved by then is shown by image and offset.
const NAMES_WAIT: Duration = Duration::from_secs(60);

/// Names of [`Loss::ALL`] in `leakmon_events_dropped_total`.
const LOSS_NAMES: [&str; Loss::ALL.len()] = [
    "ring_full",
    "live_full",
    "stacks_full",
    "counts_full",
    "targets_full",
    "scratch_busy",
    "walk_frame_pointer",
    "walk_bad_read",
    "walk_too_deep",
    "walk_no_table",
    "walk_unsupported",
];

/// Watches images and processes.
pub struct Observer {
    kernel: Kernel,
    ring: EventRing,
    live: Live,
    images: Images,
    processes: Processes,
    names: Names,
    unwinding: Unwinding,
    publisher: Option<Publisher>,
    began_ns: u64,
    events: [u64; Event::KINDS.len()],
    next_sweep: Instant,
    /// Processes that stand at their entry point until their tables are loaded.
    held: Vec<TargetId>,
}

/// Where snapshots go.
struct Publisher {
    source: Source,
    book: SeriesBook,
    interval: Duration,
}

impl Observer {
    /// Loads the BPF programs; nothing is watched yet. `hide` is added to the patterns of functions that are never the culprit.
    ///
    /// # Errors
    /// Where this host can't be probed, or the symbol thread can't be started.
    pub fn new(settings: Settings, hide: &[String]) -> anyhow::Result<Self> {
        let (kernel, ring) = Kernel::load(settings)?;
        Ok(Self {
            kernel,
            ring,
            live: Live::default(),
            images: Images::default(),
            processes: Processes::default(),
            names: Names::new(hide)?,
            unwinding: Unwinding::new()?,
            publisher: None,
            began_ns: monotonic_ns(),
            events: [0; Event::KINDS.len()],
            next_sweep: Instant::now(),
            held: Vec::new(),
        })
    }

    /// Attaches an image. `every_process` makes all its processes targets, not only the watched ones.
    ///
    /// # Errors
    /// Where there is no room, or none of its sites can be attached.
    pub fn add_image(&mut self, plan: ProbePlan, file: File, every_process: bool) -> anyhow::Result<()> {
        let path = plan.path.display().to_string();
        let number = self
            .images
            .next_number()
            .with_context(|| format!("{path}: too many images are watched"))?;
        let attached = self
            .kernel
            .attach(&plan, &file, ImageNumber { number, every_process })?;
        if attached.sites.is_empty() {
            let reason = attached
                .refused
                .first()
                .map_or("it has no probe sites", |(_, reason)| reason);
            return Err(KernelError::NoSite {
                path,
                reason: reason.to_owned(),
            }
            .into());
        }
        for (index, reason) in &attached.refused {
            tracing::warn!("{path}: site {index} is not attached: {reason}");
        }
        self.images
            .add(Image::new(plan, file, attached).with_context(|| format!("{path}: can't be read"))?);
        Ok(())
    }

    /// Watches executables with all their processes, and processes by number. What can't be watched is reported.
    ///
    /// # Errors
    /// The first reason, where nothing at all can be watched.
    pub async fn watch_all(&mut self, exes: &[PathBuf], tgids: &[u32]) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for exe in exes {
            if let Err(error) = self.watch_executable(exe).await {
                failures.push(error);
            }
        }
        for tgid in tgids {
            if let Err(error) = self.watch_process(*tgid).await {
                self.processes.refuse(*tgid, &error);
                failures.push(error);
            }
        }
        if failures.len() == exes.len() + tgids.len()
            && let Some(first) = failures.into_iter().next()
        {
            return Err(first);
        }
        Ok(())
    }

    async fn watch_executable(&mut self, exe: &Path) -> anyhow::Result<()> {
        let plan = targets::analyse(exe).inspect_err(|error| tracing::warn!("{error}"))?;
        let file = File::open(exe).with_context(|| format!("{}: can't be read", exe.display()))?;
        let (device, inode) = (plan.image.device, plan.image.inode);
        for tgid in targets::processes::tgids().unwrap_or_default() {
            // One that vanishes, or that may not be looked at, is not ours.
            if ProcessImage::open(tgid).is_ok_and(|image| (image.device, image.inode) == (device, inode)) {
                self.begin(tgid);
            }
        }
        self.prepare().await;
        self.add_image(plan, file, true)
    }

    async fn watch_process(&mut self, tgid: u32) -> anyhow::Result<()> {
        let image = ProcessImage::open(tgid)?;
        if self.images.of_file(image.device, image.inode).is_none() {
            let mut plan = targets::analyse(Path::new(&format!("/proc/self/fd/{}", image.file.as_raw_fd())))
                .map_err(|error| error.of_process(tgid, &image.path))?;
            plan.path = image.path;
            self.begin(tgid);
            self.prepare().await;
            self.add_image(plan, image.file, false)?;
        }
        self.kernel.watch(tgid, 0)?;
        self.begin(tgid);
        Ok(())
    }

    /// Waits, within a bound, until the unwind tables of all known mappings are loaded, so that the first stacks are whole.
    async fn prepare(&mut self) {
        let ready = async {
            while !self.unwinding.is_complete() {
                if let Some(finished) = self.unwinding.built().await {
                    self.unwinding.place(finished, &mut self.kernel);
                }
            }
        };
        if timeout(TABLES_WAIT, ready).await.is_err() {
            tracing::warn!("unwind tables take long: the first stacks may be cut short");
        }
    }

    /// Attaches the probe by which [`Self::watch_children`] holds processes of an image at their entry point. It goes first:
    /// links are closed in this order, so a leakmon that is killed leaves nobody held.
    ///
    /// # Errors
    /// Where the kernel refuses it.
    pub fn hold_at_entry(&mut self, file: &File, file_offset: u64) -> Result<(), KernelError> {
        self.kernel.attach_entry(file, file_offset)
    }

    /// Makes a running process a target now, so that it is shown before its first hit.
    fn begin(&mut self, tgid: u32) {
        let now_ns = monotonic_ns();
        if self.kernel.target(tgid).is_some() {
            return;
        }
        match self.kernel.begin_target(tgid, now_ns) {
            Ok(target) => self.take_event(&Event::Target {
                target,
                time_ns: now_ns,
            }),
            Err(error) => tracing::warn!("process {tgid} can't be followed: {error}"),
        }
    }

    /// Probe sites that are attached.
    #[must_use]
    pub fn attached_sites(&self) -> usize {
        self.kernel.attached_sites()
    }

    /// Watches what `spawn` starts, with its descendants. Each process of a known image is held at its entry point until
    /// its unwind tables are loaded.
    ///
    /// # Errors
    /// Where too many processes are watched already, or `spawn` fails.
    pub fn watch_children<T>(&mut self, spawn: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        // The programs see the fork of this very process, so the child is watched before it exists.
        let own_tgid = std::process::id();
        self.kernel.watch(own_tgid, FOLLOW | HOLD)?;
        let spawned = spawn();
        self.kernel.unwatch(own_tgid);
        spawned
    }

    /// Publishes a snapshot every `interval` while [`Self::observe`] runs, and forgets what has exited.
    pub fn publish_to(&mut self, source: Source, interval: Duration) {
        self.publisher = Some(Publisher {
            source,
            book: SeriesBook::new(Limits::default()),
            interval,
        });
    }

    /// Runs the loop until `until` is done, or until all watched processes have ended where `until_all_gone` says so.
    /// `None` in the latter case.
    pub async fn observe<T>(&mut self, until_all_gone: bool, until: impl Future<Output = T>) -> Option<T> {
        let mut until = pin!(until);
        let mut tick = interval(self.publisher.as_ref().map_or(TICK, |publisher| publisher.interval));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                outcome = &mut until => return Some(outcome),
                () = self.names.replied() => {}
                finished = self.unwinding.built() => {
                    if let Some(finished) = finished {
                        self.unwinding.place(finished, &mut self.kernel);
                    }
                }
                ready = self.ring.readable() => {
                    if ready.is_ok() {
                        self.drain();
                    }
                }
                _ = tick.tick() => {
                    self.tick();
                    self.publish();
                }
            }
            self.let_go();
            if until_all_gone && self.live.targets().all(|(_, target)| target.exited_ns.is_some()) {
                return None;
            }
        }
    }

    /// Lets held processes go once their tables are there.
    fn let_go(&mut self) {
        if self.held.is_empty() || !self.unwinding.is_complete() {
            return;
        }
        for target in self.held.drain(..) {
            hold::let_go(target.tgid());
        }
    }

    /// Reads what is in the ring now. What comes meanwhile waits for the next turn.
    fn drain(&mut self) {
        let mut events = Vec::new();
        self.ring.drain(|event| events.push(event));
        for event in events {
            self.take_event(&event);
        }
    }

    fn take_event(&mut self, event: &Event) {
        self.events[event.kind_index()] += 1;
        self.live.apply(event);
        match *event {
            Event::Target { target, .. }
            | Event::Exec {
                target: Some(target), ..
            } => {
                self.processes.see(target, &self.images);
                self.names.see_target(target);
                self.unwinding.see(target, &mut self.kernel);
            }
            Event::Stack {
                target, stack, cookie, ..
            } => {
                let stored = self.kernel.stack(stack);
                let key = StackKey { target, stack };
                self.names
                    .want(key, stored.as_ref(), self.images.of_cookie(cookie), cookie);
            }
            _ => {}
        }
    }

    /// Reads the kernel's counters; sweeps where it is time.
    fn tick(&mut self) {
        self.drain();
        let sweep = if Instant::now() >= self.next_sweep {
            self.sweep()
        } else {
            None
        };
        self.read(sweep);
    }

    fn sweep(&mut self) -> Option<u64> {
        let began = Instant::now();
        let sweep = self
            .kernel
            .sweep()
            .inspect_err(|error| tracing::warn!("ages can't be known: {error}"))
            .ok();
        self.next_sweep = Instant::now() + began.elapsed() * SWEEP_REST;
        sweep
    }

    fn read(&mut self, sweep: Option<u64>) {
        let now_ns = monotonic_ns();
        self.live.read(&self.kernel.counts(), sweep, now_ns);
        let targets: Vec<TargetId> = self.live.targets().map(|(target, _)| target).collect();
        for target in targets {
            if let Some(totals) = self.kernel.totals(target) {
                self.live.set_totals(target, totals);
            }
            // The event may have been lost; the kernel's table is the truth.
            if self
                .kernel
                .target(target.tgid())
                .is_none_or(|entry| entry.target != target.0)
            {
                self.live.exited(target, now_ns);
            }
        }
        let missing: Vec<_> = self
            .live
            .stacks()
            .filter(|(key, _)| !self.names.knows(*key))
            .map(|(key, count)| (key, count.cookie))
            .collect();
        for (key, cookie) in missing {
            self.processes.see(key.target, &self.images);
            let stored = self.kernel.stack(key.stack);
            self.names
                .want(key, stored.as_ref(), self.images.of_cookie(cookie), cookie);
        }
    }

    /// Takes the last numbers and waits, within a bound, until all stacks have names.
    ///
    /// # Errors
    /// None at present; a name that can't be known is no error.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        // A bounded number of turns: a target that runs on can fill the ring as fast as it is read.
        for _ in 0..64 {
            let before: u64 = self.events.iter().sum();
            self.drain();
            if self.events.iter().sum::<u64>() == before {
                break;
            }
        }
        let sweep = self.sweep();
        self.read(sweep);
        let all_named = async {
            while self.names.pending() > 0 {
                self.names.replied().await;
            }
        };
        if timeout(NAMES_WAIT, all_named).await.is_err() {
            tracing::warn!(
                "{} stacks have no names yet and are shown by image and offset",
                self.names.pending()
            );
        }
        Ok(())
    }

    /// What is known now.
    #[must_use]
    pub fn report(&self) -> Report {
        assembly::Assembly {
            live: &self.live,
            images: &self.images,
            processes: &self.processes,
            names: &self.names,
            loss: self.kernel.loss(),
            began_ns: self.began_ns,
            now_ns: monotonic_ns(),
        }
        .report()
    }

    /// Ends the observation; the probes stay until the returned handle goes.
    #[must_use]
    pub fn into_kernel(mut self) -> Kernel {
        // The probes outlive this process by moments: they must hold nobody then.
        self.kernel.unwatch_all();
        for target in self.held.drain(..) {
            hold::let_go(target.tgid());
        }
        self.kernel
    }

    fn publish(&mut self) {
        if self.publisher.is_none() {
            return;
        }
        let report = self.report();
        let own = self.self_metrics(&report);
        let Some(publisher) = &mut self.publisher else {
            return;
        };
        let series = publisher.book.observe(&report);
        let ready = self.kernel.attached_sites() > 0;
        publisher
            .source
            .snapshot
            .store(Arc::new(Snapshot::new(report, series, own, ready)));
        publisher.source.heartbeat.beat();
        self.forget_exited();
    }

    /// Drops the targets that the snapshot just published shows as exited.
    fn forget_exited(&mut self) {
        let gone: Vec<TargetId> = self
            .live
            .targets()
            .filter(|(_, target)| target.exited_ns.is_some())
            .map(|(target, _)| target)
            .collect();
        if gone.is_empty() {
            return;
        }
        if let Err(error) = self.kernel.forget(&gone) {
            tracing::warn!("tasks of ended processes can't be dropped: {error}");
        }
        for target in gone {
            self.live.forget(target);
            self.processes.forget(target);
            self.names.forget(target);
            self.unwinding.forget(target);
        }
    }

    fn self_metrics(&self, report: &Report) -> SelfMetrics {
        let live: u64 = report.targets.iter().map(|target| target.task.live).sum();
        let entries = |map: &str| match map {
            "live" => live,
            "counts" => self.live.stacks().count() as u64,
            "stacks" => self.names.known_stacks(),
            _ => self.live.targets().count() as u64,
        };
        let fill = |(map, capacity): (&'static str, u32)| MapFill {
            map,
            entries: entries(map),
            capacity: u64::from(capacity),
        };
        let statuses = ["attached", "partial", "paused", "unsupported"];
        let with_status = |word: &str| {
            report
                .targets
                .iter()
                .filter(|target| target.status.as_str() == word)
                .count() as u64
        };
        let slow_sites: u64 = self.images.iter().map(Image::attached_slow).sum();
        SelfMetrics {
            events: Event::KINDS.into_iter().zip(self.events).collect(),
            events_dropped: LOSS_NAMES.into_iter().zip(self.kernel.loss()).collect(),
            maps: self.kernel.capacities().map(fill).to_vec(),
            targets: statuses.into_iter().map(|word| (word, with_status(word))).collect(),
            cheap_sites: self.kernel.attached_sites() as u64 - slow_sites,
            slow_sites,
        }
    }
}
