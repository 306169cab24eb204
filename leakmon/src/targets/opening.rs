//! Opening an image without being held up by it, and asking every runtime's finder about it.
//!
//! In: a path. Out: a [`ProbePlan`], or one sentence that says why there is none. The file is read by `pread`, never mapped: it
//! may change or shrink meanwhile. Then the plan may be wrong, but the bytes at each site are compared again before attaching.

use super::{
    image::{Image, ImageError},
    plan::{ImageId, ProbePlan},
    runtimes::{Finding, RUNTIMES},
};
use object::{ReadRef, elf, read::ReadCache};
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
    #[error("{}: can't be read ({source}); check its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
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
        what: &'static str,
    },
    /// Beyond a bound of this analysis.
    #[error("{}: is too large to analyse ({what})", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
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
        "{}: no async runtime that leakmon knows ({known}) was found in it; one in a shared library is not supported",
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
            | Self::UnsupportedRuntime { path, .. } => path,
        }
    }
}

/// Plans the probes of an executable.
///
/// Never blocks on what is no regular file. Reads at most the loaded segments and the symbol table of a file of at most
/// 8 GiB.
///
/// # Errors
/// [`AnalyseError`], each meaning that this file can't be probed.
pub fn analyse(path: &Path) -> Result<ProbePlan, AnalyseError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => AnalyseError::Missing(path.to_owned()),
        _ => AnalyseError::Unreadable {
            path: path.to_owned(),
            source,
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
    let file = match file {
        Ok(file) => file,
        // A socket can't be opened at all: say what it is.
        Err(error) => return Err(kind_error(path).unwrap_or_else(|| unreadable(error))),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if let Some(what) = irregular(&metadata) {
        return Err(AnalyseError::NotRegular {
            path: path.to_owned(),
            what,
        });
    }
    if metadata.len() > IMAGE_BYTES_MAX {
        return Err(AnalyseError::TooLarge {
            path: path.to_owned(),
            what: "file",
        });
    }
    let id = ImageId {
        device: metadata.dev(),
        inode: metadata.ino(),
        build_id: String::new(),
    };
    let cache: ReadCache<File> = ReadCache::new(file);
    plan(&cache, path, id)
}

/// Plans the probes of an executable that is in memory. `path` is for messages only, `id` for the plan (the build id is filled in).
///
/// # Errors
/// As [`analyse`].
pub fn analyse_bytes(bytes: &[u8], path: &Path, id: ImageId) -> Result<ProbePlan, AnalyseError> {
    plan(bytes, path, id)
}

fn plan<'data, R: ReadRef<'data>>(data: R, path: &Path, mut id: ImageId) -> Result<ProbePlan, AnalyseError> {
    let image = Image::parse(data).map_err(|error| image_error(&error, path))?;
    id.build_id.clone_from(&image.build_id);
    for runtime in &RUNTIMES {
        match (runtime.find)(&image) {
            Finding::Absent => {}
            Finding::Unsupported { version, reason } => {
                let (path, runtime) = (path.to_owned(), runtime.name);
                return Err(AnalyseError::UnsupportedRuntime {
                    path,
                    runtime,
                    version,
                    reason,
                });
            }
            Finding::Planned(planned) => {
                return Ok(ProbePlan {
                    image: id,
                    path: path.to_owned(),
                    entry_file_offset: image.entry.and_then(|entry| image.file_offset(entry)),
                    runtime: runtime.name,
                    runtime_version: planned.version,
                    task_types: planned.task_types,
                    sites: planned.sites,
                    problems: planned.problems,
                });
            }
        }
    }
    let known = RUNTIMES
        .iter()
        .map(|runtime| runtime.name)
        .collect::<Vec<_>>()
        .join(", ");
    Err(AnalyseError::NoRuntime {
        path: path.to_owned(),
        known,
    })
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

fn image_error(error: &ImageError, path: &Path) -> AnalyseError {
    let path = path.to_owned();
    match *error {
        ImageError::NotElf => AnalyseError::NotElf(path),
        ImageError::Narrow => AnalyseError::Narrow(path),
        ImageError::Machine(machine) => AnalyseError::WrongArchitecture {
            path,
            architecture: architecture_name(machine),
        },
        ImageError::NotExecutable => AnalyseError::NotExecutable(path),
        ImageError::Damaged(what) => AnalyseError::Damaged { path, what },
        ImageError::TooLarge(what) => AnalyseError::TooLarge { path, what },
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
