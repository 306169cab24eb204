//! Closing many probes without making anybody wait.
//!
//! In: a [`Kernel`] that is no longer needed. Out: nothing; the probes go one after the other. Closing a
//! probe takes a kernel grace period (107 ms each was measured), so a process that holds hundreds would take minutes
//! to exit. A child that shares the descriptors closes them instead, while the parent goes on at once.

use super::{Kernel, attach::Links};
use nix::unistd::{ForkResult, fork, pipe, setsid};
use std::{
    os::fd::{AsRawFd, RawFd},
    thread::JoinHandle,
};

/// Probes that may as well be closed at once.
const AT_ONCE_MAX: usize = 1;

/// Probes that are closed at once: they wait for the same grace periods.
const LANES: usize = 8;

/// Closes an image's probes on a thread of its own, while this process goes on watching others. They are gone when the thread has
/// ended; `None` where they were closed here, since there is no thread.
pub fn on_thread(links: Links) -> Option<JoinHandle<()>> {
    let spawned = std::thread::Builder::new()
        .name("detach".to_owned())
        .spawn(move || links.close(LANES));
    spawned
        .inspect_err(|error| tracing::debug!("no thread to close the probes, so they were closed here: {error}"))
        .ok()
}

/// Gives the probes to a child that closes them once this process no longer holds them, and returns at once. Should the
/// child not start, they are closed here.
pub fn in_background(kernel: Kernel) {
    if kernel.attached_sites() <= AT_ONCE_MAX {
        return;
    }
    let Ok((waiting, held)) = pipe() else {
        return;
    };
    // SAFETY: the child calls only async-signal-safe functions (setsid, close, read, _exit) and never returns, so it does
    // not matter which locks other threads held at the fork.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => wait_and_exit(waiting.as_raw_fd(), held.as_raw_fd()),
        // The parent's copies go first, so the child's are the last ones and only the child waits for the kernel.
        Ok(ForkResult::Parent { .. }) => {
            drop(kernel);
            drop(held);
        }
        Err(error) => tracing::debug!("no child to close the probes: {error}"),
    }
}

/// The child: lets go of everything by which it could make somebody wait, waits for the parent, and ends.
fn wait_and_exit(waiting: RawFd, held: RawFd) -> ! {
    let _own_session = setsid();
    let mut byte = 0_u8;
    // SAFETY: plain descriptors that the child alone uses from here on, a buffer of one byte, and `_exit`, which runs no
    // destructor: the kernel closes the probes.
    unsafe {
        for descriptor in [0, 1, 2, held] {
            libc::close(descriptor);
        }
        // Returns at the end of file: the parent has dropped its end, or is gone.
        libc::read(waiting, (&raw mut byte).cast(), 1);
        libc::_exit(0)
    }
}
