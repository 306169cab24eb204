//! Unwakeable tasks that become more: the strongest evidence, since nothing can end them.
//!
//! In: one sample after the other. Out: how they rose. One constant task, or a handful that was spawned at the start, is a guard
//! and no leak: the number must rise again and again.

use super::history::Sample;

/// Fewer may be guards that are spawned one after the other.
const TASKS_MIN: u32 = 5;
/// Rises, each to a number that was not reached before.
const RISES_MIN: u32 = 3;
/// As many where an abort can end them: then the number may fall, and chance alone lets it rise some times in a row.
const RISES_ABORTABLE_MIN: u32 = 8;
/// Seconds from the first to the last rise: longer than a start.
const SPAN_MIN: f64 = 10.0;
/// Falls, as a part of the rises: where nothing ends there is none but for a reading that failed.
const FALLS_MAX: f64 = 0.25;
/// A number that falls to less than this part of the highest has been cleared: it begins anew.
const CLEARED: f64 = 0.8;
/// It goes on as long as the next rise takes no longer than this many times the mean one, and this many seconds.
const PAUSE_MEAN_MAX: f64 = 8.0;
const PAUSE_MIN: f64 = 60.0;

/// How the number of one sort of unwakeable tasks rose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rises {
    highest: u32,
    before: u32,
    count: u32,
    falls: u32,
    first: f64,
    last: f64,
    now: f64,
}

impl Rises {
    /// Takes the number at a time in seconds.
    fn take(&mut self, number: u32, time: f64) {
        self.now = time;
        self.falls += u32::from(number < self.before);
        self.before = number;
        if f64::from(number) < f64::from(self.highest) * CLEARED {
            *self = Self {
                before: number,
                ..Self::default()
            };
        }
        if number > self.highest {
            if self.count == 0 {
                self.first = time;
            }
            (self.highest, self.count, self.last) = (number, self.count + 1, time);
        }
    }

    /// Whether it rises and goes on rising.
    fn goes_on(&self, rises_min: u32) -> bool {
        let span = self.last - self.first;
        let mean = span / f64::from(self.count.max(2) - 1);
        self.highest >= TASKS_MIN
            && self.count >= rises_min
            && f64::from(self.falls) <= f64::from(self.count) * FALLS_MAX
            && span >= SPAN_MIN
            && self.now - self.last <= (mean * PAUSE_MEAN_MAX).max(PAUSE_MIN)
    }
}

/// Unwakeable tasks that become more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unwakeable {
    pub(super) tasks: u32,
    /// Seconds from the first rise to the last.
    pub(super) span: f64,
    /// Whether nothing can end them but the runtime's shutdown; else an abort can.
    pub(super) doomed: bool,
}

/// Follows a site's unwakeable tasks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Follower {
    all: Rises,
    doomed: Rises,
}

impl Follower {
    /// Takes a sample at a time in seconds.
    pub(super) fn take(&mut self, sample: &Sample, time: f64) {
        self.all.take(sample.unwakeable, time);
        self.doomed.take(sample.doomed, time);
    }

    /// What is found now.
    pub(super) fn judge(&self) -> Option<Unwakeable> {
        let (rises, doomed, rises_min) = if self.doomed.goes_on(RISES_MIN) {
            (&self.doomed, true, RISES_MIN)
        } else {
            (&self.all, false, RISES_ABORTABLE_MIN)
        };
        rises.goes_on(rises_min).then_some(Unwakeable {
            tasks: rises.highest,
            span: rises.last - rises.first,
            doomed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(numbers: impl IntoIterator<Item = (u32, u32)>) -> Option<Unwakeable> {
        let mut follower = Follower::default();
        for (second, (unwakeable, doomed)) in numbers.into_iter().enumerate() {
            let sample = Sample {
                unwakeable,
                doomed,
                ..Sample::default()
            };
            follower.take(&sample, second as f64);
        }
        follower.judge()
    }

    #[test]
    fn a_number_that_rises_is_found_and_says_who_can_end_it() {
        // Read every five seconds, as tasks come by the second.
        let staircase = |second: u32| second / 5 * 5;
        let doomed = follow((0..31).map(|second| (staircase(second), staircase(second)))).unwrap();
        assert_eq!((doomed.tasks, doomed.span, doomed.doomed), (30, 25.0, true));
        let abortable = follow((0..46).map(|second| (staircase(second), 1))).unwrap();
        assert!(!abortable.doomed);
    }

    #[test]
    fn guards_are_no_leak() {
        // One; a handful at the start; two steps; few; risen long ago.
        assert_eq!(follow((0..600).map(|_| (1, 1))), None);
        assert_eq!(follow((0..600).map(|second: u32| (second.min(8), second.min(8)))), None);
        assert_eq!(follow((0..600).map(|second: u32| (second / 200 * 9, 0))), None);
        assert_eq!(follow((0..600).map(|second: u32| (second / 150, second / 150))), None);
        assert_eq!(
            follow((0..600).map(|second: u32| (second.min(30), second.min(30)))),
            None
        );
    }

    #[test]
    fn a_number_that_follows_its_load_is_no_leak() {
        // Up and down, and up a little over all.
        let wave = |second: u32| (40 + second / 20 + second % 6, 0);
        assert_eq!(follow((0..300).map(wave)), None);
    }

    #[test]
    fn a_number_that_falls_begins_anew() {
        let sawtooth = |second: u32| (second % 9, second % 9);
        assert_eq!(follow((0..300).map(sawtooth)), None);
    }
}
