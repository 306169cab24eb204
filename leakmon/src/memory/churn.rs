//! Types whose tasks come and go while a census is taken.
//!
//! In: the tasks of a scan, a moment later. Out: the same, with those of a second scan for the types that have changed meanwhile.
//! The scan of a large process takes long: a task that begins where it has been, in place of one that ends where it has not, is
//! never seen. So what lies around the tasks of such a type is read again, and looked at only then, which takes milliseconds.
//! Quiet types stay as they are.

use super::{
    census::{Census, Found, TASKS_MAX, resident},
    layout::Layouts,
    places::{self, Place},
    reader::{Memory, MemoryError},
    scan::Scanner,
};
use crate::targets::memory_map;
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// Tasks of a type that are looked at, evenly spread; half as many at least where a type has more. If one percent of them had
/// ended, all of 500 would still be there once in 150 times (0.99 to the power of 500).
const LOOKED_AT_MAX: usize = 1_000;
/// What lies around a task: tasks begin where others were before.
const WINDOW_BYTES: u64 = 1 << 20;
/// Bytes that are read again at most, in a third of a second; where it is more, the first scan stands, and the census says that its
/// numbers are lower bounds.
pub(super) const AGAIN_BYTES_MAX: u64 = 1 << 30;

/// Bytes that are read before any of them is looked at: what memory gives in a hundredth of a second.
const MOMENT_BYTES: usize = 64 << 20;
/// Of them, for what was not resident at the first scan.
const NEW_BYTES: usize = 4 << 20;

/// Puts the tasks of a second scan in place of those of types that have changed since the first. `scanned` are its ranges, by
/// ascending address; so are the census's tasks, before and after. Where more than `bytes_max`
/// would have to be read, the first scan stands.
pub(super) fn scan_changed(
    memory: &mut Memory,
    layouts: &Layouts,
    scanned: &[Range<u64>],
    bytes_max: u64,
    census: &mut Census,
) -> Result<(), MemoryError> {
    let Census {
        tasks,
        refused_tasks,
        unsettled_types,
        ..
    } = census;
    let changed = changed(memory, layouts, tasks)?;
    if changed.is_empty() {
        return Ok(());
    }
    let of_types = tasks.iter().filter(|task| changed.contains(&task.layout));
    let windows: HashSet<u64> = of_types.map(|task| task.header / WINDOW_BYTES).collect();
    let bytes = windows.len().saturating_mul(WINDOW_BYTES as usize) + NEW_BYTES;
    // Not zero, so that its pages are there before the moment begins.
    let buffer = vec![u8::MAX; bytes.min(MOMENT_BYTES)];
    let ranges = around(memory, scanned, &windows)?;
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    if bytes > bytes_max {
        *unsettled_types += changed.len() as u64;
        return Ok(());
    }
    let mut again = Vec::new();
    let mut scanner = Scanner::new(layouts);
    scanner.scan_moment(memory, &ranges, buffer, |place, reading| {
        match changed.contains(&place.layout) {
            true if again.len() < TASKS_MAX => again.push(Found::new(place, reading)),
            true => *refused_tasks += 1,
            false => {}
        }
    })?;
    let before = |task: &Found| {
        let index = tasks.binary_search_by_key(&task.header, |before| before.header).ok()?;
        Some(tasks[index]).filter(|before| before.id == task.id)
    };
    again.retain_mut(|task| {
        let before = before(task);
        // What the first scan has not seen can't be unwakeable for long.
        task.word = before.map_or(0, |before| before.word);
        task.state.is_alive() || before.is_some_and(|before| before.state == task.state)
    });
    tasks.retain(|task| !changed.contains(&task.layout));
    tasks.append(&mut again);
    tasks.sort_unstable_by_key(|task| task.header);
    tasks.dedup_by_key(|task| task.header);
    Ok(())
}

/// The types of which a task has ended since it was found.
fn changed(memory: &mut Memory, layouts: &Layouts, tasks: &[Found]) -> Result<HashSet<u32>, MemoryError> {
    let alive = || tasks.iter().filter(|task| task.state.is_alive());
    let mut counts: HashMap<u32, usize> = HashMap::new();
    alive().for_each(|task| *counts.entry(task.layout).or_default() += 1);
    let mut seen: HashMap<u32, usize> = HashMap::new();
    let is_looked_at = |task: &&Found| {
        let seen = seen.entry(task.layout).or_default();
        *seen += 1;
        let step = counts
            .get(&task.layout)
            .map_or(1, |count| count.div_ceil(LOOKED_AT_MAX));
        seen.is_multiple_of(step)
    };
    let looked_at: Vec<&Found> = alive().filter(is_looked_at).collect();
    let places: Vec<Place> = looked_at.iter().map(|task| task.place()).collect();
    let readings = places::read(memory, layouts, &places)?;
    let ended = looked_at
        .into_iter()
        .zip(readings)
        .filter(|(task, reading)| reading.is_none_or(|reading| reading.id != task.id));
    Ok(ended.map(|(task, _)| task.layout).collect())
}

