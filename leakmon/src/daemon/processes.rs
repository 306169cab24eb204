//! What is known of the targets' processes, for as long as they are shown.
//!
//! In: targets as they appear. Out: executable, image and status. A process that has gone before it could be looked at
//! keeps the image that its first hit named.

use super::images::Images;
use crate::{export::report::TargetStatus, live::Target, targets::processes::ProcessImage};
use leakmon_ebpf::abi::TargetId;
use std::collections::{HashMap, HashSet};

/// Processes that can't be watched but are shown, at most.
const REFUSED_MAX: usize = 1024;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Executable as the process sees it.
    pub(super) exe: String,
    /// Its file.
    pub(super) file: Option<(u64, u64)>,
}

/// A process that can't be watched, or of which only the threads are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) tgid: u32,
    pub(super) exe: String,
    pub(super) reason: String,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    known: HashMap<TargetId, Process>,
    refused: Vec<Refused>,
    threads_only: HashMap<TargetId, Refused>,
    late: HashSet<TargetId>,
}

impl Processes {
    /// Looks a target's process up, once.
    pub(super) fn see(&mut self, target: TargetId, images: &Images) {
        if self.known.contains_key(&target) {
            return;
        }
        if let Ok(image) = ProcessImage::open(target.tgid()) {
            let file = (image.device, image.inode);
            // The file may have been replaced under its name; what is watched goes by the name it was found under.
            let exe = images
                .of_file(file.0, file.1)
                .map_or(&image.path, |known| &known.plan.path);
            let exe = exe.display().to_string();
            self.known.insert(target, Process { exe, file: Some(file) });
        }
    }

    /// Notes a process that can't be watched.
    pub(super) fn refuse(&mut self, tgid: u32, error: &anyhow::Error) {
        if self.refused.len() < REFUSED_MAX {
            self.refused.push(Refused::new(tgid, error));
        }
    }

    /// Notes a target whose image can't be probed, so that it has threads and no tasks. There are no more than targets.
    pub(super) fn watch_threads_only(&mut self, target: TargetId, error: &anyhow::Error) {
        let mut known = Refused::new(target.tgid(), error);
        known.reason.push_str("; its threads alone are watched");
        self.threads_only.insert(target, known);
    }

    /// A process that was watched, or of which the threads were, runs another program. Should that have no known image, its threads
    /// are watched all the same.
    pub(super) fn executes(&mut self, before: TargetId, now: TargetId) {
        if self.known.contains_key(&before) || self.threads_only.contains_key(&before) {
            let because = anyhow::anyhow!("the program that it runs since its exec is not probed");
            self.watch_threads_only(now, &because);
        }
    }

    /// Notes a target that was running before its image was probed, when nobody was there to do so.
    pub(super) fn note_late(&mut self, target: TargetId) {
        self.late.insert(target);
    }

    /// How well a target is watched, and why not better. `shortfall` is its image's.
    pub(super) fn status(
        &self,
        id: TargetId,
        target: &Target,
        shortfall: Option<String>,
        now_ns: u64,
    ) -> (TargetStatus, Option<String>) {
        let late = self.late.contains(&id).then(|| {
            "it ran before its probes were attached, when leakmon was restarted: what was born until then is not counted"
                .to_owned()
        });
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

    pub(super) fn forget(&mut self, target: TargetId) {
        self.known.remove(&target);
        self.threads_only.remove(&target);
        self.late.remove(&target);
    }
}

impl Refused {
    fn new(tgid: u32, error: &anyhow::Error) -> Self {
        let exe = ProcessImage::open(tgid)
            .map(|image| image.path.display().to_string())
            .unwrap_or_default();
        Self {
            tgid,
            exe,
            reason: format!("{error:#}"),
        }
    }
}

/// How well a target is watched, and why not better. `shortfall` is its image's.
fn status(shortfall: Option<String>, target: &Target, now_ns: u64) -> (TargetStatus, Option<String>) {
    let untracked = target.totals.untracked;
    if now_ns < target.paused_until_ns && target.exited_ns.is_none() {
        let seconds = (target.paused_until_ns - now_ns).div_ceil(1_000_000_000);
        let reason = format!(
            "it had more hits than it may have, so births are not counted for {seconds} s more ({untracked} so far); \
             what was counted before stays right"
        );
        return (TargetStatus::Paused, Some(reason));
    }
    let left_out = (untracked > 0).then(|| {
        format!("{untracked} births were not counted, since it was paused or a table was full; all that was counted is right")
    });
    match shortfall.or(left_out) {
        None => (TargetStatus::Attached, None),
        Some(reason) => (TargetStatus::Partial, Some(reason)),
    }
}
