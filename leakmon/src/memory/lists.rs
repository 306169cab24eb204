//! The lists in which runtimes keep their tasks.
//!
//! In: tasks that were found. Out: those that their runtime's list has, so far as can be seen. A freed task was taken out of
//! its list, so it knows no neighbour, or what was written over it; whose neighbours know it is alive. What seems to be alone is
//! looked for in the lists themselves. A list is two words, its first and its last task (`LinkedList` of tokio's
//! `util/linked_list.rs`), in the scheduler itself (LocalSet, current-thread, multi-thread before 1.35 or so) or in a block that
//! it points to (`ShardedList`, since). So no offset has to be known: the scheduler and what it points to are searched for the
//! headers.
//!
//! The process runs on: what has changed since it was found was alive then, and stays, unless there are freed tasks of its type
//! that have not changed: then it was one of them, and its memory has been used again.

use super::{
    census::Found,
    header::{Neighbours, OWNER_OFFSET, Reading},
    layout::Layouts,
    places::{self, Place},
    reader::{Memory, MemoryError, Piece},
    states,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Schedulers that are searched: runtimes and LocalSets that have such tasks.
const SCHEDULERS_MAX: usize = 256;
/// Bytes of a scheduler that are searched; the largest is `multi_thread::Handle` with about 1 KiB.
const SCHEDULER_BYTES: usize = 4096;
/// Bytes of each block that it points to: 24 a list, and four lists a processor.
const BLOCK_BYTES: usize = 16 << 10;
/// Lists of several tasks from which others are looked for in one block: one finds all of its neighbours, and what is left of
/// others may look like one.
const PROOFS_MAX: usize = 4;
/// Words from one list to the next in a `ShardedList`: a lock, and the two ends.
const LIST_WORDS: usize = 3;
/// Largest state of a lock that is held for a moment (`sys/sync/mutex/futex.rs` of the standard library: 2; `parking_lot`: 3).
const LOCK_MAX: u32 = 3;
/// How far from the known vtables others may be: constants of one image lie together.
const VTABLES_BYTES: u64 = 1 << 20;
/// Pages below this are never mapped (`vm.mmap_min_addr`), and user addresses are below the other.
const ADDRESSES: std::ops::Range<u64> = 4096..1 << 47;

/// Leaves out living tasks that are in no list. Where a scheduler is one and none of its lists is found, those stay that seem to
/// be alone. `tasks` come by ascending address.
pub(super) fn without_unlisted(
    memory: &mut Memory,
    layouts: &Layouts,
    tasks: &mut Vec<Found>,
) -> Result<(), MemoryError> {
    let is_doubtful = |index: &usize| {
        let task = &tasks[*index];
        task.state.is_alive() && task.owner != 0 && !is_linked(tasks, *index)
    };
    let doubtful = (0..tasks.len()).filter(is_doubtful);
    let (alone, others): (Vec<usize>, Vec<usize>) = doubtful.partition(|index| tasks[*index].neighbours.is_alone());
    let mut unlisted = not_at_the_ends(memory, tasks, &alone)?;
    unlisted.extend(without_neighbours(memory, layouts, tasks, &others)?);
    if unlisted.is_empty() {
        return Ok(());
    }
    let places: Vec<Place> = unlisted.iter().map(|index| tasks[*index].place()).collect();
    let readings = places::read(memory, layouts, &places)?;
    let is_same = |task: &Found, reading: Option<Reading>| {
        reading.is_some_and(|reading| {
            reading.state.is_alive() && reading.id == task.id && reading.neighbours == task.neighbours
        })
    };
    let doubtful: Vec<(&Found, bool)> = unlisted
        .iter()
        .zip(readings)
        .map(|(index, reading)| (&tasks[*index], is_same(&tasks[*index], reading)))
        .collect();
    let freed: HashSet<u32> = doubtful
        .iter()
        .filter(|(_, same)| *same)
        .map(|(task, _)| task.layout)
        .collect();
    let unlisted: HashSet<u64> = doubtful
        .iter()
        .filter(|(task, _)| freed.contains(&task.layout))
        .map(|(task, _)| task.header)
        .collect();
    tasks.retain(|task| !unlisted.contains(&task.header));
    Ok(())
}

/// Whether a neighbour in the owner's list, one of `tasks`, has this task as its neighbour: then it is alive.
pub(super) fn is_linked(tasks: &[Found], index: usize) -> bool {
    let task = &tasks[index];
    let neighbours_of = |header: u64| find(tasks, index, header).map(|other| tasks[other].neighbours);
    let Neighbours { previous, next } = task.neighbours;
    neighbours_of(previous).is_some_and(|of| of.next == task.header)
        || neighbours_of(next).is_some_and(|of| of.previous == task.header)
}

/// Which of `tasks` has this header. Neighbours in a list mostly lie near to each other, so the search begins at `from`.
fn find(tasks: &[Found], from: usize, header: u64) -> Option<usize> {
    if header == 0 {
        return None;
    }
    let (mut low, mut high, mut step) = (from, from, 1);
    while tasks.get(low).is_some_and(|task| task.header > header) && low > 0 {
        (high, low, step) = (low, low.saturating_sub(step), 2 * step);
    }
    while tasks.get(high).is_some_and(|task| task.header < header) {
        (low, high, step) = (high, high + step, 2 * step);
    }
    let within = &tasks[low..tasks.len().min(high + 1)];
    let found = within.binary_search_by_key(&header, |task| task.header).ok()?;
    Some(low + found)
}

/// Of the tasks that seem to be alone, those that are not at both ends of a list.
fn not_at_the_ends(memory: &mut Memory, tasks: &[Found], alone: &[usize]) -> Result<Vec<usize>, MemoryError> {
    let mut schedulers: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut unlisted = HashSet::new();
    let of_owner = if alone.is_empty() {
        HashMap::new()
    } else {
        schedulers_by_owner(tasks)
    };
    for task in alone.iter().map(|index| &tasks[*index]) {
        match of_owner.get(&task.owner) {
            Some(scheduler) if *scheduler != task.scheduler => _ = unlisted.insert(task.header),
            _ => _ = schedulers.entry(task.scheduler).or_default().insert(task.header),
        }
    }
    for (scheduler, alone) in schedulers.into_iter().take(SCHEDULERS_MAX) {
        // The first task of a longer list proves that lists are found at all.
        let first = tasks
            .iter()
            .filter(|task| task.scheduler == scheduler && is_first(task))
            .map(|task| task.header);
        let first: HashSet<u64> = first.collect();
        let mut ends = Ends::default();
        ends.search(memory, scheduler, &first, &alone)?;
        let listed = if ends.proven { &ends.alone } else { &ends.elsewhere };
        if ends.proven || !listed.is_empty() || !ends.counted {
            unlisted.extend(alone.difference(listed).copied());
        }
    }
    let is_unlisted = |index: &usize| unlisted.contains(&tasks[*index].header);
    Ok(alone.iter().copied().filter(is_unlisted).collect())
}

/// The scheduler of each list, by its linked tasks: a list has one.
fn schedulers_by_owner(tasks: &[Found]) -> HashMap<u64, u64> {
    let linked = (0..tasks.len()).filter(|index| tasks[*index].state.is_alive() && is_linked(tasks, *index));
    linked
        .map(|index| (tasks[index].owner, tasks[index].scheduler))
        .collect()
}

/// Of the tasks that say that they have neighbours, those that no neighbour knows. A neighbour whose type is not known can't
/// be asked, but has the same owner, and a vtable where the others are.
fn without_neighbours(
    memory: &mut Memory,
    layouts: &Layouts,
    tasks: &[Found],
    others: &[usize],
) -> Result<Vec<usize>, MemoryError> {
    let of = |index: &usize| {
        let Neighbours { previous, next } = tasks[*index].neighbours;
        [previous, next].into_iter().filter(|header| *header != 0)
    };
    let headers: BTreeSet<u64> = others.iter().flat_map(of).collect();
    let headers: Vec<u64> = headers.into_iter().collect();
    let known = states::read_known(memory, layouts, &headers)?;
    let owners = owners(memory, layouts, &headers)?;
    let answers = known.into_iter().zip(owners);
    let answers: HashMap<u64, (Option<Reading>, Option<u64>)> = headers.iter().copied().zip(answers).collect();
    let knows = |header: &u64, index: usize| match answers.get(header) {
        Some((Some(reading), _)) => {
            let Neighbours { previous, next } = reading.neighbours;
            [previous, next].contains(&tasks[index].header)
        }
        Some((None, owner)) => *owner == Some(tasks[index].owner),
        None => false,
    };
    let is_unlisted = |index: &usize| !of(index).any(|header| knows(&header, *index));
    Ok(others.iter().copied().filter(is_unlisted).collect())
}

/// The owner of each header that has a vtable in the neighbourhood of the known ones. By ascending address.
fn owners(memory: &mut Memory, layouts: &Layouts, headers: &[u64]) -> Result<Vec<Option<u64>>, MemoryError> {
    let (lowest, highest) = layouts.bounds();
    let near = lowest.saturating_sub(VTABLES_BYTES)..highest.saturating_add(VTABLES_BYTES);
    let piece = |header: &u64| Piece {
        address: header.saturating_add(layouts.vtable_offset),
        len: (OWNER_OFFSET as u32 + 8).saturating_sub(layouts.vtable_offset as u32),
    };
    let pieces: Vec<Piece> = headers.iter().map(piece).collect();
    let mut owners = vec![None; headers.len()];
    memory.read_pieces(&pieces, |index, bytes| {
        let found = words(bytes.unwrap_or_default());
        if let [vtable, .., owner] = found[..]
            && near.contains(&vtable)
        {
            owners[index] = Some(owner);
        }
    })?;
    Ok(owners)
}

const fn is_first(task: &Found) -> bool {
    task.state.is_alive() && task.neighbours.previous == 0 && task.neighbours.next != 0
}

/// What was found of one scheduler's lists.
#[derive(Default)]
struct Ends {
    /// Tasks that are both ends of a list beside one of several tasks.
    alone: BTreeSet<u64>,
    /// The same, where no list of several tasks is near.
    elsewhere: BTreeSet<u64>,
    /// Whether a list of several tasks was found.
    proven: bool,
    /// Whether the scheduler begins as an `Arc` does, with two counts (`ArcInner` of the standard library).
    counted: bool,
}

impl Ends {
    fn search(
        &mut self,
        memory: &mut Memory,
        scheduler: u64,
        first: &HashSet<u64>,
        alone: &BTreeSet<u64>,
    ) -> Result<(), MemoryError> {
        let mut own = vec![0; SCHEDULER_BYTES];
        let read = memory.read(scheduler, &mut own)?;
        let own = words(&own[..read]);
        self.counted = matches!(own[..], [strong, weak, ..] if is_count(strong) && is_count(weak));
        self.note(&own, first, alone);
        let blocks: BTreeSet<u64> = own.into_iter().filter(|word| is_address(*word)).collect();
        let mut block = vec![0; BLOCK_BYTES];
        for address in blocks {
            let read = memory.read(address, &mut block)?;
            self.note(&words(&block[..read]), first, alone);
        }
        Ok(())
    }

    /// Notes the lists among these words. Where there is one of several tasks, only its neighbours are lists too: what else
    /// looks like one is what others have left.
    fn note(&mut self, words: &[u64], first: &HashSet<u64>, alone: &BTreeSet<u64>) {
        let lists: Vec<usize> = (1..words.len())
            .filter(|at| {
                ends_at(words, *at)
                    .is_some_and(|[one, other]| one != other && (first.contains(&one) || first.contains(&other)))
            })
            .take(PROOFS_MAX)
            .collect();
        self.proven |= !lists.is_empty();
        for list in lists {
            let onwards = (list..words.len()).step_by(LIST_WORDS);
            let back = (1..=list).rev().step_by(LIST_WORDS);
            for part in [onwards.collect::<Vec<_>>(), back.collect()] {
                let ends = part.into_iter().map_while(|at| ends_at(words, at));
                self.alone.extend(
                    ends.filter(|[one, other]| one == other && alone.contains(one))
                        .map(|[one, _]| one),
                );
            }
        }
        let pairs = words
            .windows(2)
            .filter(|pair| pair[0] == pair[1] && alone.contains(&pair[0]));
        self.elsewhere.extend(pairs.map(|pair| pair[0]));
    }
}

/// The ends of the list that may be at these words, behind the word of its lock (`Mutex` of the standard library and of
/// `parking_lot`: a state below 4 in its first four bytes).
fn ends_at(words: &[u64], at: usize) -> Option<[u64; 2]> {
    let [lock, one, other] = *words.get(at.checked_sub(1)?..)?.first_chunk()?;
    let is_list = lock as u32 <= LOCK_MAX && (one == 0) == (other == 0);
    (is_list && [one, other].iter().all(|end| *end == 0 || is_address(*end))).then_some([one, other])
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .filter_map(|word| word.first_chunk().copied())
        .map(u64::from_le_bytes)
        .collect()
}

/// Whether so many references can exist.
fn is_count(word: u64) -> bool {
    (1..1 << 32).contains(&word)
}

fn is_address(word: u64) -> bool {
    ADDRESSES.contains(&word) && word.is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::census::tests::linked;
    use proptest::prelude::*;

    #[test]
    fn a_task_is_linked_where_a_neighbour_knows_it() {
        // A list of three, of which the second was not found; one that claims a neighbour, and one that has none.
        let tasks = linked(&[
            (0x100, 0, 0x180),
            (0x200, 0x180, 0x300),
            (0x300, 0x200, 0),
            (0x400, 0x300, 0),
            (0x500, 0, 0),
        ]);
        let linked: Vec<bool> = (0..tasks.len()).map(|index| is_linked(&tasks, index)).collect();
        assert_eq!(linked, [false, true, true, false, false]);
        // One scheduler for all in these tests, by the two that are linked.
        assert_eq!(schedulers_by_owner(&tasks), HashMap::from([(1, 8)]));
    }

    proptest! {
        #[test]
        fn a_header_is_found_from_wherever_the_search_begins(
            headers in prop::collection::btree_set(1_u64..500, 1..100),
            from in any::<prop::sample::Index>(),
            wanted in 0_u64..510,
        ) {
            let headers: Vec<u64> = headers.into_iter().collect();
            let tasks = linked(&headers.iter().map(|header| (*header, 0, 0)).collect::<Vec<_>>());
            let found = find(&tasks, from.index(tasks.len()), wanted);
            prop_assert_eq!(found, headers.iter().position(|header| *header == wanted));
        }
    }

    #[test]
    fn both_ends_of_a_list_prove_a_task_and_one_end_proves_the_lists() {
        let (first, alone) = (HashSet::from([0x1000]), BTreeSet::from([0x2000, 0x3000]));
        let ends = |words: &[u64]| {
            let mut ends = Ends::default();
            ends.note(words, &first, &alone);
            let all = |headers: BTreeSet<u64>| headers.into_iter().collect::<Vec<_>>();
            (ends.proven, all(ends.alone), all(ends.elsewhere))
        };
        assert_eq!(ends(&[1, 0x2000, 0x2000, 0x3000, 0]), (false, vec![], vec![0x2000]));
        assert_eq!(ends(&[0, 0x1000, 0x1800, 0]), (true, vec![], vec![]));
        assert_eq!(ends(&[0, 0x1800, 0x1000]), (true, vec![], vec![]));
        assert_eq!(ends(&[0, 0x3000, 0x2000, 5]), (false, vec![], vec![]));
        assert_eq!(ends(&[]), (false, vec![], vec![]));
        // Lists on both sides, one of them empty, and what lies behind where no lock is.
        let lists = [0, 0x2000, 0x2000, 1, 0x1800, 0x1000, 0, 0, 0, 9, 0x3000, 0x3000];
        assert_eq!(ends(&lists), (true, vec![0x2000], vec![0x2000, 0x3000]));
    }

    #[test]
    fn only_addresses_are_followed() {
        for (word, expected) in [
            (0, false),
            (4088, false),
            (4096, true),
            (0x5001, false),
            (1 << 47, false),
        ] {
            assert_eq!(is_address(word), expected, "{word:#x}");
        }
        assert_eq!(words(&[1, 0, 0, 0, 0, 0, 0, 0, 9]), [1]);
    }
}
