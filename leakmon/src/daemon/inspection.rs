//! What is read of the targets' memory, and when.
//!
//! In: targets and the tasks that the probes count. Out: states of live tasks for `live`; for the report what a process
//! holds, which of its tasks are older than the attach, and where memory and probes disagree. The reading is done on a
//! thread of its own ([`crate::memory::service`]); nobody waits for it but the first and the last report, within a bound.

mod states;

pub(super) use states::states_of;

use super::{Observer, images::Image};
use crate::{
    export::census::{CensusReport, Disagreement},
    kernel::clock::monotonic_ns,
    live::StackKey,
    memory::{
        census::{Limits, Tally},
        layout::Layouts,
        service::{Comparison, Job, MemoryService, Outcome, Reply, Subject},
    },
};
use anyhow::Context;
use leakmon_ebpf::abi::TargetId;
use std::{collections::HashMap, time::Duration};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep, timeout},
};

/// A census of a target is taken at most this often …
const CENSUS_INTERVAL: Duration = Duration::from_secs(30);
/// … and so seldom that no more than this is read in a second: a hundredth of what memory gives.
const BYTES_PER_SECOND_MAX: u64 = 32 << 20;
/// How long one census may take.
const CENSUS_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the first and the last report wait for readings.
const READINGS_WAIT: Duration = Duration::from_secs(15);
/// A task that was born later is not called gone: it may not have been put into its runtime's list yet.
const SETTLED_NS: u64 = 1_000_000_000;
/// Processes of which something is kept; as many as `live` remembers.
const TARGETS_MAX: usize = crate::live::TARGETS_MAX;

/// How memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InspectionSettings {
    /// Whether a census is taken.
    pub census: bool,
    /// How long a task must be without a waker to be called unwakeable.
    pub confirm: Duration,
}

/// Everything that was read.
pub(super) struct Inspection {
    settings: InspectionSettings,
    service: MemoryService,
    replies: Receiver<Reply>,
    /// Jobs whose outcome is due.
    due: usize,
    targets: HashMap<TargetId, Inspected>,
    /// The stacks of the states that are due, by their group.
    groups: Vec<StackKey>,
    /// How many of the outcomes that are due are states.
    states_due: usize,
    next_states: Instant,
    /// Whether the last states had tasks that seem unwakeable and are not confirmed.
    unconfirmed: bool,
    /// Bytes of targets' memory read so far.
    pub(super) bytes_read: u64,
    /// How long the last census took.
    pub(super) census_took: Duration,
}

/// What was read of one target.
#[derive(Default)]
pub(super) struct Inspected {
    /// It ran when it was attached to: what is not counted then is older.
    pub(super) ran_before: bool,
    /// A census or a recount is under way.
    busy: bool,
    next: Option<Instant>,
    layouts: Option<Layouts>,
    /// The last census.
    pub(super) census: Option<CensusReport>,
    /// The tasks that are older than the attach, as they were found and as they are; by type, as in `layouts`.
    pub(super) older: Option<OlderTasks>,
    disagreement: Disagreement,
    /// Why its memory can't be read.
    pub(super) refusal: Option<String>,
}

/// The tasks of a target that are older than the attach.
pub(super) struct OlderTasks {
    /// Index in [`crate::targets::plan::ProbePlan::task_types`], found at the attach, and now.
    pub(super) types: Vec<(usize, u64, Tally)>,
    /// Ends of uncounted tasks when they were counted last.
    unmatched_ends: u64,
}

impl OlderTasks {
    pub(super) fn found(&self) -> u64 {
        self.types.iter().map(|(_, found, _)| found).sum()
    }

    pub(super) fn live(&self) -> u64 {
        self.types.iter().map(|(_, _, tally)| tally.alive()).sum()
    }
}

impl Inspection {
    pub(super) fn new(settings: InspectionSettings) -> anyhow::Result<Self> {
        let (service, replies) = MemoryService::start().context("the thread that reads memory can't be started")?;
        Ok(Self {
            settings,
            service,
            replies,
            due: 0,
            targets: HashMap::new(),
            groups: Vec::new(),
            states_due: 0,
            next_states: Instant::now(),
            unconfirmed: false,
            bytes_read: 0,
            census_took: Duration::ZERO,
        })
    }

    /// What was read of a target.
    pub(super) fn of(&self, target: TargetId) -> Option<&Inspected> {
        self.targets.get(&target)
    }

    /// Jobs that found no room.
    pub(super) const fn refused(&self) -> u64 {
        self.service.refused()
    }

    /// Notes that a process ran before it was attached to.
    pub(super) fn see_running(&mut self, target: TargetId) {
        if self.targets.len() < TARGETS_MAX {
            self.targets.entry(target).or_default().ran_before = true;
        }
    }

    pub(super) fn forget(&mut self, target: TargetId) {
        if self.targets.remove(&target).is_some() {
            self.service.submit(Job::Forget(target));
        }
    }

