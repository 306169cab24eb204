//! The process that forks children: small, with one thread, and with nothing of the daemon's memory.
//!
//! In: orders over the socket that is its standard input. Out: children, killed and reaped when the daemon says so, or when
//! it is gone. It reads no file of anybody's.

use super::{
    confinement,
    job::{Job, Work},
    message::{self, Order, Report},
    process,
};
use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getppid},
};
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Name under which leakmon's executable is started as the zygote, its argument zero.
pub const ZYGOTE_NAME: &str = "leakmon-analysis";
/// Children at once.
const CHILDREN_MAX: usize = 64;
/// Bytes of a request: an address, or nothing.
const REQUEST_BYTES_MAX: usize = 256;
/// Rights that the zygote keeps: to open again, by its descriptor, a file that the daemon could open. Its children give
/// them up before they look into it.
const KEPT: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];

/// Forks children for these jobs until the daemon is gone. Must be called in a process that has one thread.
///
/// # Errors
/// Standard input is no such socket, or rights can't be given up.
pub fn serve(jobs: &[&Job]) -> io::Result<()> {
    prepare()?;
    let control = io::stdin();
    let mut children = BTreeSet::new();
    let mut packet = message::packet();
    loop {
        let (len, files) = match message::receive_into(control.as_fd(), &mut packet) {
            // The daemon has gone with a report unread (unix(7)).
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            received => received?,
        };
        let Some(order) = packet.get(..len).filter(|order| !order.is_empty()) else {
            break;
        };
        let report = match postcard::from_bytes(order).map_err(io::Error::other)? {
            Order::Begin { job } => begin(jobs, job, files, &mut children),
            Order::End { pid } => end(pid, &mut children),
        };
        if message::send(control.as_fd(), &report, &[]).is_err() {
            break;
        }
    }
    for pid in children {
        let _ending = process::end(Pid::from_raw(pid));
    }
    Ok(())
}

fn prepare() -> io::Result<()> {
    // A terminal and systemd send these to every process: the daemon decides what they mean.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    prctl::set_no_new_privs()?;
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|right| held.contains(right)).collect();
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(io::Error::other)?;
    }
    Ok(())
}

fn begin(jobs: &[&Job], name: &str, files: Vec<OwnedFd>, children: &mut BTreeSet<i32>) -> Report {
    let not_begun = |reason: &str| Report::NotBegun {
        reason: reason.to_owned(),
    };
    let Some(job) = jobs.iter().find(|job| job.name == name) else {
        return not_begun("no such job");
    };
    if children.len() >= CHILDREN_MAX {
        return not_begun("too many run at once");
    }
    let mut files = files.into_iter();
    let Some(socket) = files.next() else {
        return not_begun("it was handed no socket");
    };
    let zygote = nix::unistd::getpid();
    match process::split() {
        Ok(Some(pid)) => {
            children.insert(pid.as_raw());
            Report::Begun { pid: pid.as_raw() }
        }
        Ok(None) => {
            // Closed by the process's end alone: the daemon takes that for the end, and asks how it came.
            let socket = File::from(socket);
            let child = || child(job, zygote, &socket, files.map(File::from).collect());
            let code = match catch_unwind(AssertUnwindSafe(child)) {
                Ok(Ok(())) => 0,
                Ok(Err(_)) => 1,
                // As Rust's own.
                Err(_) => 101,
            };
            process::exit(code)
        }
        Err(error) => not_begun(error.desc()),
    }
}

fn end(pid: i32, children: &mut BTreeSet<i32>) -> Report {
    let ending = match children.contains(&pid) {
        true => process::end(Pid::from_raw(pid)),
        false => None,
    };
    match ending {
        Some(ending) => {
            children.remove(&pid);
            Report::Ended {
                status: ending.status,
                peak_bytes: ending.peak_bytes,
            }
        }
        // It is in the middle of something that can't be interrupted; the signal waits for it.
        None => Report::Ended {
            status: libc::SIGKILL,
            peak_bytes: 0,
        },
    }
}

/// The child: nobody but it and the daemon has the socket's ends.
fn child(job: &Job, zygote: Pid, mut socket: &File, files: Vec<File>) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != zygote {
        return Ok(());
    }
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // The zygote's own socket among them.
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    drop(nothing);
    // Before anything of the host's is. Not allowed everywhere.
    let _best_effort = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut work: Work = (job.start)(files)?;
    let confinement = confinement::confine(job)?;
    socket.write_all(&[confinement.to_byte()])?;
    loop {
        let request = message::read_frame(&mut socket, REQUEST_BYTES_MAX)?;
        message::write_frame(&mut socket, &work(&request))?;
    }
}
