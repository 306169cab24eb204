//! Forking, killing and reaping: the system calls that Rust can't vouch for.
//!
//! In: process numbers, descriptors. Out: the same, owned. Called by the zygote, which has one thread.

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork},
};
use std::{
    mem::MaybeUninit,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// How often, and how many times, a killed child is looked for before it is left behind: a second.
const REAP_INTERVAL: Duration = Duration::from_millis(1);
const REAP_TRIES: u32 = 1_000;

/// Takes a descriptor that the kernel has just given to this process.
pub(super) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: called on what `recvmsg` returned, once; nobody else knows the number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Forks: the child's number, or `None` in the child.
pub(super) fn split() -> nix::Result<Option<Pid>> {
    // SAFETY: the zygote has one thread, so no lock is held by another one, and the child may do what it likes.
    match unsafe { fork()? } {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends this process at once, without what was registered for its end by whom it was forked from.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: takes a number, and does not return.
    unsafe { libc::_exit(code) }
}

/// How a child ended.
pub(super) struct Ending {
    /// `wait4`'s status.
    pub(super) status: i32,
    /// The most memory it ever had, in bytes.
    pub(super) peak_bytes: u64,
}

/// Kills a child of this process and waits for its end. `None` where it does not go, or is no child.
pub(super) fn end(pid: Pid) -> Option<Ending> {
    for _ in 0..REAP_TRIES {
        match kill(pid, Signal::SIGKILL) {
            // One that has ended is killed as well as one that runs.
            Ok(()) => {}
            Err(_) => return None,
        }
        match reap(pid) {
            Ok(Some(ending)) => return Some(ending),
            Ok(None) => std::thread::sleep(REAP_INTERVAL),
            Err(_) => return None,
        }
    }
    None
}

/// A child's end, where it has come.
pub(super) fn reap(pid: Pid) -> nix::Result<Option<Ending>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to variables of this function, of the types that the call writes.
    let reaped = unsafe { libc::wait4(pid.as_raw(), &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if Errno::result(reaped)? == 0 {
        return Ok(None);
    }
    // SAFETY: zeroed bytes are a valid `rusage`, and the call has filled them in.
    let usage = unsafe { usage.assume_init() };
    Ok(Some(Ending {
        status,
        // In kilobytes (getrusage(2)).
        peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
    }))
}
