//! The tasks that a process holds, by type and state, from its memory alone.
//!
//! In: an open [`Memory`] and the layouts of its image. Out: a [`Census`]. It needs no probe and no symbol, and nothing of what
//! was born before: a task is found by its vtable's address in its header.
//!
//! 1. The resident pages of the writable private mappings are scanned for vtables (`scan`).
//! 2. Every place found is read, and after a moment read again; the second reading counts. So a task that ends meanwhile is
//!    not counted, and one that begins where another was is. Freed tasks are told by their state word: the last reference has
//!    gone, or the allocator has written over it.
//! 3. What could be the copy of a new task on a stack is left out, and what seems to be alone in its runtime's list and is not: so
//!    does a freed task look whose memory was used again (`lists`). Since tokio 1.40 the tag of its stage tells too.
//! 4. A finished task counts as held where it still is a quarter of a second later.
//!
//! Time, bytes and places are bounded; what was not read is told by [`Census::share`].

use super::{
    header::{Neighbours, Reading, State, stage},
    layout::Layouts,
    lists::without_unlisted,
    reader::{Memory, MemoryError},
    scan::{Place, Scanner},
    states::Suspects,
};
use crate::targets::memory_map::{self, PAGE_BYTES, Region};
use leakmon_ebpf::abi::Kind;
use std::{
    collections::HashSet,
    ops::Range,
    time::{Duration, Instant},
};

/// Places that are kept: 1,000,000 tasks and as many remains of freed ones.
pub const PLACES_MAX: usize = 1 << 21;
/// Pages of address space whose residence is asked for: 256 GiB. Sanitizers reserve far more.
const PAGES_MAX: u64 = 1 << 26;
/// Places that are read in one go, so that the pieces' addresses take little memory.
const PLACES_AT_ONCE: usize = 4096;
/// How long before a census another must have been taken to confirm it.
const KEPT_CONFIRM: Duration = Duration::from_secs(1);
/// The moment between two readings.
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
    /// Index in [`Layouts::types`].
    pub layout: u32,
    /// What its state word says.
    pub state: State,
    /// Tag of its stage, where it can be read.
    stage: Option<u32>,
    /// Whether it was never in a list.
    pub(super) unowned: bool,
    /// See [`Reading::may_be_copy`].
    may_be_copy: bool,
    /// Whether it seems unwakeable and had the same state word before, long enough ago.
    pub confirmed: bool,
}

