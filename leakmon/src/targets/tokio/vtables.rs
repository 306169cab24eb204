//! tokio's static task vtables: one for each pair of a future type and a scheduler.
//!
//! In: an image. Out: the vtables in it, by ascending address, and what they say of the task's memory. It looks at data, and
//! at whether code names a table without integers; `births` asks that code puts a vtable's address into a task, `completing`
//! that its `poll` leads to a completion.

use super::{
    super::{
        code,
        image::Image,
        references::{Reference, references},
    },
    version::Minors,
};
use leakmon_ebpf::abi::Kind;
use std::collections::BTreeMap;

/// How a range of tokio versions lays out `Vtable` and `Header`.
#[derive(Debug)]
pub(super) struct Shape {
    /// Function pointers at the vtable's start.
    functions: usize,
    /// Integers behind them: 0, 1 (the trailer's offset) or 3 (those of trailer, scheduler and id).
    integers: usize,
    /// The functions from which the drop glue of the task can be reached.
    pub(super) naming: &'static [usize],
    /// Which function is `poll`.
    pub(super) poll: usize,
    /// Which is `schedule`; the older versions have none.
    pub(super) schedule: Option<usize>,
    /// Where the pointer to the vtable is in `Header`.
    pub(super) vtable_offset: u64,
    /// Sizes of `Trailer`.
    pub(super) trailer_bytes: &'static [u64],
    /// Smallest `Header`.
    pub(super) header_bytes: u64,
    /// Minor versions of tokio 1 inspected.
    pub(super) minors: (u32, u32),
    /// How its tasks complete.
    pub(super) completion: Completion,
    /// Which function frees a task that the runtime has never taken on and drops unpolled when it shuts down: until 1.8 a task is
    /// bound to its scheduler by its first poll (1.0.3 to 1.8.5, `runtime/task/harness.rs`, `bind_scheduler`).
    pub(super) dealloc: Option<usize>,
}

/// What ends a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Completion {
    /// `State::transition_to_complete`.
    Transition,
    /// `Harness<T, S>::complete`, which only a symbol tells: `transition_to_complete` is reached only while the `JoinHandle` lives
    /// (1.0.3, 1.8.5, 1.9.0: `runtime/task/harness.rs`).
    Harness,
}

/// The known shapes, the most telling first: what one has claimed is no table of a later one.
///
/// With `tokio_unstable` a fourth integer follows the three (since 1.46), which is not needed here.
pub(super) const SHAPES: [Shape; 8] = [
    // tokio 1.23.1, 1.38.0, 1.54.1, `runtime/task/raw.rs` (`Vtable`: poll, schedule, dealloc, try_read_output,
    // drop_join_handle_slow, drop_abort_handle, shutdown; three offsets) and `runtime/task/core.rs` (`Header`: state, queue_next,
    // vtable, owner_id). Trailer: a list's two pointers and a waker of two words (1.23.1, 1.38.0), and a hook of two words more
    // (1.54.1).
    Shape {
        functions: 7,
        integers: 3,
        naming: &[2, 6, 4, 3, 0],
        poll: 0,
        schedule: Some(1),
        vtable_offset: 0x10,
        trailer_bytes: &[0x20, 0x30],
        header_bytes: 0x20,
        minors: (23, 54),
        completion: Completion::Transition,
        dealloc: None,
    },
    // tokio 1.21.2, 1.22.0: poll, dealloc, try_read_output, try_set_join_waker, drop_join_handle_slow, drop_abort_handle,
    // remote_abort, shutdown; the trailer's offset. Header and trailer as in 1.23.
    Shape {
        functions: 8,
        integers: 1,
        naming: &[1, 7, 4, 2, 0],
        poll: 0,
        schedule: None,
        vtable_offset: 0x10,
        trailer_bytes: &[0x20],
        header_bytes: 0x20,
        minors: (21, 22),
        completion: Completion::Transition,
        dealloc: None,
    },
    // tokio 1.18.6, 1.19.2, 1.20.6: the same functions, no offset. Header: state, owned (two pointers), queue_next, vtable,
    // owner_id; trailer: a waker.
    Shape {
        functions: 8,
        naming: &[1, 7, 4, 2, 0],
        minors: (18, 20),
        ..WITHOUT_INTEGERS
    },
    // tokio 1.17.0: no drop_abort_handle.
    Shape {
        functions: 7,
        naming: &[1, 6, 4, 2, 0],
        minors: (17, 17),
        ..WITHOUT_INTEGERS
    },
    // tokio 1.10.1, 1.13.1, 1.14.1, 1.15.0, 1.16.1: no try_set_join_waker either.
    Shape {
        functions: 6,
        naming: &[1, 5, 3, 2, 0],
        minors: (10, 16),
        ..WITHOUT_INTEGERS
    },
    // tokio 1.9.0: the same; no owner_id.
    Shape {
        functions: 6,
        naming: &[1, 5, 3, 2, 0],
        minors: (9, 9),
        completion: Completion::Harness,
        ..WITHOUT_INTEGERS
    },
    // tokio 1.5.1, 1.6.3, 1.7.2, 1.8.5. Header: state, owned, queue_next, stack_next, vtable.
    Shape {
        functions: 6,
        naming: &[1, 5, 3, 2, 0],
        vtable_offset: 0x28,
        minors: (5, 8),
        completion: Completion::Harness,
        dealloc: Some(1),
        ..WITHOUT_INTEGERS
    },
    // tokio 1.0.3, 1.4.0: no remote_abort.
    Shape {
        functions: 5,
        naming: &[1, 4, 3, 2, 0],
        vtable_offset: 0x28,
        minors: (0, 4),
        completion: Completion::Harness,
        dealloc: Some(1),
        ..WITHOUT_INTEGERS
    },
];

