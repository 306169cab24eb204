//! Why an analysis gave no answer, in words.
//!
//! In: how a child ended. Out: a [`Failure`]. It names no file: who asked does.

use nix::sys::signal::Signal;

/// Why there is no answer. A clause that goes on "FILE: …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was killed for the time it took.
    #[error("its analysis took more than {seconds} s")]
    Time {
        /// What it might take.
        seconds: u64,
    },
    /// It could not get the memory it asked for.
    #[error("its analysis needed more than {megabytes} MB of memory")]
    Memory {
        /// What it might have.
        megabytes: u64,
    },
    /// It ended otherwise.
    #[error("its analysis crashed ({how})")]
    Crash {
        /// A signal or an exit code.
        how: String,
    },
    /// Its answer is too long, or none that the question can have.
    #[error("its analysis gave an answer that makes no sense")]
    Answer,
    /// There is nobody to ask.
    #[error("the process that starts analyses is gone: restart leakmon")]
    Gone,
    /// Too many analyses at once, or no more processes can be started.
    #[error("its analysis can't be started ({0})")]
    Start(String),
}

/// Label values of outcomes, in the order of [`Outcome`].
pub(super) const OUTCOMES: [&str; 6] = ["done", "time", "memory", "crash", "answer", "not_started"];

/// How an analysis came out, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Done,
    /// [`Failure::Time`].
    Time,
    /// [`Failure::Memory`].
    Memory,
    /// [`Failure::Crash`].
    Crash,
    /// [`Failure::Answer`].
    Answer,
    /// [`Failure::Gone`] and [`Failure::Start`].
    NotStarted,
}

impl Failure {
    /// What it is counted as.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Time { .. } => Outcome::Time,
            Self::Memory { .. } => Outcome::Memory,
            Self::Crash { .. } => Outcome::Crash,
            Self::Answer => Outcome::Answer,
            Self::Gone | Self::Start(_) => Outcome::NotStarted,
        }
    }

    /// Whether the file is to blame, so that another try would end the same way.
    pub(super) const fn is_of_the_file(&self) -> bool {
        !matches!(self, Self::Gone | Self::Start(_))
    }

    /// How a child ended that did not answer, from `wait4`'s status.
    pub(super) fn of_status(status: i32, memory_bytes: u64, processor_seconds: u64) -> Self {
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            return match signal {
                // Rust aborts where memory can't be had; a panic unwinds.
                libc::SIGABRT => Self::Memory {
                    megabytes: memory_bytes >> 20,
                },
                libc::SIGXCPU => Self::Time {
                    seconds: processor_seconds,
                },
                _ => Self::Crash {
                    how: Signal::try_from(signal).map_or(format!("signal {signal}"), |signal| signal.to_string()),
                },
            };
        }
        Self::Crash {
            how: format!("exit code {}", libc::WEXITSTATUS(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_sentence() {
        for (status, sentence) in [
            (libc::SIGABRT, "its analysis needed more than 3 MB of memory"),
            (libc::SIGXCPU, "its analysis took more than 7 s"),
            (libc::SIGSEGV, "its analysis crashed (SIGSEGV)"),
            (libc::SIGKILL, "its analysis crashed (SIGKILL)"),
            (101 << 8, "its analysis crashed (exit code 101)"),
        ] {
            assert_eq!(
                Failure::of_status(status, 3 << 20, 7).to_string(),
                sentence,
                "{status:#x}"
            );
        }
    }
}
