//! The targets' unwind tables: built once an image, given to the kernel with every target that maps it.
//!
//! In: targets as they appear, and requests for a fresh look. Out: rows and mappings in the kernel's maps. Tables are built
//! by children, for which a thread waits; a target whose tables are not there yet is walked as far as is known.

use crate::{
    analysis::Analyst,
    kernel::{Kernel, clock::monotonic_ns},
    targets::{
        TableError,
        processes::{self, Mapping},
        unwind::{
            UnwindError, UnwindTable,
            arena::Arena,
            mappings::{Region, pack},
        },
        unwind_table,
    },
};
use anyhow::Context;
use leakmon_ebpf::abi::TargetId;
use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
};
use tokio::sync::mpsc::{Receiver, channel};

/// Images whose tables are kept. Each keeps its file open, so that no other file can get its inode.
const IMAGES_MAX: usize = 512;

/// Images that wait for their table to be built.
const QUEUE_MAX: usize = 1024;

/// Device and inode of a mapped file; the vdso has neither.
type Identity = (u64, u64);
const VDSO: Identity = (0, 0);

/// An image's table.
struct ImageTable {
    number: u32,
    /// Its file, held so that the identity stays its own; the vdso has none.
    file: Option<File>,
    ready: bool,
}

/// What the builder thread gets: an image's number and where its bytes are.
enum Source {
    File(File),
    Vdso,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("it can't be read: {0}")]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Unwind(#[from] UnwindError),
    #[error(transparent)]
    Table(#[from] TableError),
}

type Built = (u32, Result<UnwindTable, BuildError>);

/// All tables, and who waits for them.
pub(super) struct Unwinding {
    arena: Arena,
    images: HashMap<Identity, ImageTable>,
    requests: SyncSender<(u32, Source)>,
    built: Receiver<Built>,
    /// Images that the builder has.
    building: usize,
    /// Targets whose mappings refer to an image that the builder has.
    waiting: BTreeSet<TargetId>,
    /// Images that each target maps.
    used: HashMap<TargetId, BTreeSet<u32>>,
    next_number: u32,
    generation: u32,
    /// Whether an earlier daemon's tables may be in use.
    resuming: bool,
    /// Whether every target has mappings, or waits for tables.
    seen_all: bool,
    /// Mappings, images and tables that found no room.
    refused: u64,
}

impl Unwinding {
    /// Starts the builder thread.
    pub(super) fn new(analyst: Analyst) -> anyhow::Result<Self> {
        let (requests, queue) = sync_channel::<(u32, Source)>(QUEUE_MAX);
        let (sender, built) = channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("unwind-tables".to_owned())
            .spawn(move || {
                for (number, source) in queue {
                    if sender.blocking_send((number, build(&analyst, source))).is_err() {
                        return;
                    }
                }
            })
            .context("the thread that builds unwind tables can't be started")?;
        Ok(Self {
            arena: Arena::default(),
            images: HashMap::new(),
            requests,
            built,
            building: 0,
            waiting: BTreeSet::new(),
            used: HashMap::new(),
            next_number: 0,
            // No generation of an earlier daemon's, whose numbers began at its own time.
            generation: (monotonic_ns() >> 20) as u32,
            resuming: false,
            seen_all: false,
            refused: 0,
        })
    }

    /// Leaves what an earlier daemon's mappings refer to alone, until all targets have mappings of this one's.
    pub(super) fn resume(&mut self, kernel: &Kernel) {
        let (rows, pages) = kernel.used_chunks();
        self.arena.reserve(&rows, &pages);
        self.resuming = true;
    }

    /// All targets have been seen: nobody needs an earlier daemon's tables once none of this one's is being built.
    pub(super) fn has_seen_all(&mut self) {
        self.seen_all = true;
        self.release();
    }

    fn release(&mut self) {
        if self.resuming && self.seen_all && self.building == 0 {
            self.arena.release_reserved();
            self.resuming = false;
        }
    }

    /// Looks at a target's mappings, has missing tables built, and gives the kernel what is known.
    pub(super) fn see(&mut self, target: TargetId, kernel: &mut Kernel) {
        // One that has gone needs no tables.
        let Ok(mappings) = processes::executable_mappings(target.tgid()) else {
            return;
        };
        let mut complete = true;
        let mut regions = Vec::new();
        for mapping in &mappings.executable {
            let Some((image, ready)) = self.image(target.tgid(), mapping) else {
                continue;
            };
            complete &= ready;
            let Mapping {
                start,
                end,
                file_offset,
                ..
            } = *mapping;
            regions.push(Region {
                start,
                end,
                file_offset,
                image,
            });
        }
        let used = regions.iter().map(|region| region.image).collect();
        self.used.insert(target, used);
        if complete {
            self.waiting.remove(&target);
        } else {
            self.waiting.insert(target);
        }
        // An earlier daemon's mappings are whole, and so are its tables, until this one's are.
        if self.resuming && !complete && kernel.has_mappings(target.tgid()) {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let (packed, left_out) = pack(&regions, &self.arena, self.generation);
        self.refused += left_out as u64;
        // The process may have become another one while its mappings were read.
        let is_still = |kernel: &Kernel| {
            kernel
                .target(target.tgid())
                .is_some_and(|entry| entry.target == target.0)
        };
        if !is_still(kernel) {
            return;
        }
        if kernel.set_mappings(target.tgid(), &packed).is_err() {
            self.refused += 1;
        }
        // Where it ended in between, nobody else takes them away, and the next process of that number would get them.
        if !is_still(kernel) {
            kernel.drop_mappings(target.tgid());
        }
    }

    /// Has the table of an image built before a process of it is seen.
    pub(super) fn expect(&mut self, file: &File) {
        if let (Ok(metadata), Ok(own)) = (file.metadata(), file.try_clone()) {
            self.table((metadata.dev(), metadata.ino()), || Some(own));
        }
    }

    /// Takes one built table and gives it to all who wait. Waits for ever where none is due. Safe to drop half-way.
    pub(super) async fn built(&mut self) -> Option<Finished> {
        if self.building == 0 {
            return std::future::pending().await;
        }
        let Some((number, table)) = self.built.recv().await else {
            self.building = 0;
            return None;
        };
        Some(Finished { number, table })
    }

    /// Places a table that [`Self::built`] returned.
    pub(super) fn place(&mut self, finished: Finished, kernel: &mut Kernel) {
        self.building -= 1;
        let Finished { number, table } = finished;
        match table {
            Ok(table) => {
                if let Err(error) = self.arena.insert(number, &table) {
                    self.refused += 1;
                    tracing::warn!("stacks through an image are not unwound: {error}");
                }
            }
            Err(error) => tracing::info!("stacks through an image are not unwound: {error}"),
        }
        if let Some(image) = self.images.values_mut().find(|image| image.number == number) {
            image.ready = true;
        }
        if let Err(error) = kernel.write_tables(&mut self.arena) {
            self.refused += 1;
            tracing::warn!("unwind tables can't be stored: {error}");
        }
        if self.building == 0 {
            for target in std::mem::take(&mut self.waiting) {
                self.see(target, kernel);
            }
            self.release();
        }
    }

    /// Whether every known image has its table, or can't have one.
    pub(super) const fn is_complete(&self) -> bool {
        self.building == 0
    }

    /// Mappings, images and tables that found no room.
    pub(super) const fn refused(&self) -> u64 {
        self.refused
    }

    /// Drops what belongs to targets. Tables stay: the next process of the image needs them.
    pub(super) fn forget(&mut self, gone: &BTreeSet<TargetId>) {
        self.waiting.retain(|target| !gone.contains(target));
        self.used.retain(|target, _| !gone.contains(target));
    }

    /// Drops the tables of images that have been deleted and that no target maps: nothing can map them any more.
    pub(super) fn release_deleted(&mut self) {
        self.release_unused(|file| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0));
    }

    /// Drops the tables of images that no target maps, where `which` says so of their file.
    fn release_unused(&mut self, which: impl Fn(&File) -> bool) {
        let used: BTreeSet<u32> = self.used.values().flatten().copied().collect();
        let arena = &mut self.arena;
        self.images.retain(|_, image| {
            let needed = !image.ready || used.contains(&image.number) || !image.file.as_ref().is_some_and(&which);
            if !needed {
                arena.remove(image.number);
            }
            needed
        });
    }

    /// Number of a mapping's image, and whether its table is ready. `None` where no table can be had.
    fn image(&mut self, tgid: u32, mapping: &Mapping) -> Option<(u32, bool)> {
        let is_vdso = mapping.path.as_os_str() == "[vdso]";
        if !mapping.has_file() && !is_vdso {
            return None;
        }
        let identity = if is_vdso { VDSO } else { (mapping.device, mapping.inode) };
        self.table(identity, || {
            if is_vdso {
                None
            } else {
                processes::open_mapping(tgid, mapping).ok()
            }
        })
    }

    /// Number of an image, and whether its table is ready; it is built where that was not done. `open` gives the file.
    fn table(&mut self, identity: Identity, open: impl FnOnce() -> Option<File>) -> Option<(u32, bool)> {
        if let Some(known) = self.images.get(&identity) {
            return Some((known.number, known.ready));
        }
        if self.images.len() >= IMAGES_MAX {
            self.release_unused(|_| true);
        }
        if self.images.len() >= IMAGES_MAX {
            self.refused += 1;
            return None;
        }
        let number = self.next_number;
        let file = open();
        let source = match &file {
            Some(file) => Source::File(file.try_clone().ok()?),
            None if identity == VDSO => Source::Vdso,
            None => return None,
        };
        match self.requests.try_send((number, source)) {
            Ok(()) => {
                self.building += 1;
                self.next_number = self.next_number.wrapping_add(1);
            }
            // The next look at a target that maps it asks again.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.refused += 1;
                return None;
            }
        }
        let image = ImageTable {
            number,
            file,
            ready: false,
        };
        self.images.insert(identity, image);
        Some((number, false))
    }
}

/// A table fresh from the builder.
pub(super) struct Finished {
    number: u32,
    table: Result<UnwindTable, BuildError>,
}

fn build(analyst: &Analyst, source: Source) -> Result<UnwindTable, BuildError> {
    Ok(match source {
        // The kernel's own.
        Source::Vdso => UnwindTable::build(&own_vdso()?)?,
        Source::File(file) => unwind_table(analyst, &file)?,
    })
}

/// The kernel maps the same vdso into every 64-bit process, so leakmon's own will do.
fn own_vdso() -> std::io::Result<Vec<u8>> {
    let mappings = processes::executable_mappings(std::process::id()).map_err(std::io::Error::other)?;
    let vdso = mappings
        .executable
        .iter()
        .find(|mapping| mapping.path.as_os_str() == "[vdso]");
    let vdso = vdso.ok_or_else(|| std::io::Error::other("this process has no vdso"))?;
    let mut bytes = vec![0; usize::try_from(vdso.end - vdso.start).map_err(std::io::Error::other)?];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, vdso.start)?;
    Ok(bytes)
}
