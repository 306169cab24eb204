//! The tasks that a process holds, by type and state, from its memory alone.
//!
//! In: an open [`Memory`] and the layouts of its image. Out: a [`Census`]. It needs no probe and no symbol, and nothing of what
//! was born before: a task is found by its vtable's address in its header.
//!
//! 1. The resident pages of the writable private mappings are scanned for vtables, and what is found is read in the same moment
//!    (`scan`): that counts, whatever ends or begins afterwards. Freed tasks are told by their state word: the last reference has
//!    gone, or the allocator has written over it.
//! 2. After a moment, types of which tasks have ended meanwhile are scanned again, faster, where they are (`churn`).
//! 3. What could be the copy of a new task on a stack is left out, and what its runtime's list does not have: so looks a freed
//!    task whose memory was used again (`lists`). Since tokio 1.40 the tag of its stage tells too.
//! 4. Those that seem unwakeable, and finished ones, are read again, the latter a quarter of a second later: what was about to be
//!    woken, or awaited, is neither unwakeable nor held.
//!
//! Time, bytes and places are bounded, and there is rest in between (`pace`); what was not read is told by [`Census::share`].

use super::{
    churn::{AGAIN_BYTES_MAX, scan_changed},
    header::{Neighbours, Reading, State, stage},
    layout::Layouts,
    lists::{is_linked, without_unlisted},
    pace::Pace,
    places::{self, Place},
    reader::{Memory, MemoryError},
    scan::Scanner,
    states::Suspects,
};
use crate::targets::memory_map::{self, PAGE_BYTES, Region};
use std::{
    collections::HashSet,
    ops::Range,
    time::{Duration, Instant},
};

/// Tasks that are kept: two million, some 150 MB.
pub const TASKS_MAX: usize = 1 << 21;
/// Pages of address space whose residence is asked for: 256 GiB. Sanitizers reserve far more.
const PAGES_MAX: u64 = 1 << 26;
/// How long before a census another must have been taken to confirm it.
const KEPT_CONFIRM: Duration = Duration::from_secs(1);
/// How long it takes until a type that changes is seen to.
const MOMENT: Duration = Duration::from_millis(2);
/// How long a finished task must be held: who awaits its handle takes it within some turns of the scheduler, on a busy machine too.
const HELD_CONFIRM: Duration = Duration::from_millis(250);
/// Ranges in which tasks were found before, at most.
const ARENAS_MAX: usize = 4096;
/// Neighbouring places belong to one arena where they are closer than this.
const ARENA_GAP_BYTES: u64 = 1 << 20;

/// How much a census may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the target's memory that are scanned.
    pub bytes_max: u64,
    /// How long the scan may take.
    pub time_max: Duration,
    /// How long to wait for the second reading of tasks that seem unwakeable; zero leaves them unconfirmed.
    pub confirm: Duration,
}

/// One task. Small, since there may be a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Address of its header.
    pub header: u64,
    /// Task id.
    pub id: u64,
    /// Its neighbours in its owner's list.
    pub(super) neighbours: Neighbours,
    /// The scheduler's address.
    pub(super) scheduler: u64,
    /// Id of the list that owns it; 0 where it was never in one.
    pub(super) owner: u64,
    /// The state word; 0 where the task was not there the first time.
    pub(super) word: u64,
    /// Index in [`Layouts::types`].
    pub layout: u32,
    /// What its state word says.
    pub state: State,
    /// Tag of its stage, where it can be read.
    stage: Option<u32>,
    /// See [`Reading::may_be_copy`].
    may_be_copy: bool,
    /// Whether it seems unwakeable and had the same state word before, long enough ago.
    pub confirmed: bool,
}

impl Found {
    pub(super) const fn new(place: Place, reading: &Reading) -> Self {
        Self {
            header: place.header,
            id: reading.id,
            neighbours: reading.neighbours,
            scheduler: reading.scheduler,
            owner: reading.owner,
            word: reading.word,
            layout: place.layout,
            state: reading.state,
            stage: reading.stage,
            may_be_copy: reading.may_be_copy(),
            confirmed: false,
        }
    }

