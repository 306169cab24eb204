//! What a task's words say.
//!
//! In: bytes read at a header, and the layout of its type. Out: a [`Reading`], where they can be those of a task. All numbers
//! are a target's: any of them may be garbage, and freed memory often looks like what it once was.
//!
//! Sources: tokio 1.23.1, 1.38.0 and 1.54.1, `runtime/task/state.rs` (the state word), `runtime/task/core.rs` (`Header`, `Core`,
//! `Trailer`), `runtime/task/list.rs` (owner), `util/linked_list.rs` (the list of a runtime's tasks).

use super::layout::Layout;
use leakmon_ebpf::abi::Kind;

const RUNNING: u64 = 1;
const COMPLETE: u64 = 2;
const NOTIFIED: u64 = 4;
const JOIN_INTEREST: u64 = 8;
const REFERENCE: u64 = 1 << 6;

/// The state word of a new task (`INITIAL_STATE`).
const INITIAL: u64 = (3 * REFERENCE) | JOIN_INTEREST | NOTIFIED;

/// References that a living task can have. Each waker is one; a million wakers of one task are garbage.
const REFERENCES_MAX: u64 = 1 << 20;
/// Task ids and owners count up from 1.
const COUNTER_MAX: u64 = 1 << 48;
/// User addresses are below this (x86-64, four levels of page tables).
const ADDRESS_MAX: u64 = 1 << 47;

/// Offset of the pointer to the next task of the queue.
const QUEUE_NEXT_OFFSET: usize = 8;
/// Offset of the id of the list that owns the task.
pub(super) const OWNER_OFFSET: usize = 0x18;

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Neither running nor notified: it waits for a waker.
    Idle,
    /// Idle, and no waker exists: nothing but an abort or the runtime's shutdown can end it.
    Unwakeable {
        /// Whether a `JoinHandle` exists that can still abort it.
        abortable: bool,
    },
    /// In a run queue.
    Scheduled,
    /// Being polled.
    Running,
    /// Finished; its `JoinHandle` holds its memory and its output.
    Held,
    /// Finished and detached; wakers or abort handles hold its memory.
    Lingering,
}

impl State {
    /// What a state word says of a task of this kind; `None` where no task has such a word.
    ///
    /// A task begins with three references: the owner's list, the notification in the run queue, the `JoinHandle`. Each
    /// waker and each abort handle adds one. So besides a `JoinHandle` one reference alone means: only the list holds it.
    #[must_use]
    pub const fn of_word(word: u64, kind: Kind) -> Option<Self> {
        let references = word / REFERENCE;
        if references == 0 || references > REFERENCES_MAX {
            return None;
        }
        let joinable = word & JOIN_INTEREST != 0;
        match word & (RUNNING | COMPLETE) {
            COMPLETE if joinable => Some(Self::Held),
            COMPLETE => Some(Self::Lingering),
            RUNNING => Some(Self::Running),
            0 if word & NOTIFIED != 0 => Some(Self::Scheduled),
            // A blocking task is notified until it runs, and runs until it is complete.
            0 if matches!(kind, Kind::Blocking) => None,
            0 if references - joinable as u64 == 1 => Some(Self::Unwakeable { abortable: joinable }),
            0 => Some(Self::Idle),
            // transition_to_complete flips both at once.
            _ => None,
        }
    }

    /// Whether its future has not ended.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        !matches!(self, Self::Held | Self::Lingering)
    }
}

/// The words of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The state word.
    pub word: u64,
    /// What it says.
    pub state: State,
    /// Task id, unique in the process.
    pub id: u64,
    /// Id of the owner's list; 0 where the task was never in one.
    pub owner: u64,
    /// The scheduler's address, where the kind has one.
    pub scheduler: u64,
    /// Tag of the future's stage, where it can be read.
    pub stage: Option<u32>,
    /// Its neighbours in its owner's list, where they were read.
    pub neighbours: Neighbours,
}

/// Tags of `Stage` (`runtime/task/core.rs`, `repr(C)` since 1.40.0).
pub mod stage {
    /// The future.
    pub const RUNNING: u32 = 0;
    /// The output.
    pub const FINISHED: u32 = 1;
    /// Neither: the output was taken, or nobody wanted it. The tag of freed tasks.
    pub const CONSUMED: u32 = 2;
}

/// A task's neighbours in its owner's list; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Header before it.
    pub previous: u64,
    /// Header after it.
    pub next: u64,
}

impl Reading {
    /// Reads the bytes at a header, up to its task id; `None` where they can't be a task's.
    ///
    /// A task that is not yet in its owner's list is none either: it looks like the copy on the stack of the thread that
    /// has just made it.
    #[must_use]
    pub fn parse(bytes: &[u8], vtable_offset: u64, layout: &Layout) -> Option<Self> {
        let vtable = word_at(bytes, usize::try_from(vtable_offset).ok()?)?;
        let word = word_at(bytes, 0)?;
        let reading = Self {
            word,
            state: State::of_word(word, layout.kind).filter(|_| vtable == layout.vtable)?,
            id: word_at(bytes, layout.id_offset as usize)?,
            owner: word_at(bytes, OWNER_OFFSET)?,
            scheduler: match layout.kind {
                Kind::Blocking => 0,
                _ => word_at(bytes, layout.scheduler_offset as usize)?,
            },
            stage: match layout.staged {
                true => Some(word_at(bytes, layout.id_offset as usize + 8)? as u32),
                false => None,
            },
            neighbours: Neighbours::default(),
        };
        let owned = match layout.kind {
            // Never bound to a list (`task::unowned`).
            Kind::Blocking => reading.owner == 0,
            _ => (1..COUNTER_MAX).contains(&reading.owner) && reading.scheduler != 0 && is_address(reading.scheduler),
        };
        let plausible = (1..COUNTER_MAX).contains(&reading.id) && is_address(word_at(bytes, QUEUE_NEXT_OFFSET)?);
        (owned && plausible).then_some(reading)
    }

