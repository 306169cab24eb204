//! What `/proc` says of processes: who they are, which code they map, which executable they run.
//!
//! In: tgids. Out: plain data, and open files that stay good after the process has gone. It reads no ELF and no
//! memory. Everything here is text that a target can choose (its paths, its name), so each read has a bound.

mod maps;

pub(super) use maps::{Permissions, each_mapping};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Lines of `maps` that are read: the default of `vm.max_map_count` is 65,530 (`include/linux/mm.h`).
pub const MAPS_LINES_MAX: usize = 65_536;
/// Bytes of a line of `maps` that are kept: `PATH_MAX` is 4,096, each byte of it may be escaped as `\012`, and the
/// fields before it need less than 128.
pub const MAPS_LINE_BYTES_MAX: usize = 4 * 4_096 + 128;
/// Threads of a process that are looked at; `kernel.threads-max` is higher only on hosts with more than 512 GiB.
pub const THREADS_MAX: usize = 1 << 22;
/// Bytes of `stat` that are read: 52 numbers of at most 20 digits and a name of at most 64 bytes.
const STAT_BYTES_MAX: u64 = 4_096;

/// Why something about a process can't be known.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It has ended: normal at any moment.
    #[error("process {tgid} has ended")]
    Gone {
        /// The process.
        tgid: u32,
    },
    /// It exists and runs no executable file.
    #[error("process {tgid} is a kernel thread and runs no executable; name a process of a program")]
    NoExecutable {
        /// The process.
        tgid: u32,
    },
    /// The kernel refuses to tell.
    #[error("reading {what} of process {tgid} is not permitted; run as root, or with CAP_SYS_PTRACE")]
    Denied {
        /// The process.
        tgid: u32,
        /// The entry of `/proc/PID`.
        what: String,
    },
    /// What is mapped there is no regular file, or another one by now.
    #[error("{what} of process {tgid} is no longer the file that was mapped")]
    Replaced {
        /// The process.
        tgid: u32,
        /// The entry of `/proc/PID`.
        what: String,
    },
    /// The text is not what the kernel writes.
    #[error("{what} of process {tgid} has an unknown form; is /proc a procfs?")]
    Malformed {
        /// The process.
        tgid: u32,
        /// The entry of `/proc/PID`.
        what: String,
    },
    /// Anything else.
    #[error("reading {what} of process {tgid}: {source}")]
    Io {
        /// The process.
        tgid: u32,
        /// The entry of `/proc/PID`.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ProcessError {
    /// Sorts an error of reading `what` of a process.
    pub(super) fn new(tgid: u32, what: &str, source: io::Error) -> Self {
        let what = what.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Self::Gone { tgid },
            Some(libc::EACCES | libc::EPERM) => Self::Denied { tgid, what },
            _ => Self::Io { tgid, what, source },
        }
    }

    /// Whether the process has merely ended.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}

/// One executable mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Offset in the file of the first byte.
    pub file_offset: u64,
    /// Device of the file as the kernel's mapping has it, encoded as `st_dev` is. On overlayfs and btrfs it can
    /// differ from the file's own `st_dev`.
    pub device: u64,
    /// Inode of the file; 0 where no file is mapped.
    pub inode: u64,
    /// Path in the process's own root, or a name such as `[vdso]`, or empty. Untrusted.
    pub path: PathBuf,
    /// Whether the kernel marked the file as deleted. A file may also simply be called so.
    pub deleted: bool,
}

impl Mapping {
    /// Whether a file is mapped.
    #[must_use]
    pub const fn has_file(&self) -> bool {
        self.inode != 0
    }
}

/// The executable mappings of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// By ascending address.
    pub executable: Vec<Mapping>,
    /// Lines left out: they were too long, of an unknown form, or beyond [`MAPS_LINES_MAX`] (those count as one).
    pub refused: u64,
}

/// The processes that exist now, threads not included, by ascending tgid.
///
/// # Errors
/// `/proc` can't be read.
pub fn tgids() -> io::Result<Vec<u32>> {
    let mut tgids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // An entry that vanishes while the directory is read is a process that has ended.
        let Ok(entry) = entry else { continue };
        if let Some(tgid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            tgids.push(tgid);
        }
    }
    tgids.sort_unstable();
    Ok(tgids)
}

/// When a process was started, in clock ticks since boot (field 22 of `/proc/PID/stat`). It survives exec.
///
/// # Errors
/// See [`ProcessError`].
pub fn start_time_ticks(tgid: u32) -> Result<u64, ProcessError> {
    Ok(read_stat(tgid)?.started_ticks)
}

