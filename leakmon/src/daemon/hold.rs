//! Letting held commands go on.
//!
//! In: processes that a BPF program stopped at their exec or their entry point (`leakmon run` only). Out: `SIGCONT`. Sent before
//! the stop takes effect it cancels it, so it can't come too early.

use super::Observer;
use leakmon_ebpf::abi::{HOLD, HOLD_EXEC, Loss};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::Duration;

/// How long a command is held for its unwind tables, or for the analysis of its program; both take milliseconds as a rule.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(5);

/// Flags that make a process stop.
const HOLDS: u32 = HOLD | HOLD_EXEC;

/// Rounds in which processes are let go at the end. A child that is born meanwhile is seen by the next one.
const ROUNDS_MAX: usize = 16;

/// Lets a process go on; one that has gone needs nothing.
pub(super) fn let_go(tgid: u32) {
    if let Ok(tgid) = i32::try_from(tgid) {
        let _gone = kill(Pid::from_raw(tgid), Signal::SIGCONT);
    }
}

impl Observer {
    /// Lets held processes go once their tables are there, or have been waited for long enough.
    pub(super) fn let_go(&mut self) {
        let complete = self.unwinding.is_complete();
        self.held.retain(|(target, since)| {
            let wait = !complete && since.elapsed() < HOLD_MAX;
            if !wait {
                let_go(target.tgid());
            }
            wait
        });
        self.let_go_of_first_sights();
    }

    /// Where events were dropped, one that says that a process is held may be among them: whoever is watched goes on.
    pub(super) fn let_go_after_loss(&mut self) {
        let dropped = self.kernel.loss()[Loss::RingFull as usize];
        if dropped > self.dropped_events {
            self.dropped_events = dropped;
            for (tgid, _) in self.holding() {
                let_go(tgid);
            }
        }
    }

    /// Holds nobody from now on, and lets go whoever is held: nobody reads the ring any more.
    pub(super) fn stop_holding(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let holding = self.holding();
            if holding.is_empty() {
                break;
            }
            for (tgid, flags) in holding {
                if let Err(error) = self.kernel.watch(tgid, flags & !HOLDS) {
                    tracing::warn!("process {tgid} may be held once more: {error}");
                }
                let_go(tgid);
            }
        }
        for (target, _) in self.held.drain(..) {
            let_go(target.tgid());
        }
        self.let_all_go();
    }

    /// The processes that stop at their exec or entry point, with their flags.
    fn holding(&self) -> Vec<(u32, u32)> {
        let watched = self.kernel.watched().into_iter();
        watched.filter(|(_, flags)| flags & HOLDS != 0).collect()
    }
}
