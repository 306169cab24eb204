//! Who a process is, for the rules and the labels; who a file is, whatever its path.
//!
//! In: `/proc/PID` of a living process, an open file. Out: plain data with bounds. It judges nothing: [`super::rules`] does.

use super::{
    cgroup::{self, Cgroup},
    processes::{self, Mapping, ProcessError},
    rules::{Rules, Subject},
};
use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::PathBuf,
};

/// Bytes of a command line that the rules see.
pub const COMMAND_BYTES_MAX: u64 = 4096;

/// Bytes of `/proc/PID/status` that are read; the users stand in its first dozen lines, after a name of at most 64 bytes.
const STATUS_BYTES_MAX: u64 = 4096;

/// What the kernel appends to the path of a file that has been deleted (`d_path`, `fs/d_path.c`).
const DELETED: &[u8] = b" (deleted)";

/// A file as it was when it was looked at: another file, or the same one rewritten, is another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// `st_mtime` in nanoseconds.
    pub modified_ns: i128,
}

impl FileKey {
    /// Of metadata that were read.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        }
    }

    /// Of the regular file that a process maps between two addresses; one system call. `None` where nothing, or no regular file, is
    /// mapped just there.
    #[must_use]
    pub fn of_mapping(tgid: u32, start: u64, end: u64) -> Option<Self> {
        let metadata = fs::metadata(format!("/proc/{tgid}/map_files/{start:x}-{end:x}")).ok()?;
        metadata.is_file().then(|| Self::of(&metadata))
    }

    /// Of the executable of a process.
    #[must_use]
    pub fn of_program(tgid: u32) -> Option<Self> {
        Some(Self::of(&fs::metadata(format!("/proc/{tgid}/exe")).ok()?))
    }

    /// Of the file of a mapping of `maps`, through `map_files` or, where that is refused, inside the process's root.
    #[must_use]
    pub fn of_listed(tgid: u32, mapping: &Mapping) -> Option<Self> {
        Self::of_mapping(tgid, mapping.start, mapping.end).or_else(|| {
            let file = processes::open_mapping(tgid, mapping).ok()?;
            Some(Self::of(&file.metadata().ok()?))
        })
    }
}

/// What is known of a process since its last exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Path of the executable as the process sees it, without the kernel's mark for a deleted file. Untrusted.
    pub exe: PathBuf,
    /// Its arguments, joined by one space, at most [`COMMAND_BYTES_MAX`] bytes of them. Empty in the moments of an exec. Untrusted.
    pub command: String,
    /// Where it is.
    pub cgroup: Cgroup,
    /// Its effective user.
    pub uid: u32,
}

impl Identity {
    /// Reads what `/proc` says of a process now.
    ///
    /// # Errors
    /// See [`ProcessError`]; one that has ended, or that is no program, is an error.
    pub fn read(tgid: u32) -> Result<Self, ProcessError> {
        let link = processes::executable_path(tgid)?;
        let is_deleted = fs::metadata(format!("/proc/{tgid}/exe")).is_ok_and(|metadata| metadata.nlink() == 0);
        let exe = match link.as_os_str().as_bytes().strip_suffix(DELETED) {
            Some(path) if is_deleted => PathBuf::from(std::ffi::OsStr::from_bytes(path)),
            _ => link,
        };
        let status = read(tgid, "status", STATUS_BYTES_MAX)?;
        let uid = effective_user(&status).ok_or_else(|| ProcessError::Malformed {
            tgid,
            what: "status".to_owned(),
        })?;
        Ok(Self {
            exe,
            command: command_line(&read(tgid, "cmdline", COMMAND_BYTES_MAX)?),
            cgroup: Cgroup::parse(&read(tgid, "cgroup", cgroup::TEXT_BYTES_MAX)?),
            uid,
        })
    }

    /// Whether the rules want the process. `is_named`: its executable was asked for by its path.
    #[must_use]
    pub fn is_wanted(&self, rules: &Rules, is_named: bool) -> bool {
        let subject = Subject {
            exe: &self.exe.to_string_lossy(),
            command: &self.command,
            cgroup: &self.cgroup.path,
            uid: self.uid,
        };
        match is_named {
            true => rules.want_named(&subject),
            false => rules.want(&subject),
        }
    }
}

/// A bounded piece of one of a process's files, whatever bytes it has.
fn read(tgid: u32, what: &'static str, bytes_max: u64) -> Result<String, ProcessError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(format!("/proc/{tgid}/{what}"))?
            .take(bytes_max)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| ProcessError::new(tgid, what, source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The second number of `Uid:` (`man 5 proc_pid_status`: real, effective, saved, file system). The name above it has its newlines
/// escaped.
fn effective_user(status: &str) -> Option<u32> {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments end with a zero byte each.
fn command_line(text: &str) -> String {
    text.trim_end_matches('\0').replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn this_process_is_who_it_is() {
        let identity = Identity::read(std::process::id()).unwrap();
        assert_eq!(identity.exe, std::env::current_exe().unwrap());
        let arguments: Vec<String> = std::env::args().collect();
        assert_eq!(identity.command, arguments.join(" "));
        assert_eq!(identity.uid, nix::unistd::geteuid().as_raw());
        assert!(identity.cgroup.path.starts_with('/'));
    }

    #[test]
    fn a_deleted_executable_keeps_its_path() {
        let folder = tempfile::tempdir().unwrap();
        // A name that ends as the kernel's mark does, once truly and once by itself.
        for name in ["gone", "kept (deleted)"] {
            let path = folder.path().join(name);
            fs::copy("/bin/sleep", &path).unwrap();
            let mut child = Command::new(&path).arg("600").stdin(Stdio::null()).spawn().unwrap();
            if name == "gone" {
                fs::remove_file(&path).unwrap();
            }
            let identity = Identity::read(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(identity.unwrap().exe, path);
        }
    }

    #[test]
    fn fields_are_found_in_their_texts() {
        let status = "Name:\tx\\nUid:\nUmask:\t0022\nUid:\t1000\t33\t33\t33\nGid:\t7\t7\t7\t7\n";
        assert_eq!(effective_user(status), Some(33));
        assert_eq!(effective_user("Name:\tx\n"), None);
        assert_eq!(command_line("a\0b c\0\0"), "a b c");
        assert_eq!(command_line(""), "");
    }

    #[test]
    fn a_file_that_is_rewritten_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let key = |text: &str| {
            fs::write(&path, text).unwrap();
            FileKey::of(&fs::metadata(&path).unwrap())
        };
        let (first, second) = (key("one"), key("three"));
        assert_eq!((first.device, first.inode), (second.device, second.inode));
        assert_ne!(first, second);
        assert_eq!(second, FileKey::of(&fs::metadata(&path).unwrap()));
    }

    #[test]
    fn a_mapping_leads_to_its_file() {
        let own = std::process::id();
        let exe = FileKey::of(&fs::metadata("/proc/self/exe").unwrap());
        let mappings = processes::executable_mappings(own).unwrap().executable;
        let keys: Vec<_> = mappings
            .iter()
            .filter(|mapping| mapping.has_file())
            .filter_map(|mapping| FileKey::of_listed(own, mapping))
            .collect();
        assert!(keys.contains(&exe));
        assert_eq!(FileKey::of_mapping(own, 0x1000, 0x2000), None);
    }
}
