//! The states of tasks whose headers are known.
//!
//! In: headers, each with the group it is counted under. Out: a tally of each group. A header that is no task's any more is
//! skipped and counted. What seems unwakeable is believed when a later reading finds the same word of the same task.

use super::{
    census::Tally,
    header::{Reading, State},
    layout::Layouts,
    places::{self, Place},
    reader::{Memory, MemoryError, Piece},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Tasks that are remembered until they are confirmed; of more, the others stay unconfirmed.
const SUSPECTS_MAX: usize = 1 << 17;
/// Headers that are read in one go.
const HEADERS_AT_ONCE: usize = 4096;

/// A task whose state is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Address of its header.
    pub header: u64,
    /// What it is counted under.
    pub group: u64,
}

/// The tasks of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// By state. Finished tasks are in none of the states of living ones.
    pub tally: Tally,
    /// Headers that are no task's any more.
    pub vanished: u64,
    /// Tasks that seem unwakeable and are not confirmed yet.
    pub unconfirmed: u64,
}

/// Tasks that seemed unwakeable, since when, by ascending header; at most `SUSPECTS_MAX` of them, 5 MiB.
#[derive(Clone, Debug, Default)]
pub struct Suspects(Vec<Suspect>);

#[derive(Clone, Copy, Debug)]
struct Suspect {
    header: u64,
    id: u64,
    word: u64,
    since: Instant,
}

impl Suspects {
    /// Notes a reading at `now`, and says whether the task is unwakeable: it has been so for as long as `confirm`. Headers come in
    /// ascending order: one that does not is not remembered.
    pub(super) fn confirm(
        &self,
        next: &mut Self,
        header: u64,
        reading: &Reading,
        now: Instant,
        confirm: Duration,
    ) -> bool {
        let before = self.0.binary_search_by_key(&header, |suspect| suspect.header).ok();
        let before = before.map(|index| self.0[index]);
        let before = before.filter(|before| (before.id, before.word) == (reading.id, reading.word));
        let suspect = before.unwrap_or(Suspect {
            header,
            id: reading.id,
            word: reading.word,
            since: now,
        });
        if next.0.len() < SUSPECTS_MAX && next.0.last().is_none_or(|last| last.header < header) {
            next.0.push(suspect);
        }
        before.is_some_and(|before| now.duration_since(before.since) >= confirm)
    }
}

/// By header, one for each. A pass may meet two tasks that lived at the same address one after the other: then the later one.
fn by_header(mut tasks: Vec<Known>) -> Vec<Known> {
    tasks.reverse();
    // A stable order, so that the later one comes first and is kept.
    tasks.sort_by_key(|known| known.header);
    tasks.dedup_by_key(|known| known.header);
    tasks
}

/// Reads the states of `tasks`, which are in the order in which they were found. `suspects` is what the last call left.
///
/// # Errors
/// See [`MemoryError`].
pub fn read(
    memory: &mut Memory,
    layouts: &Layouts,
    tasks: Vec<Known>,
    suspects: &mut Suspects,
    confirm: Duration,
) -> Result<BTreeMap<u64, Group>, MemoryError> {
    let sorted = by_header(tasks);
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    let mut next = Suspects::default();
    for batch in sorted.chunks(HEADERS_AT_ONCE) {
        let headers: Vec<u64> = batch.iter().map(|known| known.header).collect();
        let readings = read_known(memory, layouts, &headers)?;
        let now = Instant::now();
        for (known, reading) in batch.iter().zip(readings) {
            let group = groups.entry(known.group).or_default();
            let Some(reading) = reading else {
                group.vanished += 1;
                continue;
            };
            let unwakeable = matches!(reading.state, State::Unwakeable { .. });
            let confirmed = unwakeable && suspects.confirm(&mut next, known.header, &reading, now, confirm);
            group.unconfirmed += u64::from(unwakeable && !confirmed);
            group.tally.add(reading.state, confirmed);
        }
    }
    memory.check()?;
    *suspects = next;
    Ok(groups)
}

