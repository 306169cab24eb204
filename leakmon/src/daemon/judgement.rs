//! Which targets are shown: those that the rules want.
//!
//! In: targets as they appear, the rules. Out: yes or no, once a target, kept for as long as it lives. Probes sit on files, so
//! they are hit by all processes of an image; one that is not wanted becomes a target for the moment until it is judged here, is
//! then left alone by the programs, and what was counted of it is dropped. No report shows a target before it was judged.

use super::Observer;
use crate::{
    kernel::event::Event,
    targets::{
        identity::{FileKey, Identity},
        rules::Rules,
    },
};
use leakmon_ebpf::abi::{CountKey, CountValue, TargetId};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

/// What was judged so far.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// `None`: everything that is hit is wanted.
    pub(super) rules: Option<Arc<Rules>>,
    wanted: HashSet<TargetId>,
    /// The process that is being made a target since it was named: rules have no say in it.
    pub(super) named: Option<u32>,
    unwanted: HashSet<TargetId>,
    /// Unwanted ones of which the kernel may still have counters.
    to_drop: BTreeSet<TargetId>,
    /// Processes that had gone before the rules could be asked about them. They are not shown.
    pub(super) unjudged: u64,
}

impl Judgement {
    /// Drops what is known of targets that have ended.
    pub(super) fn forget(&mut self, gone: &BTreeSet<TargetId>) {
        self.wanted.retain(|target| !gone.contains(target));
    }
}

impl Observer {
    /// Whether a target is wanted; looks at its process at the first question.
    pub(super) fn is_wanted(&mut self, target: TargetId) -> bool {
        if self.judgement.wanted.contains(&target) {
            return true;
        }
        if self.judgement.unwanted.contains(&target) {
            return false;
        }
        let identity = self.identify(target);
        let by_number = self.judgement.named == Some(target.tgid()) || self.kernel.is_watched(target.tgid());
        let image = FileKey::of_program(target.tgid()).and_then(|key| self.images.of_file(key.device, key.inode));
        let is_named = image.is_some_and(|image| image.is_named);
        let wanted = match (&self.judgement.rules, &identity) {
            (None, _) => true,
            (Some(_), _) if by_number => true,
            // Its own tasks are nobody's concern, though another leakmon may have its image probed.
            (Some(_), _) if self.analyst.is_own(target.tgid()) => false,
            (Some(rules), Some(identity)) => identity.is_wanted(rules, is_named),
            (Some(_), None) => false,
        };
        if wanted {
            self.judgement.wanted.insert(target);
            if let Some(identity) = identity {
                self.processes.see(target, identity, &self.images);
            }
        } else {
            self.judgement.unjudged += u64::from(identity.is_none());
            self.judgement.unwanted.insert(target);
            self.judgement.to_drop.insert(target);
            if let Err(error) = self.kernel.exclude(target) {
                tracing::warn!(
                    "process {} is not wanted, and costs time all the same: {error}",
                    target.tgid()
                );
            }
            self.forget_all(&BTreeSet::from([target]));
        }
        wanted
    }

    /// What of an event is about wanted targets; `None` where nothing is.
    pub(super) fn wanted_part(&mut self, event: Event) -> Option<Event> {
        match event {
            // Who the process was has ended in any case.
            Event::Exec {
                target: Some(target),
                before,
                tgid,
                time_ns,
            } if !self.is_wanted(target) => Some(Event::Exec {
                target: None,
                before,
                tgid,
                time_ns,
            }),
            Event::Target { target, .. }
            | Event::Stack { target, .. }
            | Event::Changed { target, .. }
            | Event::Birth { target, .. }
            | Event::End { target, .. }
            | Event::Miss { target }
            | Event::Held { target, .. }
                if !self.is_wanted(target) =>
            {
                None
            }
            other => Some(other),
        }
    }

    /// Takes out the counters of targets that are not wanted, and has them dropped.
    pub(super) fn keep_wanted(&mut self, counts: &mut Vec<(CountKey, CountValue)>) {
        let targets: BTreeSet<TargetId> = counts.iter().map(|(key, _)| TargetId(key.target)).collect();
        let unwanted: BTreeSet<TargetId> = targets.into_iter().filter(|target| !self.is_wanted(*target)).collect();
        if !unwanted.is_empty() {
            counts.retain(|(key, _)| !unwanted.contains(&TargetId(key.target)));
            self.judgement.to_drop.extend(unwanted);
        }
    }

    /// Forgets what was just read of a target's process where that has become another meanwhile: the process with that number may
    /// have been the next one already.
    pub(super) fn make_sure_of(&mut self, target: TargetId) {
        if !self.is_current(target) {
            self.names.forget_space(target);
        }
    }

    /// What a target's process is; `None` where it has gone, whoever has its number by now.
    pub(super) fn identify(&self, target: TargetId) -> Option<Identity> {
        let identity = Identity::read(target.tgid()).ok()?;
        // Only after reading: as long as the entry is there nobody else can have had the number.
        self.is_current(target).then_some(identity)
    }

    /// Whether a target's process still runs what it ran.
    pub(super) fn is_current(&self, target: TargetId) -> bool {
        self.kernel
            .target(target.tgid())
            .is_some_and(|entry| entry.target == target.0)
    }

    /// Drops the counters of unwanted targets. A thread that was just hitting a probe may have made one after the last drop, so
    /// each is dropped once more when its process has gone.
    pub(super) fn drop_unwanted(&mut self) {
        let ended: Vec<TargetId> = self
            .judgement
            .unwanted
            .iter()
            .copied()
            .filter(|target| !self.judgement.to_drop.contains(target) && !self.is_current(*target))
            .collect();
        for target in ended {
            self.judgement.unwanted.remove(&target);
            self.judgement.to_drop.insert(target);
        }
        let to_drop: Vec<TargetId> = std::mem::take(&mut self.judgement.to_drop).into_iter().collect();
        if !to_drop.is_empty() {
            self.kernel.forget(&to_drop);
        }
    }
}
