//! The only loop, and the owner of all mutable state.
//!
//! In: what is to be watched. Out: reports, and snapshots for HTTP. Events, the kernel's counters and resolved names come
//! together here and nowhere else; `run`, `attach` and `daemon` differ only in what ends the loop. It waits for
//! nobody: symbols are resolved on another thread, requests are answered from snapshots.

mod arrivals;
mod assembly;
mod discovery;
mod first_sight;
mod hold;
mod images;
mod inspection;
mod judgement;
mod names;
mod pausing;
mod processes;
mod proof;
mod publication;
mod restart;
mod threads;
mod timeline;
mod unwinding;
mod watching;

pub use inspection::InspectionSettings;
pub use watching::Watchable;
pub(crate) use watching::plan_of_process;

use crate::{
    analysis::Analyst,
    export::report::Report,
    kernel::{
        Kernel, Settings,
        clock::{monotonic_ns, thread_cpu_time},
        detach,
        event::{Event, Proof},
        pins::Pins,
        recording::Recorder,
        ring::EventRing,
    },
    live::{Live, StackKey, verdict::Verdicts},
    self_metrics::Configured,
    supervision::Pulse,
};
use anyhow::Context;
use arrivals::Arrivals;
use first_sight::FirstSight;
use images::Images;
use inspection::Inspection;
use judgement::Judgement;
use leakmon_ebpf::abi::TargetId;
use names::Names;
use pausing::Resting;
use processes::Processes;
use proof::Proofs;
use publication::Publisher;
use std::{
    path::Path,
    pin::pin,
    time::{Duration, SystemTime},
};
use threads::EarlierThreads;
use timeline::Timeline;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use unwinding::{Finished, Unwinding};

/// How often the counters are read while nothing is published.
const TICK: Duration = Duration::from_millis(250);

/// A sweep visits every live task, so the next one waits at least this many times as long as the processor time that the last one
/// took: it never takes more than half a percent of a processor.
const SWEEP_REST: u32 = 200;

/// At first verdicts are waited for, which want a sweep a second: two percent, for this long.
const SWEEP_REST_AT_FIRST: u32 = 50;
const AT_FIRST: Duration = Duration::from_secs(120);

/// How long the last report waits for names; what is not resolved by then is shown by image and offset.
const NAMES_WAIT: Duration = Duration::from_secs(60);

/// Watches images and processes.
pub struct Observer {
    /// Has untrusted files read.
    analyst: Analyst,
    kernel: Kernel,
    ring: EventRing,
    live: Live,
    verdicts: Verdicts,
    images: Images,
    processes: Processes,
    names: Names,
    unwinding: Unwinding,
    earlier_threads: EarlierThreads,
    proofs: Proofs,
    resting: Resting,
    inspection: Inspection,
    arrivals: Arrivals,
    judgement: Judgement,
    publisher: Option<Publisher>,
    pulse: Option<Pulse>,
    timeline: Option<Timeline>,
    first_sight: Option<FirstSight>,
    configured: Configured,
    began_ns: u64,
    events: [u64; Event::KINDS.len()],
    next_sweep: Instant,
    /// Processes that stand at their entry point until their tables are loaded, each with the time it has waited since.
    held: Vec<(TargetId, Instant)>,
    /// Events that had been dropped when held processes were last looked for.
    dropped_events: u64,
}

impl Observer {
    /// Loads the BPF programs; nothing is watched yet. `hide` is added to the patterns of functions that are never the culprit;
    /// `analyst` has the files of targets read. With `pins`, what is watched and counted outlives this process.
    ///
    /// # Errors
    /// Where this host can't be probed, or the symbol thread can't be started.
    pub fn new(
        settings: Settings,
        inspection: InspectionSettings,
        hide: &[String],
        analyst: Analyst,
        pins: Option<Pins>,
    ) -> anyhow::Result<Self> {
        // What the user got wrong comes before what the host lacks.
        let names = Names::new(hide, analyst.clone())?;
        let (kernel, ring) = Kernel::load(settings, pins)?;
        Ok(Self {
            kernel,
            ring,
            live: Live::default(),
            verdicts: Verdicts::default(),
            images: Images::default(),
            processes: Processes::default(),
            names,
            unwinding: Unwinding::new(analyst.clone())?,
            analyst,
            earlier_threads: EarlierThreads::default(),
            proofs: Proofs::default(),
            resting: Resting::default(),
            inspection: Inspection::new(inspection)?,
            arrivals: Arrivals::default(),
            judgement: Judgement::default(),
            publisher: None,
            pulse: None,
            timeline: None,
            first_sight: None,
            configured: Configured {
                successful: true,
                at: SystemTime::now(),
            },
            began_ns: monotonic_ns(),
            events: [0; Event::KINDS.len()],
            next_sweep: Instant::now(),
            held: Vec::new(),
            dropped_events: 0,
        })
    }

