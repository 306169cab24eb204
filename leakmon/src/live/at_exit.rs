//! Tasks that were left behind when their process ended.
//!
//! In: the counts of a callsite whose process has ended. Out: why they are suspicious, one sentence, or nothing. Short
//! runs, such as those of a test suite, end long before a trend shows; what is alive at their end is all that there is
//! to judge by. Pure.
//!
//! A site is suspicious where most of its tasks were left behind although others of it had ended: handlers that should
//! have gone with their clients look so. Where not one has ended it may as well be a pool of workers, and where few are
//! left they were at work when the process ended: neither is called anything. A runtime that is shut down in good order
//! ends all its tasks and leaves nothing to see.

/// Fewer tasks than this are not suspicious: a few singletons are left behind by every program that just exits.
const LEFT_MIN: u64 = 5;

/// Why what was left is suspicious; `None` where it is not.
#[must_use]
pub fn suspicion(live: u64, spawned: u64, ended: u64) -> Option<String> {
    let most = live > spawned / 2;
    (live >= LEFT_MIN && ended > 0 && most).then(|| {
        format!("{live} of {spawned} tasks were still alive when the process ended, although {ended} had ended before.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_that_others_did_not_belong_to_is_suspicious() {
        for (live, spawned, ended, suspicious) in [
            (43, 60, 17, true),
            (5, 6, 1, true),
            // Singletons, a pool, those at work, exactly half.
            (1, 1, 0, false),
            (4, 5, 1, false),
            (64, 64, 0, false),
            (100, 10_000, 9_900, false),
            (10, 20, 10, false),
            (0, 60, 60, false),
        ] {
            assert_eq!(
                suspicion(live, spawned, ended).is_some(),
                suspicious,
                "{live} {spawned} {ended}"
            );
        }
    }
}
