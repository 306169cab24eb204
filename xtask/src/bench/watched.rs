//! A victim that waits for orders, and the leakmon that watches it: what both benchmarks of running processes start.
//!
//! In: programs and their arguments. Out: processes that are ended when dropped, and what `/proc` says of them. It compares
//! nothing.

use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

/// A process with its input, and one of its outputs, in our hands. Ended when dropped, by SIGTERM.
pub(super) struct Watched {
    child: Child,
    input: Option<ChildStdin>,
    lines: Box<dyn BufRead>,
}

impl Watched {
    /// Starts a victim, which talks on its standard output.
    pub(super) fn victim(command: &mut Command) -> Result<Self> {
        let mut child = start(command.stdout(Stdio::piped()))?;
        let lines = Box::new(BufReader::new(child.stdout.take().context("no output")?));
        Ok(Self::new(child, lines))
    }

    /// Starts leakmon, which says on standard error what it does.
    pub(super) fn leakmon(command: &mut Command) -> Result<Self> {
        let mut child = start(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let lines = Box::new(BufReader::new(child.stderr.take().context("no messages")?));
        Ok(Self::new(child, lines))
    }

    fn new(mut child: Child, lines: Box<dyn BufRead>) -> Self {
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    pub(super) fn tgid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("the program ended: {}", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Gives it a line, which is what a victim waits for before its next phase.
    pub(super) fn go_on(&mut self) -> Result<()> {
        let input = self.input.as_mut().context("its input is closed")?;
        input.write_all(b"\n")?;
        Ok(input.flush()?)
    }

    /// Waits for a line that contains `word`, and gives it.
    pub(super) fn line_with(&mut self, word: &str) -> Result<String> {
        let mut line = self.line()?;
        while !line.contains(word) {
            line = self.line()?;
        }
        Ok(line)
    }

    /// Has it end as a user would, and waits until it has gone.
    pub(super) fn end(&mut self) -> Result<()> {
        drop(self.input.take());
        let _gone = Command::new("kill").arg(self.child.id().to_string()).status();
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // What has ended already is not sent anything: its number may be another's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ended = self.end();
        }
    }
}

fn start(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", command.get_program().display()))
}

/// Time that all threads of a process have run so far (`/proc/PID/task/TID/schedstat`, first field, nanoseconds).
pub(super) fn cpu(tgid: u32) -> Result<Duration> {
    let folder = format!("/proc/{tgid}/task");
    let mut ns = 0;
    for thread in fs::read_dir(&folder).with_context(|| format!("can't read {folder}"))? {
        // A thread that has gone meanwhile is none of those that work all the time.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        ns += text
            .split_ascii_whitespace()
            .next()
            .unwrap_or_default()
            .parse::<u64>()?;
    }
    Ok(Duration::from_nanos(ns))
}

/// Memory of a process that is not in files (`RssAnon` of `/proc/PID/status`), bytes.
pub(super) fn anonymous_bytes(tgid: u32) -> Result<u64> {
    let path = format!("/proc/{tgid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no RssAnon")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

/// Which of a process's BPF maps are meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// `enum bpf_map_type` (include/uapi/linux/bpf.h).
    pub(super) map_type: u32,
    /// Bytes.
    pub(super) key_size: u32,
    /// Bytes.
    pub(super) value_size: u32,
}

/// What a process's BPF maps of certain layouts take and hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tables {
    /// `memlock` of `/proc/PID/fdinfo/FD`.
    pub(super) bytes: u64,
    /// Entries for which there is room.
    pub(super) entries_max: u64,
}

/// All such maps of a process, added up.
pub(super) fn tables(tgid: u32, layouts: &[Layout]) -> Result<Tables> {
    let folder = format!("/proc/{tgid}/fdinfo");
    let (mut sum, mut seen) = (Tables::default(), BTreeSet::new());
    for entry in fs::read_dir(&folder).with_context(|| format!("can't read {folder}"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_prefix(':')?.trim().parse().ok()
        };
        let is_wanted = |layout: &Layout| {
            let Layout {
                map_type,
                key_size,
                value_size,
            } = *layout;
            [
                ("map_type", map_type),
                ("key_size", key_size),
                ("value_size", value_size),
            ]
            .iter()
            .all(|(name, value)| field(name) == Some(u64::from(*value)))
        };
        // A map may have several descriptors.
        if layouts.iter().any(is_wanted) && seen.insert(field("map_id")) {
            sum.bytes += field("memlock").context("a map without memlock")?;
            sum.entries_max += field("max_entries").context("a map without max_entries")?;
        }
    }
    if seen.is_empty() {
        bail!("process {tgid} has no such map");
    }
    Ok(sum)
}
