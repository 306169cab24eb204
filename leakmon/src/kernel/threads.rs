//! Threads that the tracepoints could not see start.
//!
//! In: threads that `/proc` shows. Out: entries of the table of live tasks, made by a program, so that a thread that starts or
//! ends just now is not counted twice. Every other thread is followed by the tracepoints alone.

use super::{Kernel, KernelError};
use leakmon_ebpf::abi::TargetId;

pub(super) const FOUND: &str = "thread_found";

impl Kernel {
    /// Counts a thread that was there before its process was a target; one that is known already is left alone.
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn thread_found(&mut self, target: TargetId, tid: u32, born_ns: u64) -> Result<(), KernelError> {
        self.execute(FOUND, &[target.0, u64::from(tid), born_ns, 1])
    }

    /// Counts the end of a thread that has gone, unless that is done already: it may have ended between its sight in `/proc`
    /// and [`Self::thread_found`].
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn thread_gone(&mut self, target: TargetId, tid: u32) -> Result<(), KernelError> {
        self.execute(FOUND, &[target.0, u64::from(tid), 0, 0])
    }
}