    pub(super) const fn place(&self) -> Place {
        Place {
            header: self.header,
            layout: self.layout,
        }
    }
}

/// Tasks of one type, or of all types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Waiting for a waker, the unwakeable ones included.
    pub idle: u64,
    /// In a run queue.
    pub scheduled: u64,
    /// Being polled.
    pub running: u64,
    /// Of the idle ones, those that no waker can wake, confirmed.
    pub unwakeable: u64,
    /// Of the unwakeable ones, those that a `JoinHandle` can still abort.
    pub abortable: u64,
    /// Finished, held by a `JoinHandle`.
    pub held: u64,
    /// Finished, held by wakers or abort handles alone.
    pub lingering: u64,
}

impl Tally {
    /// Tasks that have not ended.
    #[must_use]
    pub const fn alive(&self) -> u64 {
        self.idle + self.scheduled + self.running
    }

    /// Adds a task in this state.
    pub const fn add(&mut self, state: State, confirmed: bool) {
        match state {
            State::Scheduled => self.scheduled += 1,
            State::Running => self.running += 1,
            State::Held => self.held += 1,
            State::Lingering => self.lingering += 1,
            State::Idle => self.idle += 1,
            State::Unwakeable { abortable } => {
                self.idle += 1;
                self.unwakeable += confirmed as u64;
                self.abortable += (confirmed && abortable) as u64;
            }
        }
    }
}

/// What a process holds.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// By ascending address.
    pub tasks: Vec<Found>,
    /// The tasks of each type, in the order of [`Layouts::types`].
    pub tallies: Vec<Tally>,
    /// Bytes of the mappings that were in memory.
    pub resident_bytes: u64,
    /// Of them, scanned.
    pub scanned_bytes: u64,
    /// Bytes that are in swap, which are left there.
    pub swapped_bytes: u64,
    /// Tasks that found no room.
    pub refused_tasks: u64,
    /// Types that changed meanwhile and lie too widely to be scanned again: of them some tasks are missing.
    pub unsettled_types: u64,
    /// How long it took, the wait for a confirmation left out.
    pub took: Duration,
}

impl Census {
    /// How much of the process's memory was read, from 0 to 1: less than 1 where any bound was met, or memory is in swap.
    #[must_use]
    pub fn share(&self) -> f64 {
        let all = self.resident_bytes + self.swapped_bytes;
        match (all, self.refused_tasks + self.unsettled_types) {
            (0, _) => 1.0,
            // How many more there are is not known.
            (_, 1..) => (self.scanned_bytes as f64 / all as f64).min(0.99),
            _ => self.scanned_bytes as f64 / all as f64,
        }
    }
}

/// What a census leaves for the next one of the same process.
#[derive(Clone, Debug, Default)]
pub struct Memories {
    /// Where tasks were found: these ranges are scanned first.
    arenas: Vec<Range<u64>>,
    suspects: Suspects,
}

/// Takes a census. `progress` is told the bytes scanned and the bytes to scan.
///
/// # Errors
/// See [`MemoryError`]: then nothing is known, for the process has ended, or runs another program.
pub fn take(
    memory: &mut Memory,
    layouts: &Layouts,
    limits: Limits,
    memories: &mut Memories,
    progress: impl FnMut(u64, u64),
) -> Result<Census, MemoryError> {
    let began = Instant::now();
    let regions =
        memory_map::writable_regions(memory.tgid()).map_err(|error| MemoryError::of_process(memory.tgid(), error))?;
    let mut census = Census::default();
    let ranges = resident(memory, &regions, &mut census)?;
    let ordered = in_order(ranges.clone(), &memories.arenas);
    scan(memory, layouts, limits, ordered, &mut census, progress)?;
    let waited = if census.tasks.iter().any(|task| is_unwakeable(task.state)) {
        limits.confirm
    } else {
        Duration::ZERO
    };
    std::thread::sleep(waited.max(MOMENT));
    scan_changed(memory, layouts, &ranges, AGAIN_BYTES_MAX, &mut census)?;
    without_unlisted(memory, layouts, &mut census.tasks)?;
    without_copies(&mut census.tasks, &regions);
    without_remains(&mut census.tasks);
    let waited = if census.tasks.iter().any(|task| !task.state.is_alive()) {
        std::thread::sleep(HELD_CONFIRM);
        waited + HELD_CONFIRM
    } else {
        waited
    };
    let confirmed = !limits.confirm.is_zero();
    let suspects = read_again(memory, layouts, &mut census.tasks, &memories.suspects, confirmed)?;
    // What was read is one program's only if it still runs.
    memory.check()?;

    census.tallies = vec![Tally::default(); layouts.types().len()];
    for task in &census.tasks {
        if let Some(tally) = census.tallies.get_mut(task.layout as usize) {
            tally.add(task.state, task.confirmed);
        }
    }
    *memories = Memories {
        arenas: arenas_of(&census.tasks),
        suspects,
    };
    census.took = began.elapsed().saturating_sub(waited);
    Ok(census)
}

