//! Threads that were there before their process was a target.
//!
//! In: targets as they appear. Out: such threads in the kernel's tables, once. A thread that ends between its sight in `/proc`
//! and its entry would stay for ever, so each is looked for again a little later.

use crate::{
    kernel::{
        Kernel,
        clock::{monotonic_ns, monotonic_of_boot},
    },
    targets::processes,
};
use leakmon_ebpf::abi::TargetId;
use std::collections::VecDeque;

/// A thread that was ending when it was seen has gone from `/proc` after this time; the kernel takes microseconds.
const GONE_NS: u64 = 1_000_000_000;

/// Threads that wait to be looked for again; one that finds no room is counted as it was seen.
const AGAIN_MAX: usize = 1 << 16;

/// Threads to look for again, in the order of their sight.
#[derive(Debug, Default)]
pub(super) struct EarlierThreads(VecDeque<(TargetId, u32, u64)>);

impl EarlierThreads {
    /// Gives the kernel the threads of a target that it did not see start.
    pub(super) fn see(&mut self, target: TargetId, kernel: &mut Kernel) {
        // One that has gone has no threads.
        let threads = processes::threads(target.tgid()).unwrap_or_default();
        let now_ns = monotonic_ns();
        for thread in threads {
            let born_ns = monotonic_of_boot(thread.started_boot_ns);
            if let Err(error) = kernel.thread_found(target, thread.tid, born_ns) {
                tracing::warn!("the threads of process {} can't be counted: {error}", target.tgid());
                return;
            }
            if self.0.len() < AGAIN_MAX {
                self.0.push_back((target, thread.tid, now_ns));
            }
        }
    }

    /// Looks again for those that were seen long enough ago.
    pub(super) fn look_again(&mut self, kernel: &mut Kernel) {
        let now_ns = monotonic_ns();
        while let Some((target, tid, seen_ns)) = self.0.front().copied() {
            if now_ns.saturating_sub(seen_ns) < GONE_NS {
                return;
            }
            self.0.pop_front();
            if processes::thread(target.tgid(), tid).is_none() && kernel.thread_gone(target, tid).is_err() {
                return;
            }
        }
    }
}