/// What the shapes without integers share.
const WITHOUT_INTEGERS: Shape = Shape {
    functions: 0,
    integers: 0,
    naming: &[],
    poll: 0,
    schedule: None,
    vtable_offset: 0x20,
    trailer_bytes: &[0x10],
    header_bytes: 0x28,
    minors: (0, 0),
    completion: Completion::Transition,
    dealloc: None,
};

/// In the symbol of every `poll` of a vtable, legacy or v0 (`runtime/task/raw.rs`).
const POLL_SYMBOL: &[u8] = b"4task3raw4poll";

/// Most vtables of an image; the largest program tried has some 1,200.
pub(super) const VTABLES_MAX: usize = 1 << 16;
/// Scheduler and id are within this of the header and of each other; the alignment of the future moves them.
const SCHEDULER_OFFSET_MAX: u64 = 0x1000;
const SCHEDULER_BYTES_MAX: u64 = 0x100;
/// Futures are smaller than this.
const TRAILER_OFFSET_MAX: u64 = 1 << 30;
/// `Arc<Handle>`, the scheduler of every task that is not blocking.
const ARC_BYTES: u64 = 8;

/// One vtable.
#[derive(Clone, Debug)]
pub(super) struct Vtable {
    pub(super) address: u64,
    /// Its functions, as many as the shape has.
    pub(super) functions: Vec<u64>,
    /// Offsets in the task's memory, as far as the vtable has them.
    pub(super) trailer_offset: Option<u64>,
    pub(super) scheduler_offset: Option<u64>,
    pub(super) id_offset: Option<u64>,
}

impl Vtable {
    /// `BlockingSchedule` (`runtime/blocking/schedule.rs`) is empty or a handle with its tag; every other scheduler is an `Arc`.
    /// `None` where the vtable doesn't say.
    pub(super) fn kind(&self) -> Option<Kind> {
        let scheduler_bytes = self.id_offset? - self.scheduler_offset?;
        Some(match scheduler_bytes {
            ARC_BYTES => Kind::Task,
            _ => Kind::Blocking,
        })
    }

    fn read(image: &Image<'_>, shape: &Shape, address: u64, functions: Vec<u64>) -> Option<Self> {
        let integer = |index: usize| match index < shape.integers {
            true => image
                .plain_word(address + 8 * (shape.functions + index) as u64)
                .filter(|integer| integer % 8 == 0)
                .map(Some),
            false => Some(None),
        };
        let [trailer_offset, scheduler_offset, id_offset] = [integer(0)?, integer(1)?, integer(2)?];
        let scheduled = scheduler_offset.zip(id_offset).is_none_or(|(scheduler, id)| {
            (shape.header_bytes..=SCHEDULER_OFFSET_MAX).contains(&scheduler)
                && (scheduler..=scheduler + SCHEDULER_BYTES_MAX).contains(&id)
        });
        let before_trailer = id_offset.unwrap_or(shape.header_bytes) + 8;
        let ordered = trailer_offset.is_none_or(|trailer| (before_trailer..TRAILER_OFFSET_MAX).contains(&trailer));
        (scheduled && ordered).then_some(Self {
            address,
            functions,
            trailer_offset,
            scheduler_offset,
            id_offset,
        })
    }
}

impl Shape {
    /// The versions, as in `1.23 to 1.54`.
    pub(super) fn versions(&self) -> String {
        format!("1.{} to 1.{}", self.minors.0, self.minors.1)
    }

    /// Where a table of this shape that begins at an address ends.
    fn end(&self, address: u64) -> u64 {
        address + 8 * (self.functions + self.integers) as u64
    }

