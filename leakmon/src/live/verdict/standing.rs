//! Hysteresis: a verdict is slow to come and slow to go.
//!
//! In: what the rules find, round by round. Out: the verdict that stands. A finding counts when it was made in several rounds; it
//! is given up when it was not made for as long as it took to make, or as soon as most of the tasks that it was about have ended.

use super::Verdict;

/// Rounds in which a finding must be made.
const ROUNDS_MIN: u32 = 3;

/// A verdict about tasks of which less than this part is left is over.
const LEFT_MIN: f64 = 0.5;

/// What the rules find in one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) verdict: Verdict,
    /// Seconds of evidence behind it.
    pub(super) span: f64,
}

/// The verdict that stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) verdict: Verdict,
    /// Seconds that it holds without being found again.
    hold: f64,
    /// When it was found last.
    found: f64,
    /// Most live tasks since it stands.
    most: u32,
    /// The verdict that is on its way up, and in how many rounds it was found.
    rising: (Verdict, u32),
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            verdict: Verdict::Unknown,
            hold: 0.0,
            found: 0.0,
            most: 0,
            rising: (Verdict::Unknown, 0),
        }
    }
}

impl Standing {
    /// Takes what was found at `now`, seconds, with `live` tasks alive.
    pub(super) fn take(&mut self, found: Found, live: u32, now: f64) {
        self.most = self.most.max(live);
        let alarm = rank(found.verdict) > 0;
        if rank(found.verdict) > rank(self.verdict) {
            // A leak in one round and a suspicion in the next are both at least a suspicion.
            let rounds = if alarm && self.rising.1 > 0 {
                self.rising.1 + 1
            } else {
                1
            };
            let lower = if rank(self.rising.0) < rank(found.verdict) && rounds > 1 {
                self.rising.0
            } else {
                found.verdict
            };
            self.rising = (lower, rounds);
            if rounds >= ROUNDS_MIN {
                self.set(lower, found.span, live, now);
            }
            return;
        }
        self.rising = (Verdict::Unknown, 0);
        if found.verdict == self.verdict {
            self.found = now;
            self.hold = self.hold.max(found.span);
            return;
        }
        let over = f64::from(live) < f64::from(self.most) * LEFT_MIN;
        if !is_alarm(self.verdict) || over || now - self.found > self.hold {
            self.set(found.verdict, found.span, live, now);
        }
    }

    fn set(&mut self, verdict: Verdict, span: f64, live: u32, now: f64) {
        *self = Self {
            verdict,
            hold: span,
            found: now,
            most: live,
            rising: (Verdict::Unknown, 0),
        };
    }
}

const fn is_alarm(verdict: Verdict) -> bool {
    rank(verdict) > 0
}

const fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Leak => 2,
        Verdict::Suspect => 1,
        Verdict::Unknown | Verdict::Steady => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Leak, Steady, Suspect, Unknown};

    fn after(rounds: &[(Verdict, u32)]) -> Verdict {
        let mut standing = Standing::default();
        for (second, (verdict, live)) in rounds.iter().enumerate() {
            let found = Found {
                verdict: *verdict,
                span: 5.0,
            };
            standing.take(found, *live, second as f64);
        }
        standing.verdict
    }

    #[test]
    fn an_alarm_takes_three_rounds_and_the_rest_one() {
        assert_eq!(after(&[(Steady, 1)]), Steady);
        assert_eq!(after(&[(Steady, 1), (Unknown, 1)]), Unknown);
        assert_eq!(after(&[(Steady, 1), (Leak, 9), (Leak, 9)]), Steady);
        assert_eq!(after(&[(Steady, 1), (Leak, 9), (Leak, 9), (Leak, 9)]), Leak);
        assert_eq!(
            after(&[(Leak, 9), (Leak, 9), (Steady, 9), (Leak, 9), (Leak, 9)]),
            Steady
        );
        assert_eq!(after(&[(Suspect, 9), (Leak, 9), (Leak, 9)]), Suspect);
    }

    #[test]
    fn an_alarm_goes_when_it_is_not_found_for_as_long_as_it_took() {
        let mut rounds = vec![(Leak, 9); 3];
        rounds.extend([(Steady, 9); 5]);
        assert_eq!(after(&rounds), Leak);
        rounds.push((Steady, 9));
        assert_eq!(after(&rounds), Steady);
        // Found again in between.
        rounds[6] = (Leak, 9);
        assert_eq!(after(&rounds), Leak);
    }

    #[test]
    fn an_alarm_goes_at_once_when_its_tasks_go() {
        assert_eq!(after(&[(Leak, 40), (Leak, 41), (Leak, 42), (Steady, 21)]), Leak);
        assert_eq!(after(&[(Leak, 40), (Leak, 41), (Leak, 42), (Steady, 20)]), Steady);
    }
}
