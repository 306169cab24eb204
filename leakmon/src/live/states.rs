//! What live tasks are doing, as far as it was read from the target's memory.
//!
//! In: counts by state for one stack, from `memory`. Out: the same, added up over a callsite's stacks. It reads nothing.

/// States of the live tasks of one stack, or of a sample of them: the oldest, where there are too many to read.
///
/// Words as of tokio's `runtime/task/state.rs`. `idle`, `scheduled` and `running` add up to `sampled`; a task whose header
/// could not be read, or is no longer one, is in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// Tasks that were read.
    pub sampled: u64,
    /// Of them, neither running nor notified.
    pub idle: u64,
    /// Of them, notified: they wait in a run queue.
    pub scheduled: u64,
    /// Of them, being polled.
    pub running: u64,
    /// Of the idle ones, those without a waker, read twice some seconds apart and unchanged.
    pub unwakeable: u64,
    /// Of the unwakeable ones, those that a `JoinHandle` can still abort. The others only the runtime's shutdown can end.
    pub abortable: u64,
}

impl std::ops::AddAssign for States {
    fn add_assign(&mut self, other: Self) {
        self.sampled += other.sampled;
        self.idle += other.idle;
        self.scheduled += other.scheduled;
        self.running += other.running;
        self.unwakeable += other.unwakeable;
        self.abortable += other.abortable;
    }
}
