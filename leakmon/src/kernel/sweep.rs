//! Passes over all live tasks, and what goes with a target.
//!
//! In: targets that have gone. Out: the oldest live task of every stack. A pass visits each live task, so there is one for all
//! that have gone since the last, whenever the caller has time for it.

use super::{Kernel, KernelError};
use leakmon_ebpf::abi::{CountKey, TargetId};
use std::collections::HashSet;

pub(super) const SWEEP: &str = "sweep_live";

/// Targets that wait for room in `PURGED`. Beyond it their tasks stay in the table until leakmon is started without pins.
const WAITING_MAX: usize = 1 << 16;

/// Targets whose tasks are still in the table of live ones.
#[derive(Debug, Default)]
pub(super) struct Purge {
    /// In `PURGED`: the next pass drops their tasks.
    next: Vec<u64>,
    /// Found no room there.
    waiting: Vec<u64>,
    refused: u64,
}

impl Kernel {
    /// Finds the oldest live task of every stack: afterwards an entry of [`Self::counts`] whose `swept` is the returned
    /// number has it in `oldest_born_ns`. Drops the tasks of forgotten targets.
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn sweep(&mut self) -> Result<u64, KernelError> {
        self.sweeps += 1;
        let number = self.sweeps;
        self.execute(SWEEP, &[number])?;
        for target in std::mem::take(&mut self.purge.next) {
            self.purged.remove(&target);
        }
        for target in std::mem::take(&mut self.purge.waiting) {
            self.purge(target);
        }
        Ok(number)
    }

    /// Forgets targets: their counters, totals, and the stacks that no other target has. Their live tasks go with the next
    /// [`Self::sweep`]; nothing refers to them until then.
    pub fn forget(&mut self, gone: &[TargetId]) {
        let gone: HashSet<u64> = gone.iter().map(|target| target.0).collect();
        // First, so that a daemon killed in between leaves nothing that is never dropped.
        for target in &gone {
            self.purge(*target);
        }
        let keys = self.counts.entries().into_iter().map(|(key, _)| key);
        let (of_gone, of_others): (Vec<CountKey>, Vec<CountKey>) = keys.partition(|key| gone.contains(&key.target));
        let still_used: HashSet<u64> = of_others.iter().map(|key| key.stack).collect();
        for key in &of_gone {
            self.counts.remove(key);
            self.ages.remove(key);
            // A target that comes to the same stack just now is counted under its site alone, which is all that is lost.
            if !still_used.contains(&key.stack) {
                self.stacks.remove(&key.stack);
            }
        }
        for target in &gone {
            self.totals.remove(target);
        }
    }

    /// Whether a sweep is due that drops the tasks of forgotten targets.
    #[must_use]
    pub const fn is_purging(&self) -> bool {
        !self.purge.next.is_empty() || !self.purge.waiting.is_empty()
    }

    /// Targets of which live tasks stay in the table for want of room.
    #[must_use]
    pub const fn purges_refused(&self) -> u64 {
        self.purge.refused
    }

    /// Takes over what an earlier daemon had forgotten and not yet dropped.
    pub(super) fn resume_purge(&mut self) {
        self.purge.next = self.purged.entries().into_iter().map(|(target, _)| target).collect();
    }

    fn purge(&mut self, target: u64) {
        if self.purged.insert(&target, &0).is_ok() {
            self.purge.next.push(target);
        } else if self.purge.waiting.len() < WAITING_MAX {
            self.purge.waiting.push(target);
        } else {
            self.purge.refused += 1;
        }
    }
}
