//! Children that share their parent's memory and exec nothing.
//!
//! In: what the child does. Out: nothing, once it has ended. The standard library has no fork; this is for programs with one
//! thread.

use std::io;

/// Forks a child that runs `child` and leaves at once, and waits for its end. The process must have one thread.
pub(crate) fn fork(child: impl FnOnce()) -> io::Result<()> {
    // SAFETY: with one thread no lock is held by another, so the child may do what the parent could.
    let tgid = unsafe { libc::fork() };
    if tgid == 0 {
        child();
        // SAFETY: ends the child without running what the parent registered for its own exit.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    if tgid < 0 || unsafe { libc::waitpid(tgid, &raw mut status, 0) } != tgid {
        return Err(io::Error::last_os_error());
    }
    match status {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("a child ended with status {status}"))),
    }
}
