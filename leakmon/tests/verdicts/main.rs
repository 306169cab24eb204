//! Verdicts on the corpus: no root, no kernel, no clock.
//!
//! Thresholds were tuned on other seeds than those that are asserted on here. `cargo xtask bench verdicts` runs all of them and
//! writes `docs/verdicts.md`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// The benchmark uses the rest.
#![allow(dead_code)]

mod corpus;
mod scoring;
mod simulation;

use corpus::{ONE_A_SECOND, ONE_A_SECOND_UNWAKEABLE, REPORTED_SEEDS, SCENARIOS, TUNING_SEEDS};
use leakmon::live::verdict::Verdict;
use scoring::{Outcome, Score, run_all};

/// Seeds of the reported ones that every test run looks at; the benchmark looks at all.
const SEEDS: usize = 2;

#[test]
fn half_of_the_corpus_leaks_and_no_seed_is_used_twice() {
    let leaking = SCENARIOS.iter().filter(|scenario| scenario.leaks).count();
    assert_eq!((leaking * 2, SCENARIOS.len() >= 24), (SCENARIOS.len(), true));
    const { assert!(TUNING_SEEDS.end <= REPORTED_SEEDS.start) };
}

#[test]
fn verdicts_on_seeds_that_were_not_tuned_on() {
    let by_scenario = run_all(REPORTED_SEEDS.take(SEEDS));
    let all = || by_scenario.iter().flatten();
    let false_leaks: Vec<&Outcome> = all().filter(|outcome| outcome.false_leak).collect();
    assert!(false_leaks.is_empty(), "healthy, yet called a leak: {false_leaks:#?}");
    for seed in 0..SEEDS {
        let of_seed = by_scenario.iter().map(|outcomes| &outcomes[seed]);
        let score = Score::of(of_seed.clone());
        let wrong: Vec<&Outcome> = of_seed.filter(|outcome| !outcome.is_right()).collect();
        assert!(score.right * 24 >= score.runs * 22, "{score:?}: {wrong:#?}");
    }
    for outcome in all().filter(|outcome| outcome.name == ONE_A_SECOND) {
        assert!(outcome.first && outcome.suspect_at.unwrap() <= 60.0, "{outcome:?}");
        assert!(outcome.leak_at.unwrap() <= 21.0 * 60.0, "{outcome:?}");
    }
    for outcome in all().filter(|outcome| outcome.name == ONE_A_SECOND_UNWAKEABLE) {
        assert!(outcome.first && outcome.leak_at.unwrap() <= 60.0, "{outcome:?}");
        assert_eq!(outcome.verdict, Verdict::Leak);
    }
}