/// A thread that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub tid: u32,
    /// When it was started, in nanoseconds since boot, as exact as the kernel's clock ticks are.
    pub started_boot_ns: u64,
}

/// The threads of a process, its first one included. One that has ended and is still listed (a group leader that went before
/// the others) is none.
///
/// # Errors
/// See [`ProcessError`].
pub fn threads(tgid: u32) -> Result<Vec<Thread>, ProcessError> {
    let entries =
        std::fs::read_dir(format!("/proc/{tgid}/task")).map_err(|source| ProcessError::new(tgid, "task", source))?;
    let tid = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Ok(entries
        .take(THREADS_MAX)
        .filter_map(tid)
        .filter_map(|tid| thread(tgid, tid))
        .collect())
}

/// One thread of a process; `None` where it does not run any more.
#[must_use]
pub fn thread(tgid: u32, tid: u32) -> Option<Thread> {
    let stat = read_stat_at(tgid, &format!("/proc/{tgid}/task/{tid}/stat")).ok()?;
    if stat.has_ended() {
        return None;
    }
    let ns_per_tick = 1_000_000_000 / TICKS_PER_SECOND;
    Some(Thread {
        tid,
        started_boot_ns: stat.started_ticks.saturating_mul(ns_per_tick),
    })
}

/// `USER_HZ`, which is 100 on every architecture that leakmon knows (`include/asm-generic/param.h`).
const TICKS_PER_SECOND: u64 = 100;

/// Whether a process still runs: at least one of its threads is there and not on its way out. It does not any more when the
/// kernel tells of its end, which is some time before it becomes a zombie.
#[must_use]
pub fn lives(tgid: u32) -> bool {
    let runs = |tid: &str| {
        let stat = read_stat_at(tgid, &format!("/proc/{tgid}/task/{tid}/stat"));
        stat.is_ok_and(|stat| !stat.is_ending())
    };
    // Mostly it is the first thread that does.
    runs(&tgid.to_string())
        || std::fs::read_dir(format!("/proc/{tgid}/task")).is_ok_and(|threads| {
            let mut threads = threads.take(THREADS_MAX).flatten();
            threads.any(|thread| thread.file_name().to_str().is_some_and(runs))
        })
}

/// The process that a thread belongs to: itself for a group leader (`Tgid` of `/proc/TID/status`).
///
/// # Errors
/// See [`ProcessError`].
pub fn leader(tid: u32) -> Result<u32, ProcessError> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"))
        .map_err(|source| ProcessError::new(tid, "status", source))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    Ok(line.and_then(|tgid| tgid.trim().parse().ok()).unwrap_or(tid))
}

/// Path of the executable as the process sees it, ` (deleted)` included. Only to be shown: open it with
/// [`ProcessImage`].
///
/// # Errors
/// See [`ProcessError`].
pub fn executable_path(tgid: u32) -> Result<PathBuf, ProcessError> {
    std::fs::read_link(format!("/proc/{tgid}/exe")).map_err(|source| without_executable(tgid, source))
}

/// The executable mappings of a process. Empty while it exits.
///
/// # Errors
/// See [`ProcessError`].
pub fn executable_mappings(tgid: u32) -> Result<Mappings, ProcessError> {
    let file = File::open(format!("/proc/{tgid}/maps")).map_err(|source| ProcessError::new(tgid, "maps", source))?;
    read_mappings(BufReader::with_capacity(1 << 16, file)).map_err(|source| ProcessError::new(tgid, "maps", source))
}

/// The executable of a process, open.
#[derive(Debug)]
pub struct ProcessImage {
    /// Open for reading; stays good when the file is deleted or the process ends.
    pub file: File,
    /// `st_dev` of the file.
    pub device: u64,
    /// `st_ino` of the file.
    pub inode: u64,
    /// [`executable_path`].
    pub path: PathBuf,
}

impl ProcessImage {
    /// Opens what the process runs, through the link `/proc/PID/exe`: right for deleted files and in other mount
    /// namespaces.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn open(tgid: u32) -> Result<Self, ProcessError> {
        let path = executable_path(tgid)?;
        let file = File::open(format!("/proc/{tgid}/exe")).map_err(|source| without_executable(tgid, source))?;
        let metadata = file
            .metadata()
            .map_err(|source| ProcessError::new(tgid, "exe", source))?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            file,
            path,
        })
    }
}

