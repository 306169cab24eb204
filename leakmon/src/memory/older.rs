//! The tasks that are older than the attach.
//!
//! In: a census, and the tasks whose births the probes have seen. Out: the tasks that were there before, counted again
//! whenever they may have ended: each is read by its header and its id, so the count falls with every end and never below zero.

use super::{
    census::{Found, Tally},
    header::State,
    layout::Layouts,
    places::{self, Place},
    reader::{Memory, MemoryError},
    states::Suspects,
};
use std::time::{Duration, Instant};

/// Tasks read in one go.
const TASKS_AT_ONCE: usize = 4096;

/// Tasks that were there before the attach and have not ended.
#[derive(Clone, Debug, Default)]
pub struct Older {
    /// By ascending address.
    tasks: Vec<Task>,
    suspects: Suspects,
}

#[derive(Clone, Copy, Debug)]
struct Task {
    place: Place,
    id: u64,
}

impl Older {
    /// The living tasks of a census whose headers are not `known`, as those of tasks whose births were seen are. Call
    /// [`Self::recount`] before believing it: one that ended between the census and what is known is among them.
    #[must_use]
    pub fn of(tasks: &[Found], known: impl Fn(u64) -> bool) -> Self {
        let older = tasks.iter().filter(|task| task.state.is_alive());
        Self {
            tasks: older.filter(|task| !known(task.header)).map(task_of).collect(),
            suspects: Suspects::default(),
        }
    }

    /// How many there are, as of the last count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How many of these are not among `others`.
    #[must_use]
    pub fn without(&self, others: &Self) -> usize {
        let among = |task: &&Task| {
            let found = others
                .tasks
                .binary_search_by_key(&task.place.header, |other| other.place.header);
            found.is_ok_and(|index| others.tasks[index].id == task.id)
        };
        self.tasks.iter().filter(|task| !among(task)).count()
    }

    /// Reads all of them again, drops those that have ended, and counts the others by type, in the order of
    /// [`Layouts::types`].
    ///
    /// # Errors
    /// See [`MemoryError`]; the tasks stay as they were.
    pub fn recount(
        &mut self,
        memory: &mut Memory,
        layouts: &Layouts,
        confirm: Duration,
    ) -> Result<Vec<Tally>, MemoryError> {
        let mut tallies = vec![Tally::default(); layouts.types().len()];
        let mut left = Vec::with_capacity(self.tasks.len());
        let mut next = Suspects::default();
        for batch in self.tasks.chunks(TASKS_AT_ONCE) {
            let places: Vec<Place> = batch.iter().map(|task| task.place).collect();
            let readings = places::read(memory, layouts, &places)?;
            let now = Instant::now();
            for (task, reading) in batch.iter().zip(readings) {
                let alive = reading.filter(|reading| reading.id == task.id && reading.state.is_alive());
                let Some(reading) = alive else { continue };
                let unwakeable = matches!(reading.state, State::Unwakeable { .. });
                let confirmed = unwakeable
                    && self
                        .suspects
                        .confirm(&mut next, task.place.header, &reading, now, confirm);
                if let Some(tally) = tallies.get_mut(task.place.layout as usize) {
                    tally.add(reading.state, confirmed);
                }
                left.push(*task);
            }
        }
        memory.check()?;
        self.tasks = left;
        self.suspects = next;
        Ok(tallies)
    }
}

fn task_of(found: &Found) -> Task {
    Task {
        place: Place {
            header: found.header,
            layout: found.layout,
        },
        id: found.id,
    }
}