impl Found {
    const fn new(place: Place, reading: &Reading, confirmed: bool) -> Self {
        Self {
            header: place.header,
            id: reading.id,
            neighbours: reading.neighbours,
            scheduler: reading.scheduler,
            layout: place.layout,
            state: reading.state,
            stage: reading.stage,
            unowned: reading.owner == 0,
            may_be_copy: reading.may_be_copy(),
            confirmed,
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
    /// Places that found no room.
    pub refused_places: u64,
    /// How long it took, the wait for a confirmation left out.
    pub took: Duration,
}

impl Census {
    /// How much of the process's memory was read, from 0 to 1: less than 1 where a bound was met, or memory is in swap.
    #[must_use]
    pub fn share(&self) -> f64 {
        let all = self.resident_bytes + self.swapped_bytes;
        match (all, self.refused_places) {
            (0, _) => 1.0,
            // Each of two million places was one; what else there is is not known.
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
    let places = scan(
        memory,
        layouts,
        limits,
        in_order(ranges, &memories.arenas),
        &mut census,
        progress,
    )?;

    let mut suspects = Vec::new();
    read_all(memory, layouts, &places, |index, reading| {
        if matches!(reading.state, State::Unwakeable { .. }) {
            suspects.push((index, reading.word, reading.id));
        }
    })?;
    let waited = if suspects.is_empty() {
        Duration::ZERO
    } else {
        limits.confirm
    };
    std::thread::sleep(waited.max(MOMENT));
    let mut suspects = suspects.into_iter().peekable();
    let (mut next, now) = (Suspects::default(), Instant::now());
    read_all(memory, layouts, &places, |index, reading| {
        while suspects.next_if(|(suspect, _, _)| *suspect < index).is_some() {}
        let same = suspects.peek() == Some(&(index, reading.word, reading.id));
        let place = places[index];
        let unwakeable = matches!(reading.state, State::Unwakeable { .. });
        let known = unwakeable
            && memories
                .suspects
                .confirm(&mut next, place.header, reading, now, KEPT_CONFIRM);
        census
            .tasks
            .push(Found::new(place, reading, known || (same && !waited.is_zero())));
    })?;
    without_unlisted(memory, &mut census.tasks)?;
    without_copies(&mut census.tasks, &regions);
    without_remains(&mut census.tasks);
    let waited = waited + without_awaited(memory, layouts, &mut census.tasks)?;
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
        suspects: next,
    };
    census.took = began.elapsed().saturating_sub(waited);
    Ok(census)
}

/// The resident ranges of the regions.
fn resident(memory: &Memory, regions: &[Region], census: &mut Census) -> Result<Vec<Range<u64>>, MemoryError> {
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

/// Scans ranges within the limits; the places come by ascending address.
fn scan(
    memory: &mut Memory,
    layouts: &Layouts,
    limits: Limits,
    ranges: Vec<Range<u64>>,
    census: &mut Census,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<Place>, MemoryError> {
    let began = Instant::now();
    let mut scanner = Scanner::new(layouts, PLACES_MAX);
    let mut scanned = 0;
    for range in ranges {
        scanned += scanner.scan(memory, &range, |within| {
            progress(scanned + within, census.resident_bytes);
            scanned + within < limits.bytes_max && began.elapsed() < limits.time_max
        })?;
    }
    census.scanned_bytes = scanned;
    census.refused_places = scanner.refused;
    let mut places = scanner.places;
    places.sort_unstable();
    // A header that is not padded can be found from two sides.
    places.dedup_by_key(|place| place.header);
    Ok(places)
}

/// Reads every place, and tells those that hold a task by their index.
fn read_all(
    memory: &mut Memory,
    layouts: &Layouts,
    places: &[Place],
    mut tell: impl FnMut(usize, &Reading),
) -> Result<(), MemoryError> {
    for (batch, part) in places.chunks(PLACES_AT_ONCE).enumerate() {
        for (index, reading) in read_places(memory, layouts, part)?.iter().enumerate() {
            if let Some(reading) = reading {
                tell(batch * PLACES_AT_ONCE + index, reading);
            }
        }
    }
    Ok(())
}

/// Reads some places: the words up to the task id, and the list's pointers.
pub(super) fn read_places(
    memory: &mut Memory,
    layouts: &Layouts,
    places: &[Place],
) -> Result<Vec<Option<Reading>>, MemoryError> {
    let types = layouts.types();
    let mut pieces = Vec::with_capacity(2 * places.len());
    for (index, place) in places.iter().enumerate() {
        if let Some(layout) = types.get(place.layout as usize) {
            pieces.push((layout.head(place.header), index, true));
            pieces.push((layout.tail(place.header), index, false));
        }
    }
    pieces.sort_unstable();
    let addresses: Vec<_> = pieces.iter().map(|(piece, _, _)| *piece).collect();
    let mut readings = vec![None; places.len()];
    let mut neighbours = vec![None; places.len()];
    memory.read_pieces(&addresses, |piece, bytes| {
        let (_, index, is_head) = pieces[piece];
        let layout = &types[places[index].layout as usize];
        match (bytes, is_head) {
            (Some(bytes), true) => readings[index] = Reading::parse(bytes, layouts.vtable_offset, layout),
            (Some(bytes), false) => neighbours[index] = Neighbours::parse(bytes),
            (None, _) => {}
        }
    })?;
    for (index, place) in places.iter().enumerate() {
        let kind = types.get(place.layout as usize).map(|layout| layout.kind);
        let listed = |neighbours: Neighbours, reading: &Reading| match kind {
            // A blocking task is in no list, and nor is a task that has ended.
            Some(Kind::Blocking) => true,
            _ => reading.state.is_alive() || neighbours.is_alone(),
        };
        let (Some(reading), Some(of)) = (readings[index], neighbours[index]) else {
            readings[index] = None;
            continue;
        };
        readings[index] = listed(of, &reading).then_some(Reading {
            neighbours: of,
            ..reading
        });
    }
    Ok(readings)
}

/// Leaves out what may be the copy of a new blocking task on the stack of the thread that made it: it has no owner by which the
/// two could be told apart.
fn without_copies(tasks: &mut Vec<Found>, regions: &[Region]) {
    let blocking = tasks.iter().filter(|task| task.unowned && !task.may_be_copy);
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

/// Leaves out finished tasks that are not held any more a little later: somebody was about to await their handles. Returns how long that
/// was waited for.
fn without_awaited(memory: &mut Memory, layouts: &Layouts, tasks: &mut Vec<Found>) -> Result<Duration, MemoryError> {
    let held = tasks.iter().filter(|task| task.state == State::Held);
    let places: Vec<Place> = held
        .map(|task| Place {
            header: task.header,
            layout: task.layout,
        })
        .collect();
    if places.is_empty() {
        return Ok(Duration::ZERO);
    }
    std::thread::sleep(HELD_CONFIRM);
    let mut still = HashSet::new();
    read_all(memory, layouts, &places, |index, reading| {
        if reading.state == State::Held {
            still.insert((places[index].header, reading.id));
        }
    })?;
    tasks.retain(|task| task.state != State::Held || still.contains(&(task.header, task.id)));
    Ok(HELD_CONFIRM)
}

/// Leaves out freed tasks whose memory was used again in such a way that the state word looks like one: their stage has been
/// consumed. Where a task that is surely alive has another tag than it should, the tags of its type lie elsewhere and are not
/// looked at (futures that are aligned to more than a word; `tokio_unstable` has the place of the spawn there).
fn without_remains(tasks: &mut Vec<Found>) {
    let odd = |task: &&Found| task.state != State::Running && task.stage.is_some_and(|tag| tag != stage::RUNNING);
    let astray: HashSet<u32> = tasks
        .iter()
        .filter(|task| task.state.is_alive())
        .filter(odd)
        .filter(|task| is_linked(tasks, task))
        .map(|task| task.layout)
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

/// Whether a neighbour in the owner's list, one of `tasks`, has this task as its neighbour: then it is alive.
fn is_linked(tasks: &[Found], task: &Found) -> bool {
    let neighbours_of = |header: u64| {
        let index = tasks.binary_search_by_key(&header, |other| other.header).ok()?;
        Some(tasks[index].neighbours)
    };
    let Neighbours { previous, next } = task.neighbours;
    neighbours_of(previous).is_some_and(|of| of.next == task.header)
        || neighbours_of(next).is_some_and(|of| of.previous == task.header)
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
mod tests;
