//! The ends of the lists in which runtimes keep their tasks.
//!
//! In: tasks that seem to be the only ones in their list, as every freed task seems to be. Out: those that really are. A list is
//! two words, its first and its last task (`LinkedList` of tokio's `util/linked_list.rs`), in the scheduler itself (LocalSet,
//! current-thread, multi-thread before 1.35 or so) or in a block that it points to (`ShardedList`, since). So no offset has to be known:
//! the scheduler and what it points to are searched for the headers.

use super::{
    census::Found,
    reader::{Memory, MemoryError},
};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Schedulers that are searched: runtimes and LocalSets that have such tasks.
const SCHEDULERS_MAX: usize = 256;
/// Bytes of a scheduler that are searched; the largest is `multi_thread::Handle` with about 1 KiB.
const SCHEDULER_BYTES: usize = 4096;
/// Bytes of each block that it points to: 24 a list, and four lists a processor.
const BLOCK_BYTES: usize = 16 << 10;
/// Pages below this are never mapped (`vm.mmap_min_addr`), and user addresses are below the other.
const ADDRESSES: std::ops::Range<u64> = 4096..1 << 47;

/// Leaves out tasks that seem to be alone in their list and are not at its ends. Where none of a scheduler's lists is found, all
/// of its tasks stay.
pub(super) fn without_unlisted(memory: &mut Memory, tasks: &mut Vec<Found>) -> Result<(), MemoryError> {
    let mut schedulers: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| seems_alone(task)) {
        schedulers.entry(task.scheduler).or_default().insert(task.header);
    }
    let mut unlisted = HashSet::new();
    for (scheduler, alone) in schedulers.into_iter().take(SCHEDULERS_MAX) {
        // The first task of a longer list proves that lists are found at all.
        let first = tasks
            .iter()
            .filter(|task| task.scheduler == scheduler && is_first(task))
            .map(|task| task.header);
        let first: HashSet<u64> = first.collect();
        let mut ends = Ends::default();
        ends.search(memory, scheduler, &first, &alone)?;
        if ends.proven || !ends.alone.is_empty() {
            unlisted.extend(alone.difference(&ends.alone).copied());
        }
    }
    tasks.retain(|task| !unlisted.contains(&task.header));
    Ok(())
}

const fn seems_alone(task: &Found) -> bool {
    task.state.is_alive() && !task.unowned && task.neighbours.is_alone()
}

const fn is_first(task: &Found) -> bool {
    task.state.is_alive() && task.neighbours.previous == 0 && task.neighbours.next != 0
}

/// What was found of one scheduler's lists.
#[derive(Default)]
struct Ends {
    /// Tasks that are both ends of a list.
    alone: BTreeSet<u64>,
    /// Whether a list of several tasks was found.
    proven: bool,
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
        let read = read_block(memory, scheduler, &mut own)?;
        let own = words(&own[..read]);
        self.note(&own, first, alone);
        let blocks: BTreeSet<u64> = own.into_iter().filter(|word| is_address(*word)).collect();
        let mut block = vec![0; BLOCK_BYTES];
        for address in blocks {
            let read = read_block(memory, address, &mut block)?;
            self.note(&words(&block[..read]), first, alone);
        }
        Ok(())
    }

    fn note(&mut self, words: &[u64], first: &HashSet<u64>, alone: &BTreeSet<u64>) {
        for pair in words.windows(2) {
            self.proven |= pair[0] != pair[1] && (first.contains(&pair[0]) || first.contains(&pair[1]));
            if pair[0] == pair[1] && alone.contains(&pair[0]) {
                self.alone.insert(pair[0]);
            }
        }
    }
}

/// Reads up to where memory ends.
fn read_block(memory: &mut Memory, address: u64, into: &mut [u8]) -> Result<usize, MemoryError> {
    memory.read(address, into)
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .filter_map(|word| word.first_chunk().copied())
        .map(u64::from_le_bytes)
        .collect()
}

fn is_address(word: u64) -> bool {
    ADDRESSES.contains(&word) && word.is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_list_prove_a_task_and_one_end_proves_the_lists() {
        let (first, alone) = (HashSet::from([0x100]), BTreeSet::from([0x200, 0x300]));
        let ends = |words: &[u64]| {
            let mut ends = Ends::default();
            ends.note(words, &first, &alone);
            (ends.proven, ends.alone.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(ends(&[1, 0x200, 0x200, 0x300, 0]), (false, vec![0x200]));
        assert_eq!(ends(&[0x100, 0x180, 0, 0]), (true, vec![]));
        assert_eq!(ends(&[0x180, 0x100]), (true, vec![]));
        assert_eq!(ends(&[0x300, 0x200, 5]), (false, vec![]));
        assert_eq!(ends(&[]), (false, vec![]));
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
