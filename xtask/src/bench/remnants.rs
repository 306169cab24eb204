//! What leakmon leaves running when it returns: a child that takes its probes away, while the next configuration is being measured.
//!
//! In: this process's children. Out: nothing; it returns when those have gone, and their probes with them. Without that, every
//! configuration but the first of a round would pay for the breakpoints and the programs of the one before.

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::{
        prctl::set_child_subreaper,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    fs,
    path::Path,
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

/// How long the probes of one run may take to go: a hundred times what they were seen to take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has leakmon's children become this process's own when leakmon ends.
pub(super) fn adopt() -> Result<()> {
    set_child_subreaper(true).context("can't adopt what leakmon leaves behind")
}

/// What leakmon is called, as a file and as a process.
const NAME: &str = "leakmon";

/// Waits for what this command has left behind, which has ended by itself. A `leakmon run` always leaves a child, were it one
/// that has ended: to find none means to look for the wrong thing.
pub(super) fn await_end_of(command: &Command) -> Result<()> {
    let is_leakmon = Path::new(command.get_program())
        .file_name()
        .is_some_and(|name| name == NAME);
    let found = await_end()?;
    ensure!(
        found > 0 || !is_leakmon,
        "leakmon has left no child that takes its probes away: nobody knows when they are gone"
    );
    Ok(())
}

/// Waits for what leakmon has left behind, within a minute, and says how many processes that were. Not to be called while a leakmon
/// that this process started is running: it would be waited for as well.
pub(super) fn await_end() -> Result<usize> {
    let started = Instant::now();
    let found = left_behind()?;
    for tgid in &found {
        while !has_ended(*tgid)? {
            ensure!(
                started.elapsed() < PATIENCE,
                "process {tgid}, which leakmon left behind, has not taken its probes away after {} s",
                PATIENCE.as_secs()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(found.len())
}

fn has_ended(tgid: i32) -> Result<bool> {
    match waitpid(Pid::from_raw(tgid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => Ok(false),
        // The kernel has closed its files before it tells of its end (`do_exit` in kernel/exit.c).
        Ok(_) | Err(Errno::ECHILD) => Ok(true),
        Err(error) => Err(error).context("can't wait for what leakmon left behind"),
    }
}

/// Children of this process that are called `leakmon`. A process that goes meanwhile is none.
fn left_behind() -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("can't read /proc")? {
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        found.extend(child_of(&stat, NAME, process::id()));
    }
    Ok(found)
}

/// The process of a line of `/proc/PID/stat` (proc(5): `pid (comm) state ppid …`), where it has this name and this parent.
fn child_of(stat: &str, name: &str, parent: u32) -> Option<i32> {
    let (tgid, rest) = stat.split_once(" (")?;
    // A name may have parentheses; what follows the last one has none.
    let (comm, rest) = rest.rsplit_once(") ")?;
    let ppid: u32 = rest.split(' ').nth(1)?.parse().ok()?;
    (comm == name && ppid == parent).then(|| tgid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_children_of_that_name_are_waited_for() {
        assert_eq!(child_of("12 (leakmon) S 7 12 12 0", "leakmon", 7), Some(12));
        for other in [
            "12 (leakmon) S 8 12 12 0",
            "12 (a) leakmon) S 7 12",
            "12 (leakmon) S",
            "",
        ] {
            assert_eq!(child_of(other, "leakmon", 7), None, "{other}");
        }
    }
}
