//! What outlives this process: maps and links in a BPF file system.
//!
//! In: a directory, and who this leakmon is. Out: paths under which maps and links are pinned, and whether what is there already
//! may be used. A directory belongs to one daemon at a time. What another version pinned is never read: it is removed.
//!
//! | path | is |
//! | --- | --- |
//! | `maps/NAME` | a map; `META` says who made them all, and is written last |
//! | `links/t_NAME` | a tracepoint |
//! | `links/iN_entry`, `links/iN_sM` | the entry point, and site M, of image number N |

use super::{Settings, object};
use aya::{
    maps::{Array, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use leakmon_ebpf::abi::{ABI_VERSION, Meta};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};
use std::{
    collections::HashSet,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
};
use zerocopy::{FromBytes, IntoBytes};

/// Where the kernel's file system for BPF belongs (`Documentation/bpf`); mounted here if it is not.
pub const FILE_SYSTEM: &str = "/sys/fs/bpf";

/// Where a daemon pins, unless configured otherwise.
pub const DIRECTORY: &str = "/sys/fs/bpf/leakmon";

/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Maps that outlive the daemon. Scratch memory is each program's own.
pub(super) const MAPS: [&str; 17] = [
    "LIVE_SLOTS",
    "LIVE",
    "LIVE_MORE",
    "OVERFLOW",
    "COUNTS",
    "STACKS",
    "TARGETS",
    "TOTALS",
    "WATCHED",
    "PURGED",
    "EVENTS",
    "LOSS",
    "ROWS",
    "PAGES",
    "MAPPINGS",
    "IMAGES",
    META,
];

const META: &str = "META";

const META_BYTES: usize = size_of::<Meta>();

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another daemon uses the directory.
    #[error("another leakmon daemon is running with {}: stop it, or choose another directory with --pin-dir", .0.display())]
    Busy(PathBuf),
    /// It is no BPF file system.
    #[error(
        "{}: is not in a BPF file system: run `mount -t bpf bpf {FILE_SYSTEM}`, or go without with --no-pin",
        .0.display()
    )]
    NotBpf(PathBuf),
    /// The kernel gave no descriptor for a probe.
    #[error("a probe can't be pinned: {0}: go without with --no-pin")]
    NoDescriptor(String),
    /// The directory can't be used.
    #[error("{}: {source}: choose another directory with --pin-dir, or go without with --no-pin", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A directory of pins that is this process's alone.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Held as long as this lives; the kernel lets go when the process dies.
    _lock: Flock<File>,
}

impl Pins {
    /// Takes a directory, making it where it is not there; mounts the BPF file system where that is missing.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        let failed = |source| PinError::Io {
            path: directory.to_owned(),
            source,
        };
        if directory.starts_with(FILE_SYSTEM) && !is_bpf(Path::new(FILE_SYSTEM)) {
            // Said below in one sentence where it did not help.
            let _refused = mount(
                Some("bpf"),
                FILE_SYSTEM,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=0700"),
            );
        }
        let existing = directory.ancestors().find(|path| path.exists());
        if !existing.is_some_and(is_bpf) {
            return Err(PinError::NotBpf(directory.to_owned()));
        }
        for folder in ["maps", "links"] {
            fs::create_dir_all(directory.join(folder)).map_err(failed)?;
        }
        let folder = File::open(directory).map_err(failed)?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                directory: directory.to_owned(),
                _lock: lock,
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(PinError::Busy(directory.to_owned())),
            Err((_, error)) => Err(failed(error.into())),
        }
    }

    /// Whether what is pinned was made by this leakmon with these settings. Where it was not, all of it is removed.
    ///
    /// # Errors
    /// Where it can't be removed.
    pub fn adopt(&self, settings: &Settings) -> Result<bool, PinError> {
        let Some(found) = self.meta() else {
            // None yet, or a daemon was killed before it had finished.
            self.discard()?;
            return Ok(false);
        };
        if found == meta(settings) {
            return Ok(true);
        }
        tracing::warn!(
            "{}: was pinned by another version or with other bounds: what it counted is discarded",
            self.directory.display()
        );
        self.discard()?;
        Ok(false)
    }

    /// Removes everything: the probes go, in the background, and what was counted is forgotten.
    ///
    /// # Errors
    /// Where a file can't be removed.
    pub fn discard(&self) -> Result<(), PinError> {
        // Links first, so that nothing counts into maps that are half gone.
        for folder in ["links", "maps"] {
            let folder = self.directory.join(folder);
            for name in names(&folder) {
                let path = folder.join(name);
                fs::remove_file(&path).map_err(|source| PinError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// Removes everything, and the directory.
    ///
    /// # Errors
    /// Where a file can't be removed.
    pub fn remove(self) -> Result<(), PinError> {
        self.discard()?;
        for folder in ["links", "maps", ""] {
            let path = self.directory.join(folder);
            fs::remove_dir(&path).map_err(|source| PinError::Io { path, source })?;
        }
        Ok(())
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// Pins a link: it stays when this process ends.
    pub(super) fn keep(&self, link: FdLink, name: &str) -> Result<(), PinError> {
        let path = self.link(name);
        match link.pin(&path) {
            Ok(_closed_here) => Ok(()),
            Err(error) => Err(PinError::Io {
                path,
                source: io::Error::other(error),
            }),
        }
    }

    /// Takes a pinned link back: its probe goes where what is returned is dropped. `None` where it can't be had; then it stays as
    /// it is.
    pub(super) fn release(&self, name: &str) -> Option<FdLink> {
        PinnedLink::from_pin(self.link(name)).ok()?.unpin().ok()
    }

    /// Names of the links that are pinned.
    pub(super) fn links(&self) -> HashSet<String> {
        names(&self.directory.join("links")).into_iter().collect()
    }

    /// Removes the links of an image.
    pub(super) fn remove_image(&self, number: u32) {
        let prefix = format!("i{number}_");
        for name in self.links().into_iter().filter(|name| name.starts_with(&prefix)) {
            self.remove_link(&name);
        }
    }

    /// Removes a link; the kernel takes its probe away in the background.
    pub(super) fn remove_link(&self, name: &str) {
        let _gone = fs::remove_file(self.link(name));
    }

    fn meta(&self) -> Option<Meta> {
        let map = Map::Array(MapData::from_pin(self.map(META)).ok()?);
        let map: Array<MapData, [u8; META_BYTES]> = map.try_into().ok()?;
        Meta::read_from_bytes(&map.get(&0, 0).ok()?).ok()
    }
}

/// Says in `map` that all maps are there.
pub(super) fn complete(map: Map, settings: &Settings) -> Result<(), aya::maps::MapError> {
    let mut map: Array<MapData, [u8; META_BYTES]> = map.try_into()?;
    let mut bytes = [0; META_BYTES];
    bytes.copy_from_slice(meta(settings).as_bytes());
    map.set(0, bytes, 0)
}

/// Who makes the maps: the contract's version, the programs, and what they are loaded with.
fn meta(settings: &Settings) -> Meta {
    let mut hasher = DefaultHasher::new();
    settings.hash(&mut hasher);
    object::hash().hash(&mut hasher);
    Meta {
        abi_version: ABI_VERSION,
        complete: 1,
        made_by: hasher.finish(),
    }
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type().0 == BPF_FS_MAGIC)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