/// The resident ranges of the regions, by ascending address; the bytes of all are added to the census.
pub(super) fn resident(
    memory: &Memory,
    regions: &[Region],
    census: &mut Census,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let mut ranges = Vec::new();
    let mut pages_left = PAGES_MAX;
    for region in regions {
        let pages = (region.bytes() / PAGE_BYTES).min(pages_left);
        pages_left -= pages;
        let found = memory.resident(region.start..region.start + pages * PAGE_BYTES)?;
        census.swapped_bytes += found.swapped_bytes;
        // What lies beyond the bound can't be known to be resident; it counts as not read.
        census.resident_bytes += region.bytes() - pages * PAGE_BYTES;
        census.resident_bytes += found.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        ranges.extend(found.ranges);
    }
    Ok(ranges)
}

/// The ranges that meet an arena first, else as they are.
fn in_order(ranges: Vec<Range<u64>>, arenas: &[Range<u64>]) -> Vec<Range<u64>> {
    let fruitful = |range: &Range<u64>| {
        let next = arenas.partition_point(|arena| arena.end <= range.start);
        arenas.get(next).is_some_and(|arena| arena.start < range.end)
    };
    let (mut first, rest): (Vec<_>, Vec<_>) = ranges.into_iter().partition(fruitful);
    first.extend(rest);
    first
}

/// Scans ranges within the limits; the tasks come by ascending address.
fn scan(
    memory: &mut Memory,
    layouts: &Layouts,
    limits: Limits,
    ranges: Vec<Range<u64>>,
    census: &mut Census,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), MemoryError> {
    let began = Instant::now();
    let mut scanner = Scanner::new(layouts);
    let mut pace = Pace::new(limits.time_max);
    let Census {
        tasks,
        resident_bytes,
        scanned_bytes,
        refused_tasks,
        ..
    } = census;
    for range in ranges {
        let before = *scanned_bytes;
        let may_go_on = |within| {
            progress(before + within, *resident_bytes);
            let all = (*resident_bytes).min(limits.bytes_max);
            if let Some(rest) = pace.rest(began.elapsed(), before + within, all) {
                let rests = Instant::now();
                std::thread::sleep(rest);
                pace.rested(rests.elapsed());
            }
            before + within < limits.bytes_max && began.elapsed() < limits.time_max
        };
        *scanned_bytes += scanner.scan(memory, &range, may_go_on, |place, reading| {
            if tasks.len() < TASKS_MAX {
                tasks.push(Found::new(place, reading));
            } else {
                *refused_tasks += 1;
            }
        })?;
    }
    tasks.sort_unstable_by_key(|task| task.header);
    tasks.dedup_by_key(|task| task.header);
    Ok(())
}

const fn is_unwakeable(state: State) -> bool {
    matches!(state, State::Unwakeable { .. })
}

