//! Leaving a process alone that runs a probed file.
//!
//! In: a target. Out: its entry in `TARGETS` is marked, so that its hits count nothing, until it calls exec or ends. A program
//! does it, run from here: it changes the entry where it is, and only if it is still that target's, so an exec or an end at the
//! same moment can't make the mark another's.

use super::{Kernel, KernelError};
use leakmon_ebpf::abi::TargetId;

/// The program that marks an entry.
pub(super) const EXCLUDE: &str = "exclude_target";

impl Kernel {
    /// Counts no hit of a target from now on.
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn exclude(&mut self, target: TargetId) -> Result<(), KernelError> {
        self.execute(EXCLUDE, &[target.0])
    }
}
