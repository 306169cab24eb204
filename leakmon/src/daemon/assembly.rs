//! The report, from counts, images, processes and names.
//!
//! In: what the observer owns, at one moment. Out: a [`Report`]. It looks nothing up and waits for nothing: a stack whose
//! names are still being resolved is in its target's totals, and in a callsite from the next report on, so that what a
//! callsite has counted never falls.

mod memory;

use super::{
    first_sight::FirstSight,
    images::{Image, Images},
    inspection::Inspection,
    names::{self, Names, StackNames},
    processes::{self, Processes},
};
use crate::{
    export::report::{
        CallsiteReport, EntityCounts, Frame, Location, LossReport, Report, SCHEMA, SiteCounts, StackReport,
        StateCounts, TargetReport, TargetStatus, Verdict,
    },
    live::{
        Live, StackCount, StackKey, States, Target, at_exit,
        verdict::{CallsiteKey, Judgement, Verdicts},
    },
    symbols::{ResolvedFrame, callsite::CallsiteId, names::one_of},
};
use leakmon_ebpf::abi::{Loss, Role, TargetId};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// Everything that a report is made from.
pub(super) struct Assembly<'a> {
    pub(super) live: &'a Live,
    pub(super) verdicts: &'a Verdicts,
    pub(super) images: &'a Images,
    pub(super) processes: &'a Processes,
    pub(super) names: &'a Names,
    pub(super) first_sight: Option<&'a FirstSight>,
    pub(super) inspection: &'a Inspection,
    pub(super) loss: [u64; Loss::ALL.len()],
    pub(super) images_full: u64,
    pub(super) processes_unjudged: u64,
    pub(super) began_ns: u64,
    pub(super) now_ns: u64,
}

/// A stack with all that is known of it.
struct Entry<'a> {
    count: &'a StackCount,
    names: &'a StackNames,
}

/// What a target's stacks come to.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    task: EntityCounts,
    thread: EntityCounts,
}

/// What makes two stacks one callsite, in the order of the list before it is sorted.
type Group = (TargetId, CallsiteId);

