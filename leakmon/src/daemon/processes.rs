//! What is known of the targets' processes, for as long as they are shown.
//!
//! In: targets as they appear. Out: executable, image and status. A process that has gone before it could be looked at
//! keeps the image that its first hit named.

use super::images::Images;
use crate::{
    export::report::TargetStatus,
    live::Target,
    targets::{
        cgroup::Cgroup,
        identity::{FileKey, Identity},
        processes,
    },
};
use leakmon_ebpf::abi::TargetId;
use std::collections::{BTreeSet, HashMap};

/// Processes that can't be watched but are shown, at most.
const REFUSED_MAX: usize = 1024;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Executable as the process sees it.
    pub(super) exe: String,
    /// Its file.
    pub(super) file: Option<(u64, u64)>,
    /// Where it is.
    pub(super) cgroup: Cgroup,
}

/// A process that can't be watched, or of which only the threads are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) tgid: u32,
    pub(super) exe: String,
    pub(super) reason: String,
    pub(super) cgroup: Cgroup,
    /// When it was started, so that another process with its number is not taken for it.
    started_ticks: Option<u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    known: HashMap<TargetId, Process>,
    /// Images that are not the executable, or may not be, by their number.
    mapped: HashMap<TargetId, u32>,
    refused: Vec<Refused>,
    threads_only: HashMap<TargetId, Refused>,
    late: HashMap<TargetId, &'static str>,
    /// Processes that can't be watched and found no room to be shown.
    pub(super) not_shown: u64,
}

impl Processes {
    /// Notes what a target's process is.
    pub(super) fn see(&mut self, target: TargetId, identity: Identity, images: &Images) {
        let file = FileKey::of_program(target.tgid()).map(|key| (key.device, key.inode));
        // The file may have been replaced under its name; what is watched goes by the name it was found under.
        let exe = file
            .and_then(|(device, inode)| images.of_file(device, inode))
            .map_or(&identity.exe, |known| &known.plan.path);
        let exe = exe.display().to_string();
        let cgroup = identity.cgroup;
        self.known.insert(target, Process { exe, file, cgroup });
    }

    /// Notes that a target maps an image that may not be its executable.
    pub(super) fn maps(&mut self, target: TargetId, image: u32) {
        self.mapped.insert(target, image);
    }

    /// Image that a target was found to map.
    pub(super) fn mapped(&self, target: TargetId) -> Option<u32> {
        self.mapped.get(&target).copied()
    }

    /// Numbers of the images that targets run.
    pub(super) fn images(&self, images: &Images) -> BTreeSet<u32> {
        let executables = self.known.values().filter_map(|process| process.file);
        executables
            .filter_map(|(device, inode)| Some(images.find_file(device, inode)?.0))
            .chain(self.mapped.values().copied())
            .collect()
    }

    /// Notes a process that can't be watched, once.
    pub(super) fn refuse(&mut self, tgid: u32, reason: String) {
        let started_ticks = processes::start_time_ticks(tgid).ok();
        let known = |refused: &Refused| (refused.tgid, refused.started_ticks) == (tgid, started_ticks);
        if self.refused.iter().any(known) {
            return;
        }
        if self.refused.len() >= REFUSED_MAX {
            self.not_shown += 1;
            return;
        }
        self.refused.push(Refused::new(tgid, reason));
    }

    /// Drops the processes that could not be watched and have ended.
    pub(super) fn forget_refused_that_ended(&mut self) {
        self.refused.retain(|refused| {
            refused.started_ticks.is_some() && processes::start_time_ticks(refused.tgid).ok() == refused.started_ticks
        });
    }

    /// Notes a target whose image can't be probed, so that it has threads and no tasks. There are no more than targets.
    pub(super) fn watch_threads_only(&mut self, target: TargetId, error: &anyhow::Error) {
        let reason = format!("{error:#}; its threads alone are watched");
        self.threads_only.insert(target, Refused::new(target.tgid(), reason));
    }

    /// A process that was watched, or of which the threads were, runs another program. Should that have no known image, its threads
    /// are watched all the same.
    pub(super) fn executes(&mut self, before: TargetId, now: TargetId) {
        if self.known.contains_key(&before) || self.threads_only.contains_key(&before) {
            let because = anyhow::anyhow!("the program that it runs since its exec is not probed");
            self.watch_threads_only(now, &because);
        }
    }

    /// Notes a target of which births were missed at its beginning, and why.
    pub(super) fn note_late(&mut self, target: TargetId, why: &'static str) {
        self.late.insert(target, why);
    }

    /// How well a target is watched, and why not better. `shortfall` is its image's.
    pub(super) fn status(
        &self,
        id: TargetId,
        target: &Target,
        shortfall: Option<String>,
        now_ns: u64,
    ) -> (TargetStatus, Option<String>) {
        let late = self.late.get(&id).map(|why| (*why).to_owned());
        status(shortfall.or(late), target, now_ns)
    }

    /// Why a target has threads and no tasks.
    pub(super) fn threads_only(&self, target: TargetId) -> Option<&Refused> {
        self.threads_only.get(&target)
    }

    /// What is known of a target's process.
    pub(super) fn of(&self, target: TargetId) -> Option<&Process> {
        self.known.get(&target)
    }

    /// The processes that can't be watched.
    pub(super) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Drops what belongs to targets.
    pub(super) fn forget(&mut self, gone: &BTreeSet<TargetId>) {
        self.known.retain(|target, _| !gone.contains(target));
        self.mapped.retain(|target, _| !gone.contains(target));
        self.threads_only.retain(|target, _| !gone.contains(target));
        self.late.retain(|target, _| !gone.contains(target));
    }
}

impl Refused {
    fn new(tgid: u32, reason: String) -> Self {
        let (exe, cgroup) = Identity::read(tgid)
            .map(|identity| (identity.exe.display().to_string(), identity.cgroup))
            .unwrap_or_default();
        Self {
            tgid,
            exe,
            reason,
            cgroup,
            started_ticks: processes::start_time_ticks(tgid).ok(),
        }
    }
}

/// How well a target is watched, and why not better. `shortfall` is its image's.
fn status(shortfall: Option<String>, target: &Target, now_ns: u64) -> (TargetStatus, Option<String>) {
    let untracked = target.totals.untracked;
    if now_ns < target.paused_until_ns && target.exited_ns.is_none() {
        let seconds = (target.paused_until_ns - now_ns).div_ceil(1_000_000_000);
        let reason = format!(
            "it had more hits than it may have, so births are not counted for {seconds} s more ({untracked} or more so far); \
             what was counted before stays right"
        );
        return (TargetStatus::Paused, Some(reason));
    }
    // The probes of births are off for most of a pause.
    let more = if target.paused_until_ns > 0 { " or more" } else { "" };
    let left_out = (untracked > 0).then(|| {
        format!("{untracked}{more} births were not counted, since it was paused or a table was full; all that was counted is right")
    });
    match shortfall.or(left_out) {
        None => (TargetStatus::Attached, None),
        Some(reason) => (TargetStatus::Partial, Some(reason)),
    }
}
