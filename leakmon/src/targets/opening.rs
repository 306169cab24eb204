//! Opening an image without being held up by it, and asking every runtime's finder about it.
//!
//! In: a path, or an image's data. Out: an open file; a [`ProbePlan`], or one sentence that says why there is none. The daemon
//! opens, a child searches (`jobs`).

use super::{
    image::{Image, ImageError},
    plan::{ImageId, ProbePlan, ProbeSite, TaskType},
    runtimes::{Finding, RUNTIMES},
};
use crate::analysis::Failure;
use object::{ReadRef, elf};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Largest file that is analysed, in bytes. Of it only the loaded segments and the symbol table are read.
const IMAGE_BYTES_MAX: u64 = 8 << 30;

/// Why there is no plan for a file. Each is one sentence with the file and what can be done.
#[derive(Debug, thiserror::Error)]
pub enum AnalyseError {
    /// Nothing is there.
    #[error("{}: no such file; give the path of an executable", .0.display())]
    Missing(PathBuf),
    /// It can't be opened or read.
    #[error("{}: can't be read ({cause}); check its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A directory, FIFO, socket or device.
    #[error("{}: is {what}, not a regular file; give the path of an executable", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A script, or anything else.
    #[error("{}: is not an ELF file; give the binary itself, not a script that starts it", .0.display())]
    NotElf(PathBuf),
    /// Cut off or damaged.
    #[error("{}: is a damaged or truncated ELF file ({what}); copy or build it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where parsing ended.
        what: String,
    },
    /// Beyond a bound of this analysis.
    #[error("{}: is too large to analyse ({what})", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        what: String,
    },
    /// Another processor.
    #[error("{}: is built for {architecture}; only x86-64 binaries can be probed", path.display())]
    WrongArchitecture {
        /// The file.
        path: PathBuf,
        /// Its name, or `machine N`.
        architecture: String,
    },
    /// i386 or x32.
    #[error("{}: is a 32-bit binary; only 64-bit x86-64 binaries can be probed", .0.display())]
    Narrow(PathBuf),
    /// An object file or a core.
    #[error("{}: is an ELF file, but no executable; give the linked binary", .0.display())]
    NotExecutable(PathBuf),
    /// No finder found its runtime.
    #[error(
        "{}: no async runtime that leakmon knows ({known}) was found in it; `leakmon attach` finds one in a shared library of a running process",
        path.display()
    )]
    NoRuntime {
        /// The file.
        path: PathBuf,
        /// Names of the table's rows.
        known: String,
    },
    /// A runtime was found, but this build of it can't be followed.
    #[error("{}: uses {runtime}{}, which can't be probed here: {reason}", path.display(),
        version.as_ref().map(|version| format!(" {version}")).unwrap_or_default())]
    UnsupportedRuntime {
        /// The file.
        path: PathBuf,
        /// The runtime's name.
        runtime: &'static str,
        /// Its version, where it is known.
        version: Option<String>,
        /// Why, and what can be done.
        reason: String,
    },
    /// The child that looked into it gave no answer.
    #[error("{}: {failure}: it is not watched", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// Why.
        failure: Failure,
    },
}

impl AnalyseError {
    /// The same, said of a process whose image was opened through a descriptor.
    #[must_use]
    pub fn of_process(mut self, tgid: u32, path: &Path) -> Self {
        *self.path_mut() = PathBuf::from(format!("process {tgid} ({})", path.display()));
        self
    }

    fn path_mut(&mut self) -> &mut PathBuf {
        match self {
            Self::Missing(path) | Self::NotElf(path) | Self::Narrow(path) | Self::NotExecutable(path) => path,
            Self::Unreadable { path, .. }
            | Self::NotRegular { path, .. }
            | Self::Damaged { path, .. }
            | Self::TooLarge { path, .. }
            | Self::WrongArchitecture { path, .. }
            | Self::NoRuntime { path, .. }
            | Self::UnsupportedRuntime { path, .. }
            | Self::Failed { path, .. } => path,
        }
    }
}

/// Opens an executable without being held up by what is no regular file.
///
/// # Errors
/// [`AnalyseError`]: it is missing, unreadable, no regular file, or larger than 8 GiB.
pub fn open(path: &Path) -> Result<File, AnalyseError> {
    let unreadable = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => AnalyseError::Missing(path.to_owned()),
        _ => AnalyseError::Unreadable {
            path: path.to_owned(),
            cause,
        },
    };
    // O_NONBLOCK: opening a FIFO without a writer, or a device, would wait for ever.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => io::ErrorKind::Other.into(),
            _ => error,
        });
    // A socket can't be opened at all: say what it is.
    let file = file.map_err(|error| kind_error(path).unwrap_or_else(|| unreadable(error)))?;
    identify(&file, path)?;
    Ok(file)
}

/// Who an open file is, its build id left out; an error where it is no file to be analysed.
pub(super) fn identify(file: &File, path: &Path) -> Result<ImageId, AnalyseError> {
    let metadata = file.metadata().map_err(|cause| AnalyseError::Unreadable {
        path: path.to_owned(),
        cause,
    })?;
    if let Some(what) = irregular(&metadata) {
        return Err(AnalyseError::NotRegular {
            path: path.to_owned(),
            what,
        });
    }
    if metadata.len() > IMAGE_BYTES_MAX {
        return Err(Refusal::TooLarge("file".to_owned()).of(path));
    }
    Ok(ImageId {
        device: metadata.dev(),
        inode: metadata.ino(),
        build_id: String::new(),
    })
}

