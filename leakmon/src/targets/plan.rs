//! The probe plan of an image: what the other stages know of a binary.
//!
//! In: nothing. Out: plain data. It is made by [`super::analyse`], printed by `leakmon probes`, and attached by
//! `kernel/`. It holds no open file and no process.

use leakmon_ebpf::abi::{Condition, Kind, Role};
use serde::{Deserialize, Serialize};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
};

/// Who an ELF file is, whatever its path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId {
    /// `st_dev` of the file.
    pub device: u64,
    /// `st_ino` of the file.
    pub inode: u64,
    /// Lower-case hexadecimal of the `NT_GNU_BUILD_ID` note, empty where there is none.
    pub build_id: String,
}

/// What leakmon does with one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// The file.
    pub image: ImageId,
    /// Where it was opened.
    pub path: PathBuf,
    /// Name of the runtime, a row of the table in [`super::runtimes`].
    pub runtime: &'static str,
    /// The runtime's version, read from panic paths in `.rodata`; `None` where none is there.
    pub runtime_version: Option<String>,
    /// Offset in the file of the program's first own instruction (`e_entry`); `None` for a library.
    pub entry_file_offset: Option<u64>,
    /// The task types, by ascending vtable address.
    pub task_types: Vec<TaskType>,
    /// The sites: births in the order of `task_types`, then ends by ascending address, then where tasks are freed, likewise.
    pub sites: Vec<ProbeSite>,
    /// What could not be planned, a sentence each. Empty means that every task type is followed.
    pub problems: Vec<String>,
}

/// One static task vtable: one future type on one scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskType {
    /// Virtual address of the vtable in the image.
    pub vtable: u64,
    /// Kind of the tasks.
    pub kind: Kind,
    /// Full demangled name of the future's type. Several where the linker merged identical code; empty where nothing
    /// names it (stripped). Untrusted text.
    pub names: Vec<String>,
    /// Whether the type is one of the runtime's own (its worker threads).
    pub runtime_owned: bool,
    /// Offset of the pointer to the vtable in the task's header.
    pub vtable_offset: u32,
    /// Offset of the trailer in the task's memory; `None` where the runtime's version does not tell it.
    pub trailer_offset: Option<u32>,
    /// Offset of the scheduler handle, likewise.
    pub scheduler_offset: Option<u32>,
    /// Offset of the task id, likewise.
    pub id_offset: Option<u32>,
}

/// One instruction to probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSite {
    /// What a hit means.
    pub role: Role,
    /// Offset in the file, where the uprobe goes.
    pub file_offset: u64,
    /// Virtual address in the image.
    pub address: u64,
    /// Machine encoding of the register that holds the header's address (see [`leakmon_ebpf::abi::Cookie`]).
    pub register: u8,
    /// When a hit counts.
    pub condition: Condition,
    /// Index in [`ProbePlan::task_types`] for births; `None` where several types share the site.
    pub task_type: Option<usize>,
    /// The instruction's bytes; attached only if the file has them there.
    pub bytes: Vec<u8>,
    /// The instruction as text, Intel syntax.
    pub instruction: String,
    /// Whether the kernel emulates it instead of single-stepping it.
    pub cheap: bool,
}

impl ProbePlan {
    /// Hash of the build and of all sites in their order: where it is the same, a site's index means the same site.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.image.build_id.hash(&mut hasher);
        self.entry_file_offset.hash(&mut hasher);
        for site in &self.sites {
            (site.role, site.file_offset, site.register, site.condition).hash(&mut hasher);
            (site.task_type, &site.bytes).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// How many sites have this role.
    #[must_use]
    pub fn sites_of(&self, role: Role) -> usize {
        self.sites.iter().filter(|site| site.role == role).count()
    }

    /// How many sites the kernel must single-step.
    #[must_use]
    pub fn slow_sites(&self) -> usize {
        self.sites.iter().filter(|site| !site.cheap).count()
    }
}