impl Assembly<'_> {
    pub(super) fn report(&self) -> Report {
        let mut callsites: Vec<CallsiteReport> = self
            .groups()
            .into_iter()
            .map(|((target, id), entries)| self.callsite(target, id, &entries))
            .map(|callsite| self.with_what_was_left(callsite))
            .chain(self.of_memory())
            .collect();
        let targets = self.targets();
        // A process that is followed only because its parent is has threads, too.
        let shown: BTreeSet<&str> = targets.iter().map(|target| target.id.as_str()).collect();
        callsites.retain(|site| shown.contains(site.target.as_str()));
        callsites.sort_by_key(|site| {
            (
                urgency(site.verdict),
                Reverse(site.live),
                Reverse(site.spawned),
                site.id.clone(),
            )
        });
        Report {
            schema: SCHEMA,
            observed_seconds: seconds(self.now_ns.saturating_sub(self.began_ns)),
            targets,
            callsites,
            loss: self.loss(),
        }
    }

    fn groups(&self) -> BTreeMap<Group, Vec<Entry<'_>>> {
        let mut groups: BTreeMap<Group, Vec<Entry<'_>>> = BTreeMap::new();
        for (key, count) in self.live.stacks() {
            let Some(names) = self.names.of(key) else {
                continue;
            };
            groups
                .entry((key.target, names.callsite))
                .or_default()
                .push(Entry { count, names });
        }
        for entries in groups.values_mut() {
            entries.sort_by_key(|entry| (Reverse(entry.count.live()), Reverse(entry.count.born), entry.names.id));
        }
        groups
    }

    fn callsite(&self, target: TargetId, id: CallsiteId, entries: &[Entry<'_>]) -> CallsiteReport {
        let sum = |field: fn(&StackCount) -> u64| entries.iter().map(|entry| field(entry.count)).sum();
        let first = entries.first();
        let location = first.and_then(|entry| entry.names.location());
        let cookie = first.map(|entry| entry.count.cookie);
        let task_type = cookie
            .and_then(|cookie| self.images.site(cookie)?.1)
            .and_then(|task_type| one_of(&task_type.names));
        let until_ns = self
            .target(target)
            .and_then(|target| target.exited_ns)
            .unwrap_or(self.now_ns);
        let key = CallsiteKey { target, callsite: id.0 };
        let Judgement {
            verdict,
            evidence,
            growth_per_minute,
        } = self.judgement(key, location, task_type.as_deref());
        let oldest = entries.iter().filter_map(|entry| entry.count.oldest_born_ns).min();
        CallsiteReport {
            id: id.to_string(),
            target: target_name(target),
            pid: target.tgid(),
            kind: cookie.map_or("task", names::kind_name),
            live: sum(StackCount::live),
            spawned: sum(|count| count.born),
            ended: sum(|count| count.ended),
            born_before_attach: 0,
            bytes: None,
            oldest_seconds: oldest.map(|born_ns| seconds(until_ns.saturating_sub(born_ns))),
            growth_per_minute,
            verdict,
            evidence,
            states: states(entries),
            task_type,
            location: location.map(place).unwrap_or_default(),
            stacks: entries.iter().map(|entry| stack(entry, until_ns)).collect(),
        }
    }

    /// Adds what the end of its process says of a callsite that nothing worse is known of.
    fn with_what_was_left(&self, mut callsite: CallsiteReport) -> CallsiteReport {
        let ended =
            |(id, target): (TargetId, &Target)| target_name(id) == callsite.target && target.exited_ns.is_some();
        let undecided = callsite.verdict == Verdict::Unknown && callsite.kind != "thread";
        if undecided
            && self.live.targets().any(ended)
            && let Some(evidence) = at_exit::suspicion(callsite.live, callsite.spawned, callsite.ended)
        {
            callsite.verdict = Verdict::Suspect;
            callsite.evidence = Some(evidence);
        }
        callsite
    }

    /// What is thought of a callsite; what the user expects is none to warn of, be it growth or what is left at the end.
    fn judgement(&self, key: CallsiteKey, location: Option<&ResolvedFrame>, task_type: Option<&str>) -> Judgement {
        let judgement = self.verdicts.of(key);
        let function = location.and_then(|frame| frame.function.as_deref());
        let mut names = [function, task_type].into_iter().flatten();
        if !names.any(|name| self.names.is_allowed(name)) {
            return judgement;
        }
        let seen = judgement.evidence.map_or_else(String::new, |seen| format!(" {seen}"));
        Judgement {
            verdict: Verdict::Steady,
            evidence: Some(format!("Allowed by a pattern.{seen}")),
            ..judgement
        }
    }

    fn targets(&self) -> Vec<TargetReport> {
        let mut sums: BTreeMap<TargetId, Sums> = BTreeMap::new();
        for (key, count) in self.live.stacks() {
            let sums = sums.entry(key.target).or_default();
            let sum = if count.cookie.is_thread() {
                &mut sums.thread
            } else {
                &mut sums.task
            };
            sum.spawned += count.born;
            sum.ended += count.ended;
            sum.live += count.live();
        }
        let counted = |target: TargetId| sums.get(&target).copied().unwrap_or_default();
        let mut reports: Vec<TargetReport> = self
            .live
            .targets()
            .filter_map(|(id, target)| self.target_report(id, target, counted(id)))
            .chain(self.processes.refused().iter().map(refused))
            .collect();
        reports.sort_by(|left, right| (left.pid, &left.id).cmp(&(right.pid, &right.id)));
        reports
    }

    /// `None` for a process that is followed only because its parent is, and that runs no known image.
    fn target_report(&self, id: TargetId, target: &Target, sums: Sums) -> Option<TargetReport> {
        let process = self.processes.of(id);
        let image = process
            .and_then(|process| process.file)
            .and_then(|(device, inode)| self.images.of_file(device, inode))
            .or_else(|| self.images.get(self.processes.mapped(id)?))
            .or_else(|| self.image_by_hits(id));
        let Some(image) = image else {
            return self.threads_only(id, target, sums);
        };
        let late = self.first_sight.is_some_and(|sight| sight.is_late(id));
        let shortfall = image.shortfall();
        let ran_before = self.inspection.of(id).is_some_and(|read| read.ran_before);
        let shortfall = shortfall.or_else(|| stray_ends(image, target).filter(|_| !ran_before));
        let shortfall = shortfall.or_else(|| late.then(|| LATE.to_owned()));
        let (status, reason) = self.processes.status(id, target, shortfall, self.now_ns);
        Some(TargetReport {
            id: target_name(id),
            pid: id.tgid(),
            exe: process.map_or_else(|| image.plan.path.display().to_string(), |process| process.exe.clone()),
            build_id: Some(image.plan.image.build_id.clone()).filter(|build_id| !build_id.is_empty()),
            runtime: Some(image.plan.runtime.to_owned()),
            runtime_version: image.plan.runtime_version.clone(),
            status,
            reason,
            sites: SiteCounts {
                spawn: image.attached_of(Role::Birth),
                end: image.attached_of(Role::End) + image.attached_of(Role::Freed),
                slow: image.attached_slow(),
            },
            task: sums.task,
            thread: Some(sums.thread),
            exited: target.exited_ns.is_some(),
            census: self.census(id, target),
            container: process.and_then(|process| process.cgroup.container.clone()),
            pod_uid: process.and_then(|process| process.cgroup.pod_uid.clone()),
            kubernetes: None,
        })
    }

    /// A process without a known runtime that was asked for.
    fn threads_only(&self, id: TargetId, target: &Target, sums: Sums) -> Option<TargetReport> {
        let known = self.processes.threads_only(id)?;
        Some(TargetReport {
            id: target_name(id),
            thread: Some(sums.thread),
            exited: target.exited_ns.is_some(),
            ..refused(known)
        })
    }

    /// The image of a process that had gone before it could be looked at.
    fn image_by_hits(&self, target: TargetId) -> Option<&Image> {
        let of_target = |(key, count): &(StackKey, &StackCount)| key.target == target && !count.cookie.is_thread();
        let (_, count) = self.live.stacks().find(of_target)?;
        self.images.of_cookie(count.cookie)
    }

    fn target(&self, target: TargetId) -> Option<&Target> {
        self.live
            .targets()
            .find_map(|(id, known)| (id == target).then_some(known))
    }

    fn loss(&self) -> LossReport {
        let lost = |reason: Loss| self.loss.get(reason as usize).copied().unwrap_or(0);
        let totals = self.live.totals();
        LossReport {
            events_dropped: lost(Loss::RingFull),
            live_full: lost(Loss::LiveFull),
            counts_full: lost(Loss::CountsFull),
            targets_full: lost(Loss::TargetsFull),
            images_full: self.images_full,
            processes_unjudged: self.processes_unjudged,
            paused: lost(Loss::Paused),
            untracked_ends: totals.untracked_ends,
            stacks_full: lost(Loss::StacksFull) + lost(Loss::ScratchBusy),
            stacks_truncated: Loss::WALKS.into_iter().map(lost).sum(),
            unmatched_ends: totals.unmatched_ends,
            replaced: totals.replaced,
        }
    }
}

