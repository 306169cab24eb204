//! Stages of a longer command, and how many minutes each took.
//!
//! In: named pieces of work. Out: a heading and a time for each on standard output, and one error that names the stages
//! that failed. A failed stage does not keep the others from running.

use anyhow::{Result, bail};
use std::{
    io::Write as _,
    time::{Duration, Instant},
};

/// What has run so far.
pub(crate) struct Stages {
    started: Instant,
    failed: Vec<String>,
}

impl Stages {
    /// No stage has run.
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            failed: Vec::new(),
        }
    }

    /// Runs one stage; its error is printed, and kept for [`Stages::finish`].
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        println!("\n== {name}");
        let started = Instant::now();
        let result = work();
        let verdict = match &result {
            Ok(()) => "done",
            Err(error) => {
                println!("{name}: {error:#}");
                self.failed.push(name.to_owned());
                "FAILED"
            }
        };
        println!("== {name}: {verdict} in {}", minutes(started.elapsed()));
        let _ = std::io::stdout().flush();
    }

    /// The time since the first stage.
    pub(crate) fn elapsed(&self) -> String {
        minutes(self.started.elapsed())
    }

    /// An error that names every stage that failed.
    pub(crate) fn finish(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

/// A time as `1.5 min`.
fn minutes(time: Duration) -> String {
    format!("{:.1} min", time.as_secs_f64() / 60.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_runs_and_failures_are_named() {
        let mut stages = Stages::new();
        let mut ran = 0;
        for (name, fails) in [("first", true), ("second", false), ("third", true)] {
            stages.run(name, || {
                ran += 1;
                if fails {
                    bail!("no");
                }
                Ok(())
            });
        }
        assert_eq!(ran, 3);
        assert_eq!(stages.finish().unwrap_err().to_string(), "failed: first, third");
        assert!(Stages::new().finish().is_ok());
    }

    #[test]
    fn times_are_minutes() {
        assert_eq!(minutes(Duration::from_secs(90)), "1.5 min");
    }
}