    /// Waits for one outcome; for ever where none is due. Safe to drop half-way.
    pub(super) async fn replied(&mut self) -> Reply {
        loop {
            if self.due == 0 {
                std::future::pending::<()>().await;
            }
            if let Some(reply) = self.replies.recv().await {
                self.due -= 1;
                self.bytes_read += reply.bytes_read;
                return reply;
            }
            // The thread is gone; what it had is not known.
            self.due = 0;
        }
    }

    fn submit(&mut self, job: Job) -> bool {
        let taken = self.service.submit(job);
        self.due += usize::from(taken);
        taken
    }

    fn limits(&self) -> Limits {
        Limits {
            bytes_max: u64::MAX,
            time_max: CENSUS_TIME_MAX,
            // The next reading confirms; the thread has other processes to read meanwhile.
            confirm: Duration::ZERO,
        }
    }
}

impl Inspected {
    /// The census as the report shows it.
    pub(super) fn report(&self) -> Option<CensusReport> {
        let mut report = self.census.clone()?;
        report.older = self.older.as_ref().map(|older| crate::export::census::OlderCounts {
            found: older.found(),
            live: older.live(),
        });
        report.disagreement = Some(self.disagreement);
        if report.reason.is_none() && self.disagreement != Disagreement::default() {
            report.reason = Some(sentence(self.disagreement));
        }
        Some(report)
    }

    fn recounted(&mut self, tallies: &[Tally]) {
        let (Some(layouts), Some(older)) = (&self.layouts, &mut self.older) else {
            return;
        };
        for (index, _, now) in &mut older.types {
            let tally = layouts
                .types()
                .iter()
                .zip(tallies)
                .find(|(layout, _)| layout.task_type == *index);
            *now = tally.map(|(_, tally)| *tally).unwrap_or_default();
        }
    }
}

impl Observer {
    /// Starts what is due: states, censuses, recounts of older tasks.
    pub(super) fn inspect(&mut self) {
        if Instant::now() >= self.inspection.next_states && self.inspection.states_due == 0 {
            self.ask_states();
        }
        let targets: Vec<(TargetId, u64)> = self
            .live
            .targets()
            .filter(|(_, target)| target.exited_ns.is_none())
            .map(|(id, target)| (id, target.totals.unmatched_ends))
            .collect();
        for (target, unmatched_ends) in targets {
            self.inspect_target(target, unmatched_ends);
        }
    }

    fn inspect_target(&mut self, target: TargetId, unmatched_ends: u64) {
        if !self.inspection.settings.census {
            return;
        }
        let now = Instant::now();
        let due = self.inspection.targets.get(&target).is_none_or(|known| {
            let ended = known
                .older
                .as_ref()
                .is_some_and(|older| older.unmatched_ends != unmatched_ends && older.live() > 0);
            !known.busy && (ended || known.next.is_none_or(|next| now >= next))
        });
        if !due || (self.inspection.targets.len() >= TARGETS_MAX && !self.inspection.targets.contains_key(&target)) {
            return;
        }
        let Some(subject) = self.subject(target) else { return };
        let (confirm, limits) = (self.inspection.settings.confirm, self.inspection.limits());
        let known = self.inspection.targets.entry(target).or_default();
        let recount = known.next.is_some_and(|next| now < next);
        known.busy = true;
        if let Some(older) = known.older.as_mut().filter(|_| recount) {
            older.unmatched_ends = unmatched_ends;
        }
        let job = match recount {
            true => Job::Recount(subject, confirm),
            false => Job::Census(subject, limits),
        };
        if !self.inspection.submit(job)
            && let Some(known) = self.inspection.targets.get_mut(&target)
        {
            known.busy = false;
        }
    }

    /// A target and its program; `None` where the program's tasks can't be found in memory, or nothing is known of it yet.
    fn subject(&self, target: TargetId) -> Option<Subject> {
        let program = self.image_of(target)?.program.as_ref().ok()?;
        Some(Subject {
            target,
            program: std::sync::Arc::clone(program),
        })
    }

    fn image_of(&self, target: TargetId) -> Option<&Image> {
        let (device, inode) = self.processes.of(target)?.file?;
        self.images.of_file(device, inode)
    }

    /// Takes the outcome of a job.
    pub(super) fn take_reading(&mut self, reply: Reply) {
        let Reply {
            target,
            outcome,
            bytes_read,
        } = reply;
        match outcome {
            Outcome::States(read) => self.take_states(target, read),
            Outcome::Census(Ok((census, layouts))) => {
                self.inspection.census_took = census.took;
                let plan = self.image_of(target).map(|image| &image.plan);
                let report = plan.map(|plan| CensusReport::new(&census, &layouts, plan));
                let rest = Duration::from_secs(bytes_read / BYTES_PER_SECOND_MAX).max(CENSUS_INTERVAL);
                if let Some(known) = self.inspection.targets.get_mut(&target) {
                    known.census = report;
                    known.layouts = Some(layouts);
                    known.next = Some(Instant::now() + rest);
                    known.refusal = None;
                }
                self.compare(target);
            }
            Outcome::Compared(Ok(comparison)) => self.take_comparison(target, &comparison),
            Outcome::Recounted(Ok(tallies)) => {
                if let Some(known) = self.inspection.targets.get_mut(&target) {
                    known.recounted(&tallies);
                    known.busy = false;
                }
            }
            Outcome::Census(Err(error)) | Outcome::Compared(Err(error)) | Outcome::Recounted(Err(error)) => {
                if let Some(known) = self.inspection.targets.get_mut(&target) {
                    known.busy = false;
                    known.next = Some(Instant::now() + CENSUS_INTERVAL);
                    known.refusal = (!error.is_gone()).then(|| error.to_string());
                }
            }
        }
    }