/// Reads headers whose types are not known, by ascending address.
pub(super) fn read_known(
    memory: &mut Memory,
    layouts: &Layouts,
    headers: &[u64],
) -> Result<Vec<Option<Reading>>, MemoryError> {
    let pieces: Vec<Piece> = headers
        .iter()
        .map(|header| Piece {
            address: header.saturating_add(layouts.vtable_offset),
            len: 8,
        })
        .collect();
    let mut places = Vec::with_capacity(headers.len());
    memory.read_pieces(&pieces, |index, bytes| {
        let vtable = bytes
            .and_then(|bytes| bytes.first_chunk().copied())
            .map(u64::from_le_bytes);
        if let Some(layout) = vtable.and_then(|vtable| layouts.index_of(vtable)) {
            let header = headers[index];
            places.push((
                index,
                Place {
                    header,
                    layout: layout as u32,
                },
            ));
        }
    })?;
    let (indices, places): (Vec<usize>, Vec<Place>) = places.into_iter().unzip();
    let mut readings = vec![None; headers.len()];
    for (index, reading) in indices.into_iter().zip(places::read(memory, layouts, &places)?) {
        readings[index] = reading;
    }
    Ok(readings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::header::Neighbours;

    #[test]
    fn a_task_is_unwakeable_when_the_same_word_is_read_long_enough_after() {
        let reading = |id, word| Reading {
            word,
            state: State::Unwakeable { abortable: false },
            id,
            owner: 1,
            scheduler: 0,
            stage: None,
            neighbours: Neighbours::default(),
        };
        let (confirm, began) = (Duration::from_secs(2), Instant::now());
        let mut known = Suspects::default();
        let read = |known: &mut Suspects, tasks: &[(u64, Reading)], seconds| {
            let (now, mut next) = (began + Duration::from_secs(seconds), Suspects::default());
            let confirmed = tasks
                .iter()
                .map(|(header, reading)| known.confirm(&mut next, *header, reading, now, confirm))
                .collect::<Vec<_>>();
            *known = next;
            confirmed
        };
        let all = [0x80, 0x100, 0x180].map(|header| (header, reading(header, 0xcc)));
        assert_eq!(read(&mut known, &all, 0), [false; 3]);
        assert_eq!(read(&mut known, &all, 1), [false; 3]);
        // Another task at the address, and one that was woken, begin anew.
        let changed = [all[0], (0x100, reading(7, 0xcc)), (0x180, reading(0x180, 0xc4))];
        assert_eq!(read(&mut known, &changed, 2), [true, false, false]);
        assert_eq!(read(&mut known, &changed, 4), [true; 3]);
        // What goes and comes back does too.
        assert_eq!(read(&mut known, &all[..1], 5), [true]);
        assert_eq!(read(&mut known, &changed, 8), [true, false, false]);

        let more = SUSPECTS_MAX as u64 + 1;
        let many: Vec<_> = (1..=more).map(|header| (header, reading(header, 0xcc))).collect();
        read(&mut known, &many, 10);
        assert_eq!(known.0.len(), SUSPECTS_MAX);
        let confirmed = read(&mut known, &many, 12);
        assert_eq!(confirmed.iter().filter(|confirmed| !**confirmed).count(), 1);
        assert!(!confirmed[SUSPECTS_MAX]);
    }

    #[test]
    fn of_two_tasks_at_one_address_the_later_one_is_read() {
        let found = [(0x100, 1), (0x80, 1), (0x100, 2), (0x180, 3)].map(|(header, group)| Known { header, group });
        let read = by_header(found.to_vec())
            .iter()
            .map(|known| (known.header, known.group))
            .collect::<Vec<_>>();
        assert_eq!(read, [(0x80, 1), (0x100, 2), (0x180, 3)]);
    }
}