/// What is resident now in these windows, and what was not resident at the first scan: there too tasks begin.
fn around(memory: &Memory, scanned: &[Range<u64>], windows: &HashSet<u64>) -> Result<Vec<Range<u64>>, MemoryError> {
    let is_new = |part: &Range<u64>| {
        let at = scanned.partition_point(|range| range.end <= part.start);
        scanned
            .get(at)
            .is_none_or(|range| range.start > part.start || range.end < part.end)
    };
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let regions =
        memory_map::writable_regions(memory.tgid()).map_err(|error| MemoryError::of_process(memory.tgid(), error))?;
    for range in resident(memory, &regions, &mut Census::default())? {
        let mut start = range.start;
        while start < range.end {
            let window = start / WINDOW_BYTES;
            let part = start..range.end.min((window + 1) * WINDOW_BYTES);
            start = part.end;
            if !windows.contains(&window) && !is_new(&part) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => ranges.push(part),
            }
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::tests::layouts;

    /// Where the tasks are in the memory of this process.
    const AT: [usize; 5] = [0x0, 0x200, 0x400, 0x600, 0x800];
    const WORD: u64 = 3 << 6 | 8;

    fn put(memory: &mut [u64], at: usize, vtable: u64, id: u64) {
        memory[at / 8..at / 8 + 6].copy_from_slice(&[WORD, 0, vtable, 1, 0x7f00_0000_1000, id]);
    }

    fn scanned(memory: &mut Memory, layouts: &Layouts, range: &Range<u64>) -> Vec<Found> {
        let mut found = Vec::new();
        let tell = |place, reading: &_| found.push(Found::new(place, reading));
        Scanner::new(layouts).scan(memory, range, |_| true, tell).unwrap();
        found
    }

    #[test]
    fn a_type_that_has_changed_is_scanned_again_and_the_others_stay() {
        let (changing, quiet) = (0x5000, 0x5080);
        let mut memory = vec![0_u64; 1 << 14];
        put(&mut memory, AT[0], changing, 1);
        put(&mut memory, AT[1], quiet, 2);
        put(&mut memory, AT[2], changing, 3);
        let layouts = layouts(8);
        let start = memory.as_ptr() as u64;
        let mut own = Memory::open(std::process::id(), start).unwrap();
        let whole = start / WINDOW_BYTES * WINDOW_BYTES..start + (1 << 17);
        let mut census = Census {
            tasks: scanned(&mut own, &layouts, &(start..start + 0x1000)),
            resident_bytes: 1,
            scanned_bytes: 1,
            ..Census::default()
        };
        // What else this process has in new memory, copies of all this among it, does not matter here.
        let here = |tasks: &[Found]| -> Vec<(u64, u64)> {
            let here = tasks.iter().filter(|task| (start..whole.end).contains(&task.header));
            here.map(|task| (task.id, task.word)).collect()
        };
        let ids = |tasks: &[Found]| here(tasks).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let again = |own: &mut Memory, bytes_max, census: &mut Census| {
            scan_changed(own, &layouts, std::slice::from_ref(&whole), bytes_max, census).unwrap();
        };
        assert_eq!(ids(&census.tasks), [1, 2, 3]);

        // Births alone change nothing: the first scan was right in its moment.
        put(&mut memory, AT[3], changing, 4);
        again(&mut own, AGAIN_BYTES_MAX, &mut census);
        assert_eq!(ids(&census.tasks), [1, 2, 3]);

        // One has ended, two were born; a finished one was not there before, so it may be about to go.
        memory[AT[0] / 8] = 0;
        put(&mut memory, AT[4], changing, 5);
        memory[AT[4] / 8] = 1 << 6 | 8 | 2;
        // Where that is too much to read, the first scan stands, and the census says so.
        again(&mut own, WINDOW_BYTES - 1, &mut census);
        assert_eq!((ids(&census.tasks), census.unsettled_types), (vec![1, 2, 3], 1));
        assert!(census.share() < 1.0);
        again(&mut own, AGAIN_BYTES_MAX, &mut census);
        assert_eq!(here(&census.tasks), [(2, WORD), (3, WORD), (4, 0)]);
    }
}