    /// Compares a census with what the probes count now.
    fn compare(&mut self, target: TargetId) {
        let counted = match self.kernel.live_tasks(target) {
            Ok(counted) => counted,
            Err(error) => {
                tracing::warn!("the census can't be compared with the probes: {error}");
                None
            }
        };
        let subject = self.subject(target);
        let confirm = self.inspection.settings.confirm;
        let Some(known) = self.inspection.targets.get_mut(&target) else {
            return;
        };
        let older = known.ran_before && known.older.is_none();
        let (Some(subject), Some(mut counted)) = (subject, counted) else {
            known.busy = false;
            return;
        };
        counted.retain(is_task);
        let job = Job::Compare {
            subject,
            counted,
            older,
            confirm,
        };
        if !self.inspection.submit(job)
            && let Some(known) = self.inspection.targets.get_mut(&target)
        {
            known.busy = false;
        }
    }

    fn take_comparison(&mut self, target: TargetId, comparison: &Comparison) {
        let settled_ns = monotonic_ns().saturating_sub(SETTLED_NS);
        let gone = comparison.gone.iter().filter(|(_, born_ns)| *born_ns < settled_ns);
        let unseen_ends = gone
            .filter(|(header, born_ns)| self.kernel.is_live(target, *header, *born_ns))
            .count() as u64;
        let unmatched_ends = self.live.targets().find(|(id, _)| *id == target);
        let unmatched_ends = unmatched_ends.map_or(0, |(_, known)| known.totals.unmatched_ends);
        let Some(known) = self.inspection.targets.get_mut(&target) else {
            return;
        };
        known.busy = false;
        let recount = known.older.as_ref().is_some_and(|older| older.live() > 0);
        let before = known.disagreement;
        known.disagreement = Disagreement {
            unseen_births: comparison.unseen_births,
            unseen_ends,
        };
        if known.disagreement != before && known.disagreement != Disagreement::default() {
            tracing::warn!("process {}: {}", target.tgid(), sentence(known.disagreement));
        }
        if let (Some(layouts), false) = (&known.layouts, comparison.older.is_empty()) {
            let types = layouts.types().iter().zip(&comparison.older);
            known.older = Some(OlderTasks {
                types: types
                    .filter(|(_, tally)| tally.alive() > 0)
                    .map(|(layout, tally)| (layout.task_type, tally.alive(), *tally))
                    .collect(),
                unmatched_ends,
            });
        }
        if recount && let Some(subject) = self.subject(target) {
            let job = Job::Recount(subject, self.inspection.settings.confirm);
            let taken = self.inspection.submit(job);
            if let Some(known) = self.inspection.targets.get_mut(&target) {
                known.busy = taken;
            }
        }
    }

    /// Waits, within a bound, for a first census of every target, so that what is older than the attach is known before
    /// anything of it ends.
    pub(super) async fn first_readings(&mut self) {
        self.inspect();
        self.await_readings().await;
    }

    /// Takes the last readings, and waits for them and for their confirmation, within a bound.
    pub(super) async fn last_readings(&mut self) {
        // What is under way is older than what is wanted.
        self.await_readings().await;
        for known in self.inspection.targets.values_mut() {
            known.next = None;
        }
        self.inspection.next_states = Instant::now();
        self.inspect();
        self.await_readings().await;
        if self.inspection.unconfirmed {
            sleep(self.inspection.settings.confirm).await;
            self.inspection.next_states = Instant::now();
            self.inspect();
            self.await_readings().await;
        }
    }

    async fn await_readings(&mut self) {
        let all = async {
            while self.inspection.due > 0 {
                let reply = self.inspection.replied().await;
                self.take_reading(reply);
                self.drain();
            }
        };
        if timeout(READINGS_WAIT, all).await.is_err() {
            tracing::warn!("reading memory takes long: the census is not complete yet");
        }
    }
}

/// What a disagreement says.
fn sentence(disagreement: Disagreement) -> String {
    let Disagreement {
        unseen_births,
        unseen_ends,
    } = disagreement;
    format!(
        "memory and probes disagree: {unseen_births} tasks in memory were born unseen since the attach, and {unseen_ends} that are \
         counted are no longer in memory"
    )
}

/// Threads are counted like tasks, under numbers that are no addresses of a process.
pub(super) const fn is_task((header, _): &(u64, u64)) -> bool {
    *header < 1 << 47
}
