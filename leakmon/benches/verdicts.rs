//! Verdicts on the corpus of `tests/verdicts`, with all the seeds that nothing was tuned on.
//!
//! Prints a table: how often each scenario is judged right and how long the verdict takes, precision and recall. Fails where the
//! verdicts are worse than they may be.
#![allow(dead_code, reason = "the tests use the rest of the corpus")]

#[path = "../tests/verdicts/corpus.rs"]
mod corpus;
#[path = "../tests/verdicts/scoring.rs"]
mod scoring;
#[path = "../tests/verdicts/simulation.rs"]
mod simulation;

use scoring::Score;
use std::{io::Write as _, process::ExitCode};

fn main() -> ExitCode {
    let by_scenario = scoring::run_all(corpus::REPORTED_SEEDS);
    let score = Score::of(by_scenario.iter().flatten());
    // A reader that has gone wants no more.
    let _closed = std::io::stdout().write_all(scoring::table(&by_scenario).as_bytes());
    if score.false_leaks > 0 || score.right * 24 < score.runs * 22 {
        for outcome in by_scenario.iter().flatten().filter(|outcome| !outcome.is_right()) {
            eprintln!("wrong: {outcome:?}");
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
