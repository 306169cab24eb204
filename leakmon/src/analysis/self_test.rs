//! The job that tries to do what no child may, for tests and for `leakmon doctor`.
//!
//! In: an [`Attempt`]. Out: what came of it.

use super::job::{Job, answering};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixDatagram,
    time::Duration,
};

/// Something that must not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Open a file that everybody may read.
    OpenFile,
    /// Open again a file that it was handed.
    OpenOwnFile,
    /// Make a socket of each kind.
    Socket,
    /// Start a program.
    Execute,
    /// Start a thread, which is how a process is started as well.
    Thread,
    /// Never answer.
    Hang,
    /// Use the processor for ever.
    Spin,
    /// Take memory for ever.
    Allocate,
    /// Panic.
    Panic,
    /// Give back more bytes than an answer may have.
    Flood,
}

/// Bytes of a usual answer.
const ANSWER_BYTES_MAX: usize = 4_096;

/// The job.
pub static SELF_TEST: Job = Job {
    name: "self_test",
    memory_bytes: 128 << 20,
    processor_seconds: 1,
    answer_time: Duration::from_secs(4),
    answer_bytes_max: ANSWER_BYTES_MAX,
    start: |_files| Ok(answering(attempt)),
};

/// `Ok` with what succeeded, or `Err` with why it did not.
fn attempt(attempt: Attempt) -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let done = || format!("{attempt:?} succeeded");
    match attempt {
        Attempt::OpenFile => File::open("/proc/version").map(|_| done()).map_err(failed),
        Attempt::OpenOwnFile => File::open("/proc/self/exe").map(|_| done()).map_err(failed),
        Attempt::Socket => {
            let made = [
                TcpListener::bind("127.0.0.1:0").map(drop),
                UdpSocket::bind("127.0.0.1:0").map(drop),
                UnixDatagram::unbound().map(drop),
            ];
            match made.into_iter().find(Result::is_ok) {
                Some(_) => Ok(done()),
                None => Err("no socket can be made".to_owned()),
            }
        }
        Attempt::Execute => std::process::Command::new("/proc/self/exe")
            .spawn()
            .map(|_| done())
            .map_err(failed),
        Attempt::Thread => std::thread::Builder::new().spawn(|| ()).map(|_| done()).map_err(failed),
        Attempt::Hang => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Attempt::Spin => loop {
            std::hint::spin_loop();
        },
        Attempt::Allocate => {
            let mut taken: Vec<Vec<u8>> = Vec::new();
            loop {
                // Written to, so that it is there.
                taken.push(vec![1; 1 << 20]);
            }
        }
        Attempt::Panic => panic!("as it was told"),
        Attempt::Flood => Ok("x".repeat(2 * ANSWER_BYTES_MAX)),
    }
}
