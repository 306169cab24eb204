//! Children that analyse, as leakmon's own executable forks them: what they can't do, and what becomes of those that try.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crafted;
mod debug_information;
mod memory;
mod symbols;

use leakmon::analysis::{
    Analyst, Confinement, Failure, Outcome,
    self_test::{Attempt, SELF_TEST},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{fs::File, path::Path, time::Instant};

/// What an attempt came to.
type Came = Result<String, String>;

fn analyst() -> Analyst {
    Analyst::start(Path::new(env!("CARGO_BIN_EXE_leakmon"))).expect("leakmon is built")
}

fn own_file() -> File {
    File::open("/proc/self/exe").expect("a test is a file")
}

#[test]
fn a_child_can_neither_open_files_nor_make_sockets_nor_start_anything() {
    let analyst = analyst();
    let file = own_file();
    let mut child = analyst.child(&SELF_TEST, &[&file]).unwrap();
    for attempt in [
        Attempt::OpenFile,
        Attempt::OpenOwnFile,
        Attempt::Socket,
        Attempt::Execute,
        Attempt::Thread,
    ] {
        let came: Came = child.ask(&attempt).unwrap();
        println!("{attempt:?}: {came:?}");
        assert!(came.is_err(), "{attempt:?}");
    }
    drop(child);
    let counts = analyst.counts();
    let confinement = counts.confinement.unwrap();
    println!("{confinement:?}, peak {} KiB", counts.peak_bytes >> 10);
    // Every layer that this kernel has.
    let landlock = std::fs::read_to_string("/proc/kallsyms").is_ok_and(|symbols| symbols.contains("landlock_"));
    assert_eq!(
        confinement,
        Confinement {
            landlock,
            seccomp: true
        }
    );
    assert_eq!(counts.of(Outcome::Done), 1);
    assert!(counts.peak_bytes > 1 << 20);
}

#[test]
fn what_ends_a_child_is_said_counted_once_and_not_tried_again() {
    for (attempt, outcome, sentence) in [
        (Attempt::Hang, Outcome::Time, "its analysis took more than 4 s"),
        (Attempt::Spin, Outcome::Time, "its analysis took more than "),
        (
            Attempt::Allocate,
            Outcome::Memory,
            "its analysis needed more than 128 MB of memory",
        ),
        (Attempt::Panic, Outcome::Crash, "its analysis crashed (exit code 101)"),
        (
            Attempt::Flood,
            Outcome::Answer,
            "its analysis gave an answer that makes no sense",
        ),
    ] {
        let (analyst, file) = (analyst(), own_file());
        let began = Instant::now();
        let failure = analyst.ask_once::<_, Came>(&SELF_TEST, &[&file], &attempt).unwrap_err();
        println!("{attempt:?}: {failure}, after {:?}", began.elapsed());
        // The processor's time or the clock's: whichever is over first on this host.
        assert!(failure.to_string().starts_with(sentence), "{failure}");
        // The next ones are not even begun.
        for _ in 0..3 {
            let again = analyst.ask_once::<_, Came>(&SELF_TEST, &[&file], &Attempt::OpenFile);
            assert_eq!(again.unwrap_err(), failure);
        }
        let counts = analyst.counts();
        assert_eq!((counts.of(outcome), counts.remembered), (1, 3));
        assert_eq!(counts.outcomes().map(|(_, count)| count).sum::<u64>(), 1);
        // What it has anyway, and no more than it may have besides.
        assert!(counts.peak_bytes < 192 << 20, "{} MiB", counts.peak_bytes >> 20);
        // Another file is analysed.
        let other = tempfile::tempfile().unwrap();
        let came: Came = analyst.ask_once(&SELF_TEST, &[&other], &Attempt::OpenFile).unwrap();
        assert!(came.is_err());
    }
}

#[test]
fn children_end_with_the_zygote_and_the_zygote_with_the_daemon() {
    let analyst = analyst();
    let zygote = Pid::from_raw(analyst.zygote_tgid().unwrap().cast_signed());
    let mut child = analyst.child(&SELF_TEST, &[]).unwrap();
    let came: Came = child.ask(&Attempt::OpenFile).unwrap();
    assert!(came.is_err());
    kill(zygote, Signal::SIGKILL).unwrap();
    // It would not answer for four seconds: its end of the socket is closed before, by its own end.
    let failure = child.ask::<_, Came>(&Attempt::Hang).unwrap_err();
    assert_eq!(failure, Failure::Gone);
    assert!(matches!(waitpid(zygote, None), Ok(WaitStatus::Signaled(..))));

    let analyst = self::analyst();
    let zygote = Pid::from_raw(analyst.zygote_tgid().unwrap().cast_signed());
    drop(analyst);
    assert_eq!(waitpid(zygote, None), Ok(WaitStatus::Exited(zygote, 0)));
}

#[test]
fn without_a_zygote_there_is_a_sentence() {
    // It ends at once, as if it had been killed.
    let analyst = Analyst::start(Path::new("/bin/true")).unwrap();
    let file = own_file();
    for _ in 0..2 {
        let failure = analyst.child(&SELF_TEST, &[&file]).unwrap_err();
        assert_eq!(failure, Failure::Gone);
    }
    assert_eq!(analyst.counts().of(Outcome::NotStarted), 2);
}
