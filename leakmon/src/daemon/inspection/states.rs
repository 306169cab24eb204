//! The states of live tasks: which are asked for, and what becomes of the answers.
//!
//! In: the stacks that have live tasks. Out: their states, in `live`. Of many tasks the oldest are read.

use super::is_task;
use crate::{
    daemon::Observer,
    kernel::{
        clock::{monotonic_ns, thread_cpu_time},
        sample,
    },
    live::{StackKey, States},
    memory::{
        census::Tally,
        reader::MemoryError,
        service::Job,
        states::{Group, Known},
    },
};
use leakmon_ebpf::abi::{CountKey, Sample, TargetId, Wanted};
use std::{cmp::Reverse, collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How often states are read, unless they are confirmed sooner. Sampling visits every live task, so the next waits at least
/// [`SAMPLE_REST`] times the processor time that it took: on a busy host the same work takes longer, and is no more.
const STATES_INTERVAL: Duration = Duration::from_secs(2);
const SAMPLE_REST: u32 = 200;
/// Tasks of one stack whose states are read, the oldest where there are more.
const STACK_SAMPLES_MAX: u64 = 4096;
const STACK_SAMPLES_MIN: u64 = 16;

impl Observer {
    /// Asks for the states of live tasks, each stack's oldest.
    pub(super) fn ask_states(&mut self) {
        let began = thread_cpu_time();
        let now_ns = monotonic_ns();
        let mut stacks: Vec<(StackKey, u64, Option<u64>)> = self
            .live
            .stacks()
            .filter(|(_, count)| count.live() > 0 && !count.cookie.is_thread())
            .map(|(key, count)| (key, count.live(), count.oldest_born_ns))
            .collect();
        let exited: Vec<TargetId> = self
            .live
            .targets()
            .filter(|(_, target)| target.exited_ns.is_some())
            .map(|(id, _)| id)
            .collect();
        stacks.retain(|(key, _, _)| !exited.contains(&key.target));
        stacks.sort_unstable_by_key(|(key, live, _)| (Reverse(*live), *key));
        stacks.truncate(sample::STACKS_MAX);
        let room = (sample::SAMPLES_MAX / (stacks.len() as u64).max(1)).clamp(STACK_SAMPLES_MIN, STACK_SAMPLES_MAX);
        let wanted: Vec<(CountKey, Wanted)> = stacks
            .iter()
            .enumerate()
            .map(|(group, (key, live, oldest_ns))| {
                let key = CountKey {
                    target: key.target.0,
                    stack: key.stack,
                };
                let born_until_ns = oldest_until(*live, room, *oldest_ns, now_ns);
                (
                    key,
                    Wanted {
                        born_until_ns,
                        room,
                        group: group as u64,
                    },
                )
            })
            .collect();
        self.inspection.groups = stacks.into_iter().map(|(key, _, _)| key).collect();
        let mut sampled = SampledTasks::of(&self.inspection.groups);
        if let Err(error) = self.kernel.sample(&wanted, |sample| sampled.add(&sample)) {
            tracing::warn!("states can't be read: {error}");
            sampled = SampledTasks::of(&self.inspection.groups);
        }
        let by_target = sampled.by_target;
        let rest = STATES_INTERVAL
            .min(self.inspection.settings.confirm)
            .max(thread_cpu_time().saturating_sub(began) * SAMPLE_REST);
        self.inspection.next_states = Instant::now() + rest;
        self.inspection.unconfirmed = false;
        for (target, known) in by_target {
            if let Some(subject) = self.subject(target) {
                let job = Job::States(subject, known, self.inspection.settings.confirm);
                self.inspection.states_due += usize::from(self.inspection.submit(job));
            }
        }
    }

    pub(super) fn take_states(&mut self, target: TargetId, read: Result<BTreeMap<u64, Group>, MemoryError>) {
        self.inspection.states_due -= 1;
        let read = read.ok();
        for (group, key) in self
            .inspection
            .groups
            .iter()
            .enumerate()
            .filter(|(_, key)| key.target == target)
        {
            let states = read
                .as_ref()
                .map(|read| read.get(&(group as u64)).copied().unwrap_or_default());
            self.inspection.unconfirmed |= states.is_some_and(|group| group.unconfirmed > 0);
            self.live.set_states(*key, states.map(|group| states_of(&group.tally)));
        }
    }
}

/// Until when the oldest `room` of `live` tasks were born, if births were even.
fn oldest_until(live: u64, room: u64, oldest_ns: Option<u64>, now_ns: u64) -> u64 {
    match oldest_ns {
        Some(oldest_ns) if live > room => {
            let span = u128::from(now_ns.saturating_sub(oldest_ns)) * u128::from(room) / u128::from(live);
            oldest_ns.saturating_add(u64::try_from(span).unwrap_or(u64::MAX))
        }
        _ => u64::MAX,
    }
}

/// The tasks of each target that has stacks in `groups`.
struct SampledTasks<'a> {
    groups: &'a [StackKey],
    by_target: BTreeMap<TargetId, Vec<Known>>,
}

impl<'a> SampledTasks<'a> {
    fn of(groups: &'a [StackKey]) -> Self {
        Self {
            groups,
            by_target: groups.iter().map(|key| (key.target, Vec::new())).collect(),
        }
    }

    /// Threads, and what is of no known group, are left out.
    fn add(&mut self, sample: &Sample) {
        let target = self.groups.get(sample.group as usize).map(|key| key.target);
        if is_task(&(sample.header, 0))
            && let Some(known) = target.and_then(|target| self.by_target.get_mut(&target))
        {
            known.push(Known {
                header: sample.header,
                group: sample.group,
            });
        }
    }
}

/// The states of a tally's living tasks.
pub(in crate::daemon) const fn states_of(tally: &Tally) -> States {
    States {
        sampled: tally.alive(),
        idle: tally.idle,
        scheduled: tally.scheduled,
        running: tally.running,
        unwakeable: tally.unwakeable,
        abortable: tally.abortable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_many_are_asked_for() {
        assert_eq!(oldest_until(10, 10, Some(1000), 2000), u64::MAX);
        assert_eq!(oldest_until(100, 10, Some(1000), 2000), 1100);
        assert_eq!(oldest_until(100, 10, None, 2000), u64::MAX);
        assert_eq!(oldest_until(u64::MAX, u64::MAX - 1, Some(0), u64::MAX), u64::MAX - 1);
    }

    #[test]
    fn samples_go_to_the_target_of_their_group() {
        let targets = [1, 2].map(|tgid| TargetId::new(tgid, 5));
        let key = |index: usize, stack| StackKey {
            target: targets[index],
            stack,
        };
        let groups = [key(0, 7), key(1, 7), key(0, 8)];
        let sample = |header, group| Sample {
            header,
            group,
            born_ns: 0,
        };
        // A thread, and a group that nobody asked for, are left out.
        let samples = [
            sample(0x80, 0),
            sample(0x100, 1),
            sample(0x180, 2),
            sample(1 << 63, 0),
            sample(0x200, 3),
        ];
        let mut sampled = SampledTasks::of(&groups);
        samples.iter().for_each(|sample| sampled.add(sample));
        let headers = |target| {
            sampled.by_target[&target]
                .iter()
                .map(|known| known.header)
                .collect::<Vec<_>>()
        };
        assert_eq!(headers(targets[0]), [0x80, 0x180]);
        assert_eq!(headers(targets[1]), [0x100]);
    }
}