    /// Who has the files of targets read.
    #[must_use]
    pub const fn analyst(&self) -> &Analyst {
        &self.analyst
    }

    /// Takes patterns of code whose callsites are expected to grow: they are never called a leak.
    ///
    /// # Errors
    /// A pattern makes no sense, or there are too many.
    pub fn allow(&mut self, patterns: &[String]) -> anyhow::Result<()> {
        self.names.allow(patterns)
    }

    /// Records what the kernel tells from now on, for a replay.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn record(&mut self, path: &Path) -> anyhow::Result<()> {
        let recorder = Recorder::create(path).with_context(|| format!("{}: can't be written", path.display()))?;
        self.ring.record(recorder);
        Ok(())
    }

    /// Runs the loop until `until` is done, or until all watched processes have ended where `until_all_gone` says so.
    /// `None` in the latter case.
    pub async fn observe<T>(&mut self, until_all_gone: bool, until: impl Future<Output = T>) -> Option<T> {
        let mut until = pin!(until);
        let mut tick = interval(self.publisher.as_ref().map_or(TICK, |publisher| publisher.interval));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat = interval(self.pulse.as_ref().map_or(TICK, Pulse::interval));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                outcome = &mut until => return Some(outcome),
                _ = beat.tick() => self.pulse.iter().for_each(Pulse::beat),
                () = self.names.replied() => {}
                reading = self.inspection.replied() => self.take_reading(reading),
                finished = self.unwinding.built() => self.place_table(finished),
                found = self.arrivals.found() => self.take_found(found),
                answer = FirstSight::answered(&mut self.first_sight) => self.take_answer(answer),
                _ = tick.tick() => {
                    self.tick();
                    self.publish();
                }
                ready = self.ring.readable() => {
                    if ready.is_ok() {
                        self.drain();
                    }
                }
            }
            self.let_go();
            self.attach_arrived();
            if until_all_gone && self.live.targets().all(|(_, target)| target.exited_ns.is_some()) {
                return None;
            }
        }
    }

    fn place_table(&mut self, finished: Option<Finished>) {
        if let Some(finished) = finished {
            self.unwinding.place(finished, &mut self.kernel);
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
        tracing::trace!(?event, "event");
        let Some(event) = self.wanted_part(*event) else {
            return;
        };
        self.live.apply(&event);
        if let Some(timeline) = &mut self.timeline {
            timeline.take(&event);
        }
        if let Event::Exec {
            target: Some(target),
            before: Some(before),
            ..
        } = event
        {
            self.processes.executes(before, target);
        }
        match event {
            Event::Target { target, .. }
            | Event::Exec {
                target: Some(target), ..
            } => {
                // One that is held at its exec is looked at once it is known to be of interest.
                if self.first_sight.is_none() {
                    self.names.see_target(target);
                    self.unwinding.see(target, &mut self.kernel);
                }
                self.earlier_threads.see(target, &mut self.kernel);
                self.make_sure_of(target);
                self.wake_for(target);
            }
            Event::Proof(proof) => self.judge(&proof),
            Event::Miss { target } => self.unwinding.see(target, &mut self.kernel),
            Event::Held { target, at_exec: true } => self.stands_at_exec(target),
            Event::Held { target, .. } => {
                self.names.see_target(target);
                self.unwinding.see(target, &mut self.kernel);
                self.held.push((target, Instant::now()));
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

    /// Compares what an ending task showed with the plan; a site that has failed is detached, and its image is followed in part.
    fn judge(&mut self, proof: &Proof) {
        let Some(image) = self.images.of_cookie(proof.end) else {
            return;
        };
        for failure in self.proofs.take(proof, &image.plan) {
            let (number, index) = (failure.site.image(), failure.site.site() as usize);
            tracing::warn!("{}", failure.reason);
            self.images.drop_site(failure.site, failure.reason);
            if let Some(links) = self.kernel.take_site(number, index) {
                let _in_its_time = detach::on_thread(links);
            }
        }
    }

    /// Reads the kernel's counters; sweeps where it is time.
    fn tick(&mut self) {
        self.drain();
        self.let_go_after_loss();
        self.earlier_threads.look_again(&mut self.kernel);
        self.forget_bystanders();
        // A sweep walks the whole table, be it empty.
        let is_idle = self.live.targets().next().is_none() && !self.kernel.is_purging();
        let sweep = if !is_idle && Instant::now() >= self.next_sweep {
            self.sweep()
        } else {
            None
        };
        self.read(sweep);
        self.rest();
        self.inspect();
        self.reconcile();
    }

    fn sweep(&mut self) -> Option<u64> {
        // Processor time: on a busy machine a short sweep may take long by the clock, and ages would wait for minutes.
        let began = thread_cpu_time();
        let sweep = self
            .kernel
            .sweep()
            .inspect_err(|error| tracing::warn!("ages can't be known: {error}"))
            .ok();
        let watched = Duration::from_nanos(monotonic_ns().saturating_sub(self.began_ns));
        let rest = if watched < AT_FIRST {
            SWEEP_REST_AT_FIRST
        } else {
            SWEEP_REST
        };
        let took = thread_cpu_time().saturating_sub(began);
        tracing::debug!(?took, "swept");
        self.next_sweep = Instant::now() + took * rest;
        sweep
    }

    fn read(&mut self, sweep: Option<u64>) {
        let now_ns = monotonic_ns();
        self.drop_unwanted();
        let mut counts = self.kernel.counts();
        self.keep_wanted(&mut counts);
        let ages = sweep.map_or_else(Vec::new, |_| self.kernel.ages());
        if let Some(recorder) = self.ring.recorder() {
            recorder.reading(&counts, &ages, sweep, now_ns);
        }
        self.live.read(&counts, &ages, sweep, now_ns);
        let targets: Vec<TargetId> = self.live.targets().map(|(target, _)| target).collect();
        for target in targets {
            if let Some(totals) = self.kernel.totals(target) {
                self.live.set_totals(target, totals);
            }
            // The event may have been lost; the kernel's table is the truth.
            match self.kernel.target(target.tgid()) {
                Some(entry) if entry.target == target.0 => self.live.set_paused(target, entry.paused_until_ns),
                _ => self.live.exited(target, now_ns),
            }
        }
        // Ages are known right after a sweep only.
        if sweep.is_some() {
            self.judge_callsites(now_ns);
        }
        self.want_names();
    }

    /// Asks for the names of stacks that have none, which the symbol thread may have refused before.
    fn want_names(&mut self) {
        let missing: Vec<_> = self
            .live
            .stacks()
            .filter(|(key, _)| !self.names.knows(*key))
            .map(|(key, count)| (key, count.cookie))
            .collect();
        for (key, cookie) in missing {
            let stored = self.kernel.stack(key.stack);
            self.names
                .want(key, stored.as_ref(), self.images.of_cookie(cookie), cookie);
        }
    }

    fn judge_callsites(&mut self, now_ns: u64) {
        let callsite_of = |key| self.names.of(key).map(|names| names.callsite.0);
        self.verdicts.observe(&self.live, callsite_of, now_ns);
    }

    /// Takes the last numbers and waits, within a bound, until all stacks have names.
    ///
    /// # Errors
    /// None at present; a name that can't be known is no error.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        self.stop_holding();
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
        self.last_readings().await;
        let all_named = async {
            while self.names.pending() > 0 {
                self.names.replied().await;
                if self.names.pending() == 0 {
                    // There were more than the queue holds: the rest.
                    self.want_names();
                }
            }
        };
        if timeout(NAMES_WAIT, all_named).await.is_err() {
            tracing::warn!(
                "{} stacks have no names yet and are shown by image and offset",
                self.names.pending()
            );
        }
        // Stacks that have just got names join their callsites.
        self.judge_callsites(monotonic_ns());
        Ok(())
    }

    /// What is known now.
    #[must_use]
    pub fn report(&self) -> Report {
        assembly::Assembly {
            live: &self.live,
            verdicts: &self.verdicts,
            images: &self.images,
            processes: &self.processes,
            names: &self.names,
            first_sight: self.first_sight.as_ref(),
            inspection: &self.inspection,
            loss: self.kernel.loss(),
            images_full: self.arrivals.images_refused,
            processes_unjudged: self.judgement.unjudged,
            began_ns: self.began_ns,
            now_ns: monotonic_ns(),
        }
        .report()
    }

    /// Whether what is watched and counted outlives this process.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.kernel.is_pinned()
    }

    /// Ends the observation; the probes stay until the returned handle goes, and longer where they are pinned.
    #[must_use]
    pub fn into_kernel(mut self) -> Kernel {
        if self.kernel.is_pinned() {
            return self.kernel;
        }
        // The probes outlive this process by moments: they must hold nobody then.
        self.kernel.unwatch_all();
        self.stop_holding();
        self.kernel
    }
}
