//! `leakmon run -- CMD ARGS`: watches a command from its first instruction.
//!
//! The probes sit on the file before it is executed, so nothing is missed. The command's input and output are left alone;
//! signals are passed on, and its exit code is leakmon's.

use super::{
    Destination, Exit, Unprobeable, analyst,
    observation::{self, Conclusion},
    progress::Spinner,
    say,
};
use crate::{
    analysis::Analyst,
    cli::RunArgs,
    targets::{self, AnalyseError, plan::ProbePlan},
};
use anyhow::Context;
use nix::{
    sys::signal::{self, Signal},
    unistd::{AccessFlags, Pid, access, getpgrp, tcgetpgrp},
};
use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::ExitStatus,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// What is passed on to the command.
const FORWARDED: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Signals that wait to be passed on; more at once are merged, as the kernel does.
const PENDING_MAX: usize = 16;

pub(super) async fn execute(args: RunArgs) -> anyhow::Result<Exit> {
    let Some((name, arguments)) = args.command.split_first() else {
        return Err(Unprobeable("there is no command after `--`".to_owned()).into());
    };
    observation::check_output(&args.observe)?;
    let program = find(name)?;
    let analyst = analyst()?;
    let found = {
        let _scanning = Spinner::new("looking for probe sites");
        analyse(&analyst, &program)?
    };
    let mut observer = observation::observer(&args.observe, analyst)?;
    if let Some((plan, file)) = found {
        observer.add_image(plan, file, false)?;
    }
    observer.hold_descendants()?;
    let mut signals = listen()?;
    let mut command = Command::new(&program);
    // The name as it was given, which is what a shell would pass.
    command.arg0(name).args(arguments).kill_on_drop(false);
    let mut child = observer.watch_children(|| {
        let refused = |error| Unprobeable(format!("{}: can't be executed: {error}", program.display()));
        Ok(command.spawn().map_err(refused)?)
    })?;
    let destination = args
        .observe
        .output
        .as_deref()
        .map_or(Destination::Stderr, Destination::File);
    let duration = observation::progress(args.observe.duration, "watching");
    let ended = {
        let wait = wait(&mut child, &mut signals);
        let until = async {
            tokio::select! { status = wait => Some(status), () = duration => None }
        };
        observer.observe(false, until).await.flatten()
    };
    let written = observation::conclude(observer, &args.observe, destination).await;
    let status = match ended {
        Some(status) => status,
        None => wait(&mut child, &mut signals).await,
    };
    let status = status.context("the command's end can't be waited for")?;
    let Conclusion { leaks, any_target } = written?;
    if !any_target {
        say(
            "no process of the command ran an async runtime that leakmon knows: `leakmon probes` says what a binary has",
        );
    }
    Ok(match exit_code(status) {
        0 if leaks => Exit::Leak,
        code => Exit::Command(code),
    })
}

/// The file that the shell would execute for this name.
fn find(name: &OsStr) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return Ok(path.to_owned());
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories)
        .map(|directory| directory.join(path))
        .find(|candidate| {
            candidate
                .metadata()
                .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| {
            Unprobeable(format!(
                "{}: no such command: it is in no directory of PATH",
                path.display()
            ))
            .into()
        })
}

/// Where the command itself is probed; `None` where it runs nothing that leakmon knows, but may start what does.
fn analyse(analyst: &Analyst, program: &Path) -> anyhow::Result<Option<(ProbePlan, File)>> {
    if program.is_file() && access(program, AccessFlags::X_OK).is_err() {
        return Err(Unprobeable(format!(
            "{}: can't be executed: it is not marked as executable",
            program.display()
        ))
        .into());
    }
    match targets::analyse_path(analyst, program) {
        Ok(found) => Ok(Some(found)),
        Err(AnalyseError::NoRuntime { .. }) => Ok(None),
        Err(AnalyseError::NotElf(_)) if is_script(program) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel has an interpreter run it (`fs/binfmt_script.c`).
fn is_script(program: &Path) -> bool {
    let mut start = [0; 2];
    File::open(program).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && start == *b"#!"
}

fn listen() -> anyhow::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(PENDING_MAX);
    for forwarded in FORWARDED {
        let kind = SignalKind::from_raw(forwarded as i32);
        let mut stream = signal(kind).with_context(|| format!("{forwarded} can't be listened to"))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let _already_pending = sender.try_send(forwarded);
            }
        });
    }
    Ok(receiver)
}

/// Waits for the command's end and passes signals on meanwhile.
async fn wait(child: &mut Child, signals: &mut mpsc::Receiver<Signal>) -> std::io::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            Some(received) = signals.recv() => forward(child.id(), received),
        }
    }
}

fn forward(tgid: Option<u32>, received: Signal) {
    // A terminal sends these to the whole foreground group, the command included: once is enough.
    let from_terminal = matches!(received, Signal::SIGINT | Signal::SIGQUIT)
        && tcgetpgrp(std::io::stdin()).is_ok_and(|foreground| foreground == getpgrp());
    let Some(tgid) = tgid
        .and_then(|tgid| i32::try_from(tgid).ok())
        .filter(|_| !from_terminal)
    else {
        return;
    };
    // It may have ended just now: its end is noticed by the caller.
    let _gone = signal::kill(Pid::from_raw(tgid), received);
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_the_commands_or_128_and_its_signal() {
        for (raw, expected) in [
            (0, 0),
            (7 << 8, 7),
            (255 << 8, 255),
            (9, 137),
            (15, 143),
            (0x80 | 6, 134),
        ] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), expected, "wait status {raw:#x}");
        }
    }

    #[test]
    fn a_name_is_looked_up_in_path_and_a_path_is_not() {
        assert!(find(OsStr::new("sh")).unwrap().is_absolute());
        assert_eq!(find(OsStr::new("./x")).unwrap(), Path::new("./x"));
        let error = find(OsStr::new("no-such-command-here")).unwrap_err();
        assert!(error.to_string().contains("no such command"), "{error}");
    }
}
