//! Counts, ages and verdicts.
//!
//! In: [`Event`]s, the kernel's counters, and a time. Out: what is live, per target and stack. Pure: no IO, no clock, no
//! names. The kernel's counters are the truth; an event only brings them sooner.

pub mod at_exit;
mod states;
pub mod verdict;

pub use states::States;

use crate::kernel::event::Event;
use leakmon_ebpf::abi::{AGE_CLASSES, Ages, Cookie, CountKey, CountValue, TargetId, Totals};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Targets that are remembered at once, the dead ones that are still shown included.
pub const TARGETS_MAX: usize = 8192;

/// Stacks that are remembered over all targets; `COUNTS` holds fewer unless it is configured larger.
pub const STACKS_MAX: usize = 1 << 18;

/// One stack in one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackKey {
    /// The process.
    pub target: TargetId,
    /// Key in the kernel's stack table.
    pub stack: u64,
}

impl From<CountKey> for StackKey {
    fn from(key: CountKey) -> Self {
        Self {
            target: TargetId(key.target),
            stack: key.stack,
        }
    }
}

/// What is known of one stack in one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackCount {
    /// The birth site.
    pub cookie: Cookie,
    /// Tasks born so far.
    pub born: u64,
    /// Of them, ended so far.
    pub ended: u64,
    /// Birth of the oldest that is alive, as of the last sweep; `CLOCK_MONOTONIC` nanoseconds.
    pub oldest_born_ns: Option<u64>,
    /// Live tasks by age ([`leakmon_ebpf::abi::age_class`]), as of the last reading of ages; they may add up to more or less than
    /// [`Self::live`] by what was born and ended since.
    pub ages: [u32; AGE_CLASSES],
    /// What the live tasks are doing; `None` where it was not read.
    pub states: Option<States>,
}

impl StackCount {
    /// Tasks alive. An end can be seen before its birth where two processors report out of order: never below zero.
    #[must_use]
    pub const fn live(&self) -> u64 {
        self.born.saturating_sub(self.ended)
    }
}

/// What is known of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// When it was first seen.
    pub since_ns: u64,
    /// When its last thread went; what was live then stays live in the report.
    pub exited_ns: Option<u64>,
    /// What is counted per target and not per stack.
    pub totals: Totals,
    /// Births before this time are not tracked; 0 where they always were.
    pub paused_until_ns: u64,
}

/// Everything that is known of live tasks. One owner changes it, by [`Self::apply`] and [`Self::read`].
#[derive(Debug)]
pub struct Live {
    targets: BTreeMap<TargetId, Target>,
    stacks: HashMap<StackKey, StackCount>,
    refused: Refused,
    /// Of the targets that were forgotten: a sum over all targets never falls.
    forgotten: Totals,
}

/// What found no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Targets beyond [`TARGETS_MAX`], counted at each sight.
    pub targets: u64,
    /// Stacks beyond [`STACKS_MAX`], counted at each sight.
    pub stacks: u64,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            targets: BTreeMap::new(),
            stacks: HashMap::new(),
            refused: Refused::default(),
            forgotten: Totals::NONE,
        }
    }
}

impl Live {
    /// Takes one event.
    pub fn apply(&mut self, event: &Event) {
        match *event {
            Event::Stack {
                target,
                stack,
                cookie,
                time_ns,
            } => {
                self.see(target, time_ns);
                self.raise(StackKey { target, stack }, cookie, 1, 0);
            }
            Event::Changed {
                target,
                stack,
                born,
                ended,
                ..
            } => {
                if let Some(count) = self.stacks.get_mut(&StackKey { target, stack }) {
                    count.born = count.born.max(born);
                    count.ended = count.ended.max(ended);
                }
            }
            Event::Target { target, time_ns } => {
                self.see(target, time_ns);
            }
            Event::Exec {
                target,
                before,
                time_ns,
                ..
            } => {
                if let Some(before) = before {
                    self.exited(before, time_ns);
                }
                if let Some(target) = target {
                    self.see(target, time_ns);
                }
            }
            Event::Exit { target, time_ns } => self.exited(target, time_ns),
            Event::Fork { .. }
            | Event::Birth { .. }
            | Event::End { .. }
            | Event::Miss { .. }
            | Event::Held { .. }
            | Event::Paused { .. }
            | Event::Proof(_) => {}
        }
    }