    /// Whether it could as well be the copy of a new task on the stack of the thread that made it.
    #[must_use]
    pub const fn may_be_copy(&self) -> bool {
        self.word == INITIAL && self.owner == 0
    }
}

impl Neighbours {
    /// Reads the bytes of a trailer's start; `None` where they can't be a list's pointers.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (previous, next) = (word_at(bytes, 0)?, word_at(bytes, 8)?);
        (is_address(previous) && is_address(next)).then_some(Self { previous, next })
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_alone(self) -> bool {
        self.previous == 0 && self.next == 0
    }
}

fn word_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// Whether it can be a pointer to something of words, or null.
const fn is_address(word: u64) -> bool {
    word < ADDRESS_MAX && word.is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn word(references: u64, bits: u64) -> u64 {
        (references * REFERENCE) | bits
    }

    #[test]
    fn the_word_tells_the_state() {
        let unwakeable = |abortable| Some(State::Unwakeable { abortable });
        for (word, expected) in [
            (INITIAL, Some(State::Scheduled)),
            (word(2, RUNNING), Some(State::Running)),
            (word(2, RUNNING | NOTIFIED | JOIN_INTEREST), Some(State::Running)),
            (word(3, JOIN_INTEREST), Some(State::Idle)),
            (word(2, 0), Some(State::Idle)),
            (word(1, 0), unwakeable(false)),
            (word(2, JOIN_INTEREST), unwakeable(true)),
            // The waker of who waits for the JoinHandle is no reference to the task itself.
            (word(2, JOIN_INTEREST | 16), unwakeable(true)),
            (word(1, COMPLETE | JOIN_INTEREST), Some(State::Held)),
            (word(3, COMPLETE | JOIN_INTEREST | NOTIFIED), Some(State::Held)),
            (word(1, COMPLETE), Some(State::Lingering)),
            (word(1, RUNNING | COMPLETE), None),
            // Freed: the last reference has gone.
            (word(0, COMPLETE), None),
            (word(0, 0), None),
            // Freed: an allocator's pointer.
            (0x7f12_3456_7890, None),
            (word(REFERENCES_MAX, 0), Some(State::Idle)),
            (word(REFERENCES_MAX + 1, 0), None),
        ] {
            assert_eq!(State::of_word(word, Kind::Task), expected, "{word:#x}");
        }
        assert_eq!(State::of_word(word(2, JOIN_INTEREST), Kind::Blocking), None);
        assert_eq!(State::of_word(INITIAL, Kind::Blocking), Some(State::Scheduled));
        assert!(State::Scheduled.is_alive() && !State::Held.is_alive());
    }

    fn layout(kind: Kind) -> Layout {
        Layout {
            vtable: 0x5000,
            task_type: 0,
            kind,
            scheduler_offset: 0x20,
            id_offset: 0x28,
            trailer_offset: 0x80,
            staged: false,
            bytes: None,
        }
    }

    fn header(words: [u64; 6]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn each_word_of_a_header_is_checked() {
        let good = [word(2, JOIN_INTEREST), 0, 0x5000, 1, 0x7f00_0000_1000, 9];
        let parse = |words, kind| Reading::parse(&header(words), 0x10, &layout(kind));
        let reading = parse(good, Kind::Task).unwrap();
        assert_eq!((reading.id, reading.owner, reading.scheduler), (9, 1, 0x7f00_0000_1000));
        for (index, bad) in [
            (0, 0),
            (1, 0x1001),
            (1, 1 << 47),
            (2, 0x5008),
            (3, 0),
            (3, COUNTER_MAX),
            (4, 0),
            (4, 0x7f00_0000_1001),
            (5, 0),
            (5, COUNTER_MAX),
        ] {
            let mut words = good;
            words[index] = bad;
            assert_eq!(parse(words, Kind::Task), None, "word {index} = {bad:#x}");
        }
        // A blocking task has no owner, and its scheduler is no address.
        let blocking = [INITIAL, 0, 0x5000, 0, 3, 9];
        assert!(parse(blocking, Kind::Blocking).unwrap().may_be_copy());
        assert_eq!(parse([INITIAL, 0, 0x5000, 1, 3, 9], Kind::Blocking), None);
        let staged = Layout {
            staged: true,
            ..layout(Kind::Task)
        };
        let mut with_stage = header(good);
        assert_eq!(Reading::parse(&with_stage, 0x10, &staged), None);
        with_stage.extend([1, 0, 0, 0, 9, 9, 9, 9]);
        let reading = Reading::parse(&with_stage, 0x10, &staged).unwrap();
        assert_eq!(reading.stage, Some(stage::FINISHED));
        for len in 0..48 {
            assert_eq!(Reading::parse(&header(good)[..len], 0x10, &layout(Kind::Task)), None);
        }
    }

    #[test]
    fn neighbours_are_addresses_or_none() {
        assert!(Neighbours::parse(&header([0, 0, 0, 0, 0, 0])).unwrap().is_alone());
        assert_eq!(
            Neighbours::parse(&header([0x1000, 0x2000, 0, 0, 0, 0])),
            Some(Neighbours {
                previous: 0x1000,
                next: 0x2000
            })
        );
        assert_eq!(Neighbours::parse(&header([3, 0, 0, 0, 0, 0])), None);
        assert_eq!(Neighbours::parse(&[0; 15]), None);
    }
}
