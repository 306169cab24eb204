//! Letting a held command go on.
//!
//! In: a process that a BPF program stopped at its entry point (`leakmon run` only). Out: `SIGCONT`. Sent before the stop
//! takes effect it cancels it, so it can't come too early.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Lets a process go on; one that has gone needs nothing.
pub(super) fn let_go(tgid: u32) {
    if let Ok(tgid) = i32::try_from(tgid) {
        let _gone = kill(Pid::from_raw(tgid), Signal::SIGCONT);
    }
}