    /// Whether a table of this shape is one beyond doubt, whatever its code does: three integers that fit each other were never met
    /// in anything else, and the last shapes are told by symbols.
    pub(super) fn is_proven(&self) -> bool {
        self.integers == 3 || self.completion == Completion::Harness
    }

    /// The functions that complete a task: `poll`, and `shutdown`, which is always the last.
    pub(super) fn completing(&self) -> [usize; 2] {
        [self.poll, self.functions - 1]
    }

    /// Whether an image that names these versions may have such tables. Tables that are told by their integers are looked for in
    /// every image; others only where no version is named, or one that has them.
    pub(super) fn is_sought(&self, minors: &Minors) -> bool {
        match (self.integers, self.completion) {
            (0, Completion::Transition) => minors.0.is_empty() || self.covers(minors),
            (0, Completion::Harness) => self.covers(minors),
            _ => true,
        }
    }

    /// Whether one of the versions has this shape.
    pub(super) fn covers(&self, minors: &Minors) -> bool {
        minors
            .0
            .iter()
            .any(|minor| (self.minors.0..=self.minors.1).contains(minor))
    }
}

/// All words that look like the start of a vtable of this shape, but for those of tables that reach into `claimed`.
pub(super) fn scan(image: &Image<'_>, shape: &Shape, claimed: &Claimed) -> Vec<Vtable> {
    let mut found = Vec::new();
    for window in image.words.windows(shape.functions) {
        let address = window[0].0;
        let consecutive = window
            .iter()
            .enumerate()
            .all(|(index, word)| word.0 == address + 8 * index as u64);
        if !consecutive
            || image.is_code(address)
            || !window.iter().all(|word| image.is_code(word.1))
            || claimed.overlaps(address, shape.end(address))
        {
            continue;
        }
        let functions = window.iter().map(|word| word.1).collect();
        if let Some(vtable) = Vtable::read(image, shape, address, functions) {
            found.push(vtable);
        }
        if found.len() >= VTABLES_MAX {
            break;
        }
    }
    if shape.integers == 0 {
        found = told_by_names(image, shape, found);
    }
    found
}

/// Tables without integers are told by what names them: code names the first word, and none of the others; the word behind is no
/// further function, unless another table begins there, or one of methods (a function for dropping, then two integers). Those
/// that only a symbol can complete need that of `poll`.
fn told_by_names(image: &Image<'_>, shape: &Shape, candidates: Vec<Vtable>) -> Vec<Vtable> {
    let words: Vec<u64> = candidates
        .iter()
        .flat_map(|vtable| (0..=shape.functions as u64).map(|index| vtable.address + 8 * index))
        .collect();
    let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for Reference { place, target } in references(image, &words) {
        places.entry(target).or_default().push(place);
    }
    // Near its data, code has chance matches: where a word must not be named, the instruction is looked at.
    let is_named = |word: u64| {
        let mut places = places.get(&word).into_iter().flatten();
        places.any(|place| code::names(image, *place, word))
    };
    let is_table = |vtable: &Vtable| {
        let inner = (1..shape.functions as u64).map(|index| vtable.address + 8 * index);
        let behind = shape.end(vtable.address);
        let follows = image.relocated_word(behind).is_some_and(|word| image.is_code(word));
        let proven = match shape.completion {
            Completion::Transition => true,
            Completion::Harness => image
                .symbols_at(vtable.functions[shape.poll])
                .any(|name| name.windows(POLL_SYMBOL.len()).any(|window| window == POLL_SYMBOL)),
        };
        proven
            && places.contains_key(&vtable.address)
            && (!follows || places.contains_key(&behind) || image.relocated_word(behind + 8).is_none())
            && !inner.into_iter().any(is_named)
    };
    candidates.into_iter().filter(is_table).collect()
}

/// Address ranges of the tables that earlier shapes have found.
#[derive(Debug, Default)]
pub(super) struct Claimed(BTreeMap<u64, u64>);

impl Claimed {
    /// Takes the tables of a shape.
    pub(super) fn add(&mut self, shape: &Shape, vtables: &[Vtable]) {
        self.0
            .extend(vtables.iter().map(|vtable| (vtable.address, shape.end(vtable.address))));
    }

    /// Whether a table has one of these addresses. A pointer that happens to be before it is no part of it, but would be taken
    /// for the first function of a shape that has one more.
    fn overlaps(&self, start: u64, end: u64) -> bool {
        let last = self.0.range(..end).next_back();
        last.is_some_and(|(_, last_end)| start < *last_end)
    }
}

#[cfg(test)]
mod tests;