    /// Takes the kernel's counters. `sweep` is the number of the sweep that was just run, if one was, and `ages` what it found:
    /// an entry that it did not touch has no live task.
    pub fn read(
        &mut self,
        counts: &[(CountKey, CountValue)],
        ages: &[(CountKey, Ages)],
        sweep: Option<u64>,
        now_ns: u64,
    ) {
        for (key, value) in counts {
            let key = StackKey::from(*key);
            self.see(key.target, now_ns);
            self.raise(key, Cookie(value.cookie), value.born, value.ended);
            if let (Some(sweep), Some(count)) = (sweep, self.stacks.get_mut(&key)) {
                count.oldest_born_ns = (value.swept == sweep).then_some(value.oldest_born_ns);
                count.ages = [0; AGE_CLASSES];
            }
        }
        for (key, ages) in ages.iter().filter(|(_, ages)| Some(ages.swept) == sweep) {
            if let Some(count) = self.stacks.get_mut(&StackKey::from(*key)) {
                count.ages = ages.classes;
            }
        }
    }

    /// Takes what the kernel counted of one target beside its stacks.
    pub fn set_totals(&mut self, target: TargetId, totals: Totals) {
        if let Some(known) = self.targets.get_mut(&target) {
            known.totals = totals;
        }
    }

    /// Takes what the tasks of a stack are doing; `None` where it can't be read any more.
    pub fn set_states(&mut self, key: StackKey, states: Option<States>) {
        if let Some(count) = self.stacks.get_mut(&key) {
            count.states = states;
        }
    }

    /// Notes until when a target's births are not tracked.
    pub fn set_paused(&mut self, target: TargetId, until_ns: u64) {
        if let Some(known) = self.targets.get_mut(&target) {
            known.paused_until_ns = known.paused_until_ns.max(until_ns);
        }
    }

    /// Notes that a target's process is gone. What it held stays until [`Self::forget`].
    pub fn exited(&mut self, target: TargetId, time_ns: u64) {
        if let Some(known) = self.targets.get_mut(&target) {
            known.exited_ns.get_or_insert(time_ns);
        }
    }

    /// Drops targets and their stacks.
    pub fn forget(&mut self, gone: &BTreeSet<TargetId>) {
        for target in gone {
            if let Some(known) = self.targets.remove(target) {
                self.forgotten = sum(self.forgotten, known.totals);
            }
        }
        self.stacks.retain(|key, _| !gone.contains(&key.target));
    }

    /// The targets, by process.
    pub fn targets(&self) -> impl Iterator<Item = (TargetId, &Target)> {
        self.targets.iter().map(|(id, target)| (*id, target))
    }

    /// A target, unless it was forgotten.
    #[must_use]
    pub fn target(&self, target: TargetId) -> Option<&Target> {
        self.targets.get(&target)
    }

    /// The stacks, in no order.
    pub fn stacks(&self) -> impl Iterator<Item = (StackKey, &StackCount)> {
        self.stacks.iter().map(|(key, count)| (*key, count))
    }

    /// What was counted beside the stacks, over all targets that ever were. Never falls.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.targets
            .values()
            .fold(self.forgotten, |totals, target| sum(totals, target.totals))
    }

    /// What found no room so far.
    #[must_use]
    pub const fn refused(&self) -> Refused {
        self.refused
    }

    fn see(&mut self, target: TargetId, time_ns: u64) {
        if self.targets.len() >= TARGETS_MAX && !self.targets.contains_key(&target) {
            self.refused.targets += 1;
            return;
        }
        self.targets.entry(target).or_insert(Target {
            since_ns: time_ns,
            exited_ns: None,
            totals: Totals::NONE,
            paused_until_ns: 0,
        });
    }

    /// Raises a stack's counters to these. They never fall: the kernel's are cumulative, and an event may be older than
    /// what was read.
    fn raise(&mut self, key: StackKey, cookie: Cookie, born: u64, ended: u64) {
        if self.stacks.len() >= STACKS_MAX && !self.stacks.contains_key(&key) {
            self.refused.stacks += 1;
            return;
        }
        let fresh = StackCount {
            cookie,
            born: 0,
            ended: 0,
            oldest_born_ns: None,
            ages: [0; AGE_CLASSES],
            states: None,
        };
        let count = self.stacks.entry(key).or_insert(fresh);
        count.born = count.born.max(born);
        count.ended = count.ended.max(ended);
    }
}

fn sum(left: Totals, right: Totals) -> Totals {
    Totals {
        unmatched_ends: left.unmatched_ends + right.unmatched_ends,
        replaced: left.replaced + right.replaced,
        untracked: left.untracked + right.untracked,
        untracked_ends: left.untracked_ends + right.untracked_ends,
    }
}

#[cfg(test)]
mod tests;
