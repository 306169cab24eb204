//! What the BPF programs tell, parsed.
//!
//! In: the bytes of one ring record. Out: an [`Event`]. An unknown or short record is `None`; the caller counts it.

use leakmon_ebpf::abi::{Cookie, Record, RecordKind, TargetId};
use zerocopy::FromBytes;

/// One event. Times are `CLOCK_MONOTONIC` nanoseconds; counters are cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stack was counted for the first time in a target.
    Stack {
        /// Where.
        target: TargetId,
        /// Key of the stack.
        stack: u64,
        /// The birth site.
        cookie: Cookie,
        /// When.
        time_ns: u64,
    },
    /// A callsite's counters.
    Changed {
        /// Where.
        target: TargetId,
        /// Key of the stack.
        stack: u64,
        /// Tasks born so far.
        born: u64,
        /// Tasks ended so far.
        ended: u64,
        /// When.
        time_ns: u64,
    },
    /// A process became a target by its first hit.
    Target {
        /// Who.
        target: TargetId,
        /// When.
        time_ns: u64,
    },
    /// A process runs another program from now on.
    Exec {
        /// Who it is now; `None` where there was no room for it.
        target: Option<TargetId>,
        /// Who it was, where it was a target.
        before: Option<TargetId>,
        /// The process.
        tgid: u32,
        /// When.
        time_ns: u64,
    },
    /// The last thread of a target has gone.
    Exit {
        /// Who.
        target: TargetId,
        /// When.
        time_ns: u64,
    },
    /// A followed process has a child.
    Fork {
        /// The child.
        tgid: u32,
        /// When.
        time_ns: u64,
    },
    /// With `--trace`: a task was born.
    Birth {
        /// Where.
        target: TargetId,
        /// Key of the stack.
        stack: u64,
        /// Address of its header.
        header: u64,
        /// Thread.
        tid: u32,
        /// When.
        time_ns: u64,
    },
    /// With `--trace`: a task ended.
    End {
        /// Where.
        target: TargetId,
        /// Key of the stack at its birth.
        stack: u64,
        /// Address of its header.
        header: u64,
        /// Thread.
        tid: u32,
        /// When.
        time_ns: u64,
    },
    /// A walk met code without a table.
    Miss {
        /// Whose mappings should be looked at again.
        target: TargetId,
    },
    /// A command stands, stopped.
    Held {
        /// Who.
        target: TargetId,
        /// At its exec, and not at its entry point.
        at_exec: bool,
    },
    /// A target had too many hits: its births are not tracked for a while.
    Paused {
        /// Who.
        target: TargetId,
    },
    /// What an ending task's header showed.
    Proof(Proof),
}

/// What the header of a task showed at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Where it was born.
    pub birth: Cookie,
    /// Where it ended.
    pub end: Cookie,
    /// The pointer to its vtable, less the address of the end site.
    pub vtable_distance: u64,
    /// Low byte of its state word.
    pub state: u8,
}

impl Event {
    /// Names of the kinds, in the order of [`Self::kind_index`]; label values of `leakmon_events_total`.
    pub const KINDS: [&'static str; 12] = [
        "stack", "changed", "target", "exec", "exit", "fork", "birth", "end", "miss", "held", "paused", "proof",
    ];