/// A target whose every task was born under the probes has no end without a birth: where it has, a birth site is missing.
fn stray_ends(image: &Image, target: &Target) -> Option<String> {
    // What was born uncounted ends uncounted.
    let stray = target.totals.unmatched_ends.saturating_sub(target.totals.untracked);
    (stray > 0 && target.since_ns >= image.attached_ns)
        .then(|| format!("{stray} tasks ended whose birth was not seen: the plan of this binary misses a birth site."))
}

/// Why a target is partial that was not held long enough.
const LATE: &str = "it went on while its program was still being analysed: tasks born before that are not counted";

/// Leaks first, then what may be one, then all others alike.
const fn urgency(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Leak => 0,
        Verdict::Suspect => 1,
        Verdict::Unknown | Verdict::Steady => 2,
    }
}

fn seconds(ns: u64) -> f64 {
    // Milliseconds are as exact as anybody reads them, and keep the report short.
    (ns / 1_000_000) as f64 / 1e3
}

/// `PID-` and the bits of the time of its last exec that the target's number keeps.
fn target_name(target: TargetId) -> String {
    format!("{}-{}", target.tgid(), target.0 >> 22)
}

fn refused(process: &processes::Refused) -> TargetReport {
    TargetReport {
        id: format!("{}-0", process.tgid),
        pid: process.tgid,
        exe: process.exe.clone(),
        build_id: None,
        runtime: None,
        runtime_version: None,
        status: TargetStatus::Unsupported,
        reason: Some(process.reason.clone()),
        sites: SiteCounts::default(),
        task: EntityCounts::default(),
        thread: None,
        exited: false,
        census: None,
        container: process.cgroup.container.clone(),
        pod_uid: process.cgroup.pod_uid.clone(),
        kubernetes: None,
    }
}

/// `None` where nothing was read of any of the stacks.
fn states(entries: &[Entry<'_>]) -> Option<StateCounts> {
    let mut read = entries.iter().filter_map(|entry| entry.count.states).peekable();
    read.peek()?;
    let mut sum = States::default();
    read.for_each(|states| sum += states);
    Some(memory::counts(sum))
}

fn place(frame: &ResolvedFrame) -> Location {
    Location {
        function: frame.function.clone(),
        file: frame.file.clone(),
        line: frame.line,
        image: frame.image.as_deref().map(str::to_owned),
        offset: Some(frame.offset),
    }
}

fn stack(entry: &Entry<'_>, until_ns: u64) -> StackReport {
    let age = |born_ns| seconds(until_ns.saturating_sub(born_ns));
    StackReport {
        live: entry.count.live(),
        spawned: entry.count.born,
        oldest_seconds: entry.count.oldest_born_ns.map(age),
        complete: entry.names.complete,
        frames: entry.names.frames.iter().map(shown_frame).collect(),
    }
}

fn shown_frame(frame: &ResolvedFrame) -> Frame {
    Frame {
        function: frame.function.clone(),
        file: frame.file.clone(),
        line: frame.line,
        image: frame.image.as_deref().map(str::to_owned),
        build_id: frame.build_id.clone(),
        offset: frame.offset,
        inlined: frame.inlined,
    }
}