/// Plans the probes of an executable that is in memory, in this process. `path` is for messages only, `id` for the plan (the
/// build id is filled in).
///
/// # Errors
/// As [`super::analyse`].
pub fn analyse_bytes(bytes: &[u8], path: &Path, id: ImageId) -> Result<ProbePlan, AnalyseError> {
    search(bytes)
        .map_err(|refusal| refusal.of(path))
        .map(|found| found.into_plan(path, id))
}

/// What was found in an image: a plan that does not know which file it is of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) build_id: String,
    pub(super) entry_file_offset: Option<u64>,
    /// Index in [`RUNTIMES`].
    pub(super) runtime: usize,
    pub(super) version: Option<String>,
    pub(super) task_types: Vec<TaskType>,
    pub(super) sites: Vec<ProbeSite>,
    pub(super) problems: Vec<String>,
}

impl Found {
    /// The plan of the file `id`. The runtime's index is in range.
    pub(super) fn into_plan(self, path: &Path, mut id: ImageId) -> ProbePlan {
        id.build_id = self.build_id;
        ProbePlan {
            image: id,
            path: path.to_owned(),
            entry_file_offset: self.entry_file_offset,
            runtime: RUNTIMES.get(self.runtime).map_or("", |runtime| runtime.name),
            runtime_version: self.version,
            task_types: self.task_types,
            sites: self.sites,
            problems: self.problems,
        }
    }
}

/// Why an image has no plan: an [`AnalyseError`] that does not know which file it is of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    NotElf,
    Narrow,
    Machine(u16),
    NotExecutable,
    Damaged(String),
    TooLarge(String),
    NoRuntime,
    Unsupported {
        /// Index in [`RUNTIMES`].
        runtime: usize,
        version: Option<String>,
        reason: String,
    },
}

impl Refusal {
    /// The same of a file.
    pub(super) fn of(self, path: &Path) -> AnalyseError {
        let path = path.to_owned();
        match self {
            Self::NotElf => AnalyseError::NotElf(path),
            Self::Narrow => AnalyseError::Narrow(path),
            Self::Machine(machine) => AnalyseError::WrongArchitecture {
                path,
                architecture: architecture_name(machine),
            },
            Self::NotExecutable => AnalyseError::NotExecutable(path),
            Self::Damaged(what) => AnalyseError::Damaged { path, what },
            Self::TooLarge(what) => AnalyseError::TooLarge { path, what },
            Self::NoRuntime => AnalyseError::NoRuntime {
                path,
                known: RUNTIMES.map(|runtime| runtime.name).join(", "),
            },
            Self::Unsupported {
                runtime,
                version,
                reason,
            } => AnalyseError::UnsupportedRuntime {
                path,
                runtime: RUNTIMES.get(runtime).map_or("", |runtime| runtime.name),
                version,
                reason,
            },
        }
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NotElf => Self::NotElf,
            ImageError::Narrow => Self::Narrow,
            ImageError::Machine(machine) => Self::Machine(machine),
            ImageError::NotExecutable => Self::NotExecutable,
            ImageError::Damaged(what) => Self::Damaged(what.to_owned()),
            ImageError::TooLarge(what) => Self::TooLarge(what.to_owned()),
        }
    }
}

/// Asks every runtime's finder about an image.
pub(super) fn search<'data, R: ReadRef<'data>>(data: R) -> Result<Found, Refusal> {
    let image = Image::parse(data)?;
    for (index, runtime) in RUNTIMES.iter().enumerate() {
        match (runtime.find)(&image) {
            Finding::Absent => {}
            Finding::Unsupported { version, reason } => {
                return Err(Refusal::Unsupported {
                    runtime: index,
                    version,
                    reason,
                });
            }
            Finding::Planned(planned) => {
                return Ok(Found {
                    entry_file_offset: image.entry.and_then(|entry| image.file_offset(entry)),
                    build_id: image.build_id,
                    runtime: index,
                    version: planned.version,
                    task_types: planned.task_types,
                    sites: planned.sites,
                    problems: planned.problems,
                });
            }
        }
    }
    Err(Refusal::NoRuntime)
}

fn kind_error(path: &Path) -> Option<AnalyseError> {
    let what = irregular(&path.metadata().ok()?)?;
    Some(AnalyseError::NotRegular {
        path: path.to_owned(),
        what,
    })
}

fn irregular(metadata: &std::fs::Metadata) -> Option<&'static str> {
    match metadata.mode() & libc::S_IFMT {
        libc::S_IFREG => None,
        libc::S_IFDIR => Some("a directory"),
        libc::S_IFIFO => Some("a FIFO"),
        libc::S_IFSOCK => Some("a socket"),
        _ => Some("a device"),
    }
}

/// `e_machine` in words, for the architectures that Rust's Linux targets have (`elf.h`).
fn architecture_name(machine: u16) -> String {
    let name = match machine {
        elf::EM_AARCH64 => "aarch64",
        elf::EM_ARM => "32-bit ARM",
        elf::EM_RISCV => "RISC-V",
        elf::EM_PPC64 => "PowerPC 64",
        elf::EM_S390 => "s390x",
        elf::EM_LOONGARCH => "LoongArch",
        elf::EM_MIPS => "MIPS",
        elf::EM_SPARCV9 => "SPARC 64",
        elf::EM_BPF => "BPF",
        _ => return format!("machine {machine}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests;