    /// Parses one record.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let record = Record::read_from_bytes(bytes).ok()?;
        let Record {
            kind,
            time_ns,
            target,
            stack,
            first,
            second,
            ..
        } = record;
        let target = TargetId(target);
        let known = |id: u64| (id != 0).then_some(TargetId(id));
        let is = |wanted: RecordKind| kind == wanted as u32;
        Some(if is(RecordKind::Stack) {
            Self::Stack {
                target,
                stack,
                cookie: Cookie(first),
                time_ns,
            }
        } else if is(RecordKind::Changed) {
            Self::Changed {
                target,
                stack,
                born: first,
                ended: second,
                time_ns,
            }
        } else if is(RecordKind::Target) {
            Self::Target { target, time_ns }
        } else if is(RecordKind::Exec) {
            Self::Exec {
                target: known(target.0),
                before: known(first),
                tgid: u32::try_from(second).ok()?,
                time_ns,
            }
        } else if is(RecordKind::Exit) {
            Self::Exit { target, time_ns }
        } else if is(RecordKind::Fork) {
            Self::Fork {
                tgid: u32::try_from(first).ok()?,
                time_ns,
            }
        } else if is(RecordKind::Birth) || is(RecordKind::End) {
            Self::of_task(&record)
        } else if is(RecordKind::Miss) {
            Self::Miss { target }
        } else if is(RecordKind::Held) {
            Self::Held {
                target,
                at_exec: first == 1,
            }
        } else if is(RecordKind::Paused) {
            Self::Paused { target }
        } else if is(RecordKind::Proof) {
            Self::Proof(Proof {
                birth: Cookie(stack),
                end: Cookie(second),
                vtable_distance: first,
                state: Cookie(second).vtable_word(),
            })
        } else {
            return None;
        })
    }

    /// One task's birth or end.
    const fn of_task(record: &Record) -> Self {
        let Record {
            tid, time_ns, stack, ..
        } = *record;
        let (target, header) = (TargetId(record.target), record.first);
        if record.kind == RecordKind::Birth as u32 {
            Self::Birth {
                target,
                stack,
                header,
                tid,
                time_ns,
            }
        } else {
            Self::End {
                target,
                stack,
                header,
                tid,
                time_ns,
            }
        }
    }

    /// Index of the kind in [`Self::KINDS`].
    #[must_use]
    pub const fn kind_index(&self) -> usize {
        let kind = match self {
            Self::Stack { .. } => RecordKind::Stack,
            Self::Changed { .. } => RecordKind::Changed,
            Self::Target { .. } => RecordKind::Target,
            Self::Exec { .. } => RecordKind::Exec,
            Self::Exit { .. } => RecordKind::Exit,
            Self::Fork { .. } => RecordKind::Fork,
            Self::Birth { .. } => RecordKind::Birth,
            Self::End { .. } => RecordKind::End,
            Self::Miss { .. } => RecordKind::Miss,
            Self::Held { .. } => RecordKind::Held,
            Self::Paused { .. } => RecordKind::Paused,
            Self::Proof(_) => RecordKind::Proof,
        };
        kind as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn record(kind: u32) -> Record {
        Record {
            kind,
            tid: 7,
            time_ns: 100,
            target: 5,
            stack: 9,
            first: 3,
            second: 2,
        }
    }

    #[test]
    fn every_kind_is_parsed_to_its_own_name() {
        for (kind, name) in Event::KINDS.iter().enumerate() {
            let event = Event::parse(record(kind as u32).as_bytes()).unwrap();
            assert_eq!(event.kind_index(), kind, "{name}");
        }
    }

    #[test]
    fn fields_land_where_they_belong() {
        let parse = |kind: RecordKind| Event::parse(record(kind as u32).as_bytes()).unwrap();
        let target = TargetId(5);
        assert_eq!(
            parse(RecordKind::Changed),
            Event::Changed {
                target,
                stack: 9,
                born: 3,
                ended: 2,
                time_ns: 100
            }
        );
        let exec = Event::Exec {
            target: Some(target),
            before: Some(TargetId(3)),
            tgid: 2,
            time_ns: 100,
        };
        assert_eq!(parse(RecordKind::Exec), exec);
        assert_eq!(parse(RecordKind::Fork), Event::Fork { tgid: 3, time_ns: 100 });
        assert_eq!(
            parse(RecordKind::End),
            Event::End {
                target,
                stack: 9,
                header: 3,
                tid: 7,
                time_ns: 100
            }
        );
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert_eq!(Event::parse(record(Event::KINDS.len() as u32).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn only_whole_records_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let parsed = Event::parse(&bytes);
            prop_assert!(parsed.is_none() || bytes.len() == size_of::<Record>());
        }
    }
}