/// Opens the file of a mapping: through `map_files`, which leads to the very file that is mapped, else by its path
/// inside the process's root, and then only if device and inode are those of the mapping.
///
/// # Errors
/// See [`ProcessError`]; `Replaced` also where a device or anything else but a regular file is mapped.
pub fn open_mapping(tgid: u32, mapping: &Mapping) -> Result<File, ProcessError> {
    let what = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
    let link = format!("/proc/{tgid}/{what}");
    match open_regular(Path::new(&link)) {
        Ok(Some(file)) => return Ok(file),
        Ok(None) => return Err(ProcessError::Replaced { tgid, what }),
        // Refused without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE (fs/proc/base.c, proc_map_files_get_link).
        Err(source) if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {}
        Err(source) => return Err(ProcessError::new(tgid, &what, source)),
    }
    let root = open_root(tgid)?;
    let file = open_in_root(&root, &mapping.path).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT) => ProcessError::Replaced {
            tgid,
            what: what.clone(),
        },
        _ => ProcessError::new(tgid, "root", source),
    })?;
    let metadata = file
        .metadata()
        .map_err(|source| ProcessError::new(tgid, "root", source))?;
    if metadata.ino() != mapping.inode || metadata.dev() != mapping.device {
        return Err(ProcessError::Replaced { tgid, what });
    }
    Ok(file)
}

/// Opens the root directory of a process, for [`open_in_root`]. It keeps the root's mount busy while it is open.
///
/// # Errors
/// See [`ProcessError`].
pub fn open_root(tgid: u32) -> Result<File, ProcessError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(format!("/proc/{tgid}/root"))
        .map_err(|source| ProcessError::new(tgid, "root", source))
}

/// Opens a regular file by its path below `root`, and nothing outside: links and `..` are resolved as if `root` were
/// `/`.
///
/// # Errors
/// What `openat2` (Linux 5.6) says; `ENOENT` also where the path leads to anything but a regular file.
pub fn open_in_root(root: &File, path: &Path) -> io::Result<File> {
    // O_NONBLOCK: a FIFO put there by the target must not hold us.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(nix::fcntl::openat2(root, path, how)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

/// Opens a path that may be a device or a FIFO, without touching it if so (`None`).
fn open_regular(path: &Path) -> io::Result<Option<File>> {
    if !std::fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

/// The link `exe` is missing for a kernel thread and for a process that is ending.
fn without_executable(tgid: u32, source: io::Error) -> ProcessError {
    if source.raw_os_error() == Some(libc::ENOENT) {
        return match read_stat(tgid) {
            Ok(stat) if stat.has_ended() => ProcessError::Gone { tgid },
            Ok(_) => ProcessError::NoExecutable { tgid },
            Err(error) => error,
        };
    }
    ProcessError::new(tgid, "exe", source)
}

/// What is read of `/proc/PID/stat` (`man 5 proc_pid_stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// Field 3.
    state: u8,
    /// Field 9, the bits `PF_*` of `include/linux/sched.h`.
    flags: u64,
    /// Field 22.
    started_ticks: u64,
}

impl Stat {
    /// `PF_EXITING`: set first of all that is done at a thread's end (`do_exit` in `kernel/exit.c`).
    const EXITING: u64 = 4;

    /// Whether it is a zombie or dead.
    const fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it has ended or is about to.
    const fn is_ending(self) -> bool {
        self.has_ended() || self.flags & Self::EXITING != 0
    }
}

fn read_stat(tgid: u32) -> Result<Stat, ProcessError> {
    read_stat_at(tgid, &format!("/proc/{tgid}/stat"))
}

fn read_stat_at(tgid: u32, path: &str) -> Result<Stat, ProcessError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(STAT_BYTES_MAX).read_to_end(&mut text))
        .map_err(|source| ProcessError::new(tgid, "stat", source))?;
    parse_stat(&text).ok_or_else(|| ProcessError::Malformed {
        tgid,
        what: "stat".to_owned(),
    })
}

/// The name (field 2) is in parentheses and may hold any byte, so the fields are counted from the last closing parenthesis.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // Five fields lie between the state and the flags, twelve between those and the time.
    let flags = fields.nth(5)?.parse().ok()?;
    let started_ticks = fields.nth(12)?.parse().ok()?;
    Some(Stat {
        state,
        flags,
        started_ticks,
    })
}

/// Reads the text of `maps` line by line, keeping what is executable.
fn read_mappings(text: impl BufRead) -> io::Result<Mappings> {
    let mut executable = Vec::new();
    let refused = each_mapping(text, |mapping, permissions| {
        if permissions.execute {
            executable.push(mapping);
        }
    })?;
    Ok(Mappings { executable, refused })
}

#[cfg(test)]
mod tests;
