//! How fast a census goes: not so fast that the target, which shares caches and memory with it, would feel it.
//!
//! In: how much is done, and after which time. Out: how long to rest now. It reads no clock and sleeps not.

use std::time::Duration;

/// A scan that ends sooner than this rests for half of the time; one that does not rests less, or not at all. A gibibyte takes a
/// quarter of a second without rest, and four of them with a million tasks shall be counted within three seconds.
const UNHURRIED: Duration = Duration::from_secs(2);

/// Shorter rests than this come late by more than they are long.
const REST_MIN: Duration = Duration::from_millis(2);

/// Work and rest of one scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    time_max: Duration,
    rested: Duration,
}

impl Pace {
    /// The pace of a scan that may take `time_max`.
    pub(super) fn new(time_max: Duration) -> Self {
        Self {
            // Far from it, since the rest may take longer than what is done.
            time_max: UNHURRIED.min(time_max / 2),
            rested: Duration::ZERO,
        }
    }

    /// How long to rest when `done` of `all` bytes are scanned, `elapsed` after the beginning; `None` where it is not time yet,
    /// or where too little time is left.
    pub(super) fn rest(&self, elapsed: Duration, done: u64, all: u64) -> Option<Duration> {
        let worked = elapsed.saturating_sub(self.rested);
        let owed = worked.saturating_sub(self.rested);
        // As numbers, which can't overflow.
        let ahead = worked.as_secs_f64() * all.saturating_sub(done) as f64 / done.max(1) as f64;
        let ends_after = elapsed.as_secs_f64() + owed.as_secs_f64() + ahead;
        (owed >= REST_MIN && ends_after <= self.time_max.as_secs_f64()).then_some(owed)
    }

    /// So long it was: a sleep may last longer than was asked for.
    pub(super) fn rested(&mut self, time: Duration) {
        self.rested += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: u64 = 1 << 20;
    const TIME_MAX: Duration = Duration::from_secs(60);

    /// Scans `all` bytes, a mebibyte in `work` each: how long was worked, and how long rested.
    fn scan(all: u64, work: Duration, time_max: Duration) -> (Duration, Duration) {
        let mut pace = Pace::new(time_max);
        let (mut elapsed, mut rested, mut done) = (Duration::ZERO, Duration::ZERO, 0);
        while done < all {
            if let Some(rest) = pace.rest(elapsed, done, all) {
                pace.rested(rest);
                elapsed += rest;
                rested += rest;
            }
            elapsed += work;
            done += MEBIBYTE;
        }
        (elapsed - rested, rested)
    }

    #[test]
    fn half_of_the_time_is_rest_where_there_is_time() {
        let (worked, rested) = scan(4 << 30, Duration::from_micros(230), TIME_MAX);
        assert!(
            rested > worked.mul_f64(0.95) && rested <= worked,
            "{worked:?} {rested:?}"
        );
        assert!(worked + rested <= UNHURRIED, "{worked:?} {rested:?}");
    }

    #[test]
    fn a_scan_rests_less_the_longer_it_takes() {
        let (worked, rested) = scan(4 << 30, Duration::from_micros(450), TIME_MAX);
        assert!(
            rested < worked / 2 && worked + rested <= UNHURRIED,
            "{worked:?} {rested:?}"
        );
        // Longer than that without any rest.
        let (worked, rested) = scan(4 << 30, Duration::from_millis(1), TIME_MAX);
        assert!(worked > UNHURRIED && rested.is_zero(), "{rested:?}");
        // What may take little time has no time to rest.
        let (_, rested) = scan(1 << 30, Duration::from_millis(1), Duration::from_secs(2));
        assert!(rested.is_zero(), "{rested:?}");
    }

    #[test]
    fn a_small_scan_is_not_held_up() {
        let (worked, rested) = scan(6 << 20, Duration::from_micros(300), TIME_MAX);
        assert!(rested.is_zero() && worked < REST_MIN, "{worked:?} {rested:?}");
    }

    #[test]
    fn absurd_numbers_give_no_rest() {
        assert_eq!(Pace::new(TIME_MAX).rest(Duration::from_secs(1), 0, u64::MAX), None);
        assert_eq!(Pace::new(Duration::ZERO).rest(Duration::MAX, 1, u64::MAX), None);
    }
}
