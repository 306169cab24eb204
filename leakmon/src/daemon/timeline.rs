//! Births and ends one by one, for `--trace`.
//!
//! In: the events of the ring. Out: what [`crate::export::trace`] writes, once the stacks have names. It is bounded: what comes
//! beyond is counted.

use super::{Observer, names::kind_name};
use crate::{
    export::trace::{Moment, Trace},
    kernel::event::Event,
    live::StackKey,
    symbols::names::one_of,
};
use leakmon_ebpf::abi::{LiveKey, Loss};
use std::collections::HashMap;

/// Births and ends that are kept, 48 bytes each. Perfetto takes some seconds to load as many.
pub(super) const MOMENTS_MAX: usize = 1 << 20;

/// What has happened so far.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    moments: Vec<(StackKey, Moment)>,
    lost: u64,
}

impl Timeline {
    pub(super) fn take(&mut self, event: &Event) {
        let (target, stack, header, tid, time_ns, birth) = match *event {
            Event::Birth {
                target,
                stack,
                header,
                tid,
                time_ns,
            } => (target, stack, header, tid, time_ns, true),
            Event::End {
                target,
                stack,
                header,
                tid,
                time_ns,
            } => (target, stack, header, tid, time_ns, false),
            _ => return,
        };
        if self.moments.len() >= MOMENTS_MAX {
            self.lost += 1;
            return;
        }
        let moment = Moment {
            time_ns,
            tgid: target.tgid(),
            tid,
            task: header,
            birth,
            thread: LiveKey {
                target: target.0,
                header,
            }
            .is_thread(),
            callsite: 0,
        };
        self.moments.push((StackKey { target, stack }, moment));
    }
}

impl Observer {
    /// Keeps every birth and end from now on; the programs must have been loaded with `trace`.
    pub fn keep_timeline(&mut self) {
        self.timeline = Some(Timeline::default());
    }

    /// The births and ends that were kept, in order of time; `None` where none were to be.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        let timeline = self.timeline.as_ref()?;
        let lost = timeline.lost + self.kernel.loss()[Loss::RingFull as usize];
        let mut trace = Trace::new(self.began_ns, lost);
        let mut callsites: HashMap<StackKey, usize> = HashMap::new();
        for (key, moment) in &timeline.moments {
            let callsite = *callsites
                .entry(*key)
                .or_insert_with(|| trace.callsite(&self.callsite_name(*key)));
            trace.moments.push(Moment { callsite, ..*moment });
        }
        trace.moments.sort_by_key(|moment| moment.time_ns);
        for (target, _) in self.live.targets() {
            if let Some(process) = self.processes.of(target) {
                trace.processes.insert(target.tgid(), process.exe.clone());
            }
        }
        Some(trace)
    }

    /// What tasks with this stack are called.
    fn callsite_name(&self, key: StackKey) -> String {
        let cookie = self
            .live
            .stacks()
            .find_map(|(known, count)| (known == key).then_some(count.cookie));
        let task_type = cookie
            .and_then(|cookie| self.images.site(cookie)?.1)
            .and_then(|task_type| one_of(&task_type.names));
        let place = self.names.of(key).and_then(|names| names.location());
        let place = place.and_then(|frame| frame.function.clone());
        let kind = cookie.map_or("task", kind_name);
        match (task_type, place) {
            (Some(task_type), Some(place)) => format!("{task_type} spawned in {place}"),
            (Some(name), None) | (None, Some(name)) => name,
            (None, None) => format!("[{kind}] of stack {:x}", key.stack),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakmon_ebpf::abi::TargetId;

    #[test]
    fn what_is_beyond_the_bound_is_counted() {
        let mut timeline = Timeline::default();
        let target = TargetId::new(7, 1);
        for number in 0..=MOMENTS_MAX as u64 {
            timeline.take(&Event::Birth {
                target,
                stack: 1,
                header: number,
                tid: 7,
                time_ns: number,
            });
        }
        timeline.take(&Event::Miss { target });
        assert_eq!((timeline.moments.len(), timeline.lost), (MOMENTS_MAX, 1));
    }
}