/// Reads some tasks again: finished ones, which go where they are not as they were, and those that seem unwakeable, which are
/// `confirmed` by the same state word, or by a census before. What seems unwakeable is left for the next census.
fn read_again(
    memory: &mut Memory,
    layouts: &Layouts,
    tasks: &mut Vec<Found>,
    known: &Suspects,
    confirmed: bool,
) -> Result<Suspects, MemoryError> {
    let (mut next, now) = (Suspects::default(), Instant::now());
    let doubtful = |task: &Found| !task.state.is_alive() || is_unwakeable(task.state);
    let doubtful: Vec<usize> = (0..tasks.len()).filter(|index| doubtful(&tasks[*index])).collect();
    let mut freed = HashSet::new();
    for batch in doubtful.chunks(places::PLACES_AT_ONCE) {
        let at: Vec<Place> = batch.iter().map(|index| tasks[*index].place()).collect();
        for (index, reading) in batch.iter().zip(places::read(memory, layouts, &at)?) {
            let task = &mut tasks[*index];
            let reading = reading.filter(|reading| reading.id == task.id);
            match (task.state.is_alive(), reading) {
                (true, Some(reading)) if is_unwakeable(reading.state) => {
                    let before = known.confirm(&mut next, task.header, &reading, now, KEPT_CONFIRM);
                    task.confirmed = before || (confirmed && reading.word == task.word);
                }
                (true, _) => {}
                (false, reading) => {
                    if reading.is_none_or(|reading| reading.state != task.state) {
                        freed.insert(task.header);
                    }
                }
            }
        }
    }
    tasks.retain(|task| !freed.contains(&task.header));
    Ok(next)
}

/// Leaves out what may be the copy of a new blocking task on the stack of the thread that made it: it has no owner by which the
/// two could be told apart.
fn without_copies(tasks: &mut Vec<Found>, regions: &[Region]) {
    let blocking = tasks.iter().filter(|task| task.owner == 0 && !task.may_be_copy);
    let elsewhere: HashSet<u64> = blocking.map(|task| task.id).collect();
    let on_stack = |header: u64| {
        let next = regions.partition_point(|region| region.end <= header);
        regions
            .get(next)
            .is_some_and(|region| region.stack && region.start <= header)
    };
    tasks.retain(|task| {
        let copy = task.may_be_copy && (on_stack(task.header) || elsewhere.contains(&task.id));
        !copy
    });
}

/// Leaves out freed tasks whose memory was used again in such a way that the state word looks like one: their stage has been
/// consumed. Where a task that is surely alive has another tag than it should, the tags of its type lie elsewhere and are not
/// looked at (futures that are aligned to more than a word; `tokio_unstable` has the place of the spawn there).
fn without_remains(tasks: &mut Vec<Found>) {
    let odd = |task: &Found| task.state != State::Running && task.stage.is_some_and(|tag| tag != stage::RUNNING);
    let astray: HashSet<u32> = tasks
        .iter()
        .enumerate()
        .filter(|(_, task)| task.state.is_alive())
        .filter(|(_, task)| odd(task))
        .filter(|(index, _)| is_linked(tasks, *index))
        .map(|(_, task)| task.layout)
        .collect();
    tasks.retain(|task| {
        let tag = task.stage.filter(|_| !astray.contains(&task.layout));
        match (task.state, tag) {
            (State::Held, Some(tag)) => tag != stage::RUNNING && tag != stage::CONSUMED,
            (State::Idle | State::Unwakeable { .. } | State::Scheduled, Some(tag)) => {
                tag != stage::FINISHED && tag != stage::CONSUMED
            }
            // The output is stored while a task still runs.
            (State::Running | State::Lingering, _) | (_, None) => true,
        }
    });
}

/// Ranges in which tasks lie, by ascending address.
fn arenas_of(tasks: &[Found]) -> Vec<Range<u64>> {
    let mut arenas: Vec<Range<u64>> = Vec::new();
    for task in tasks {
        let near = |last: &&mut Range<u64>| task.header <= last.end + ARENA_GAP_BYTES;
        if let Some(last) = arenas.last_mut().filter(near) {
            last.end = task.header + 1;
        } else if arenas.len() < ARENAS_MAX {
            arenas.push(task.header..task.header + 1);
        }
    }
    arenas
}

#[cfg(test)]
pub(super) mod tests;
