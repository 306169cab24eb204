//! Where a task's words lie in a process's memory.
//!
//! In: a plan, and by how much its image was moved when it was loaded. Out: [`Layouts`], found by a vtable's address. Offsets are
//! those of the plan, which knows the runtime's versions; nothing here does.

use super::reader::Piece;
use crate::targets::plan::{ProbePlan, TaskType};
use leakmon_ebpf::abi::Kind;

/// Alignment of a task's memory before `Cell` was padded (`usize`'s).
const WORD_ALIGNMENT: u64 = 8;
/// Alignment of a task's memory since (`repr(align(128))` of `Cell`, tokio 1.38.0 and 1.54.1, `runtime/task/core.rs`).
const PADDED_ALIGNMENT: u64 = 128;
/// First version whose tasks are surely padded.
const PADDED_SINCE: (u32, u32) = (1, 38);

/// First version whose `Stage` is `repr(C)`, and whose trailer has a hook (1.40.0, `runtime/task/core.rs`; 1.39.3 has neither).
const STAGED_SINCE: (u32, u32) = (1, 40);
/// Bytes of a trailer before: the list's pointers and a waker.
const TRAILER_BYTES: u32 = 0x20;
/// Bytes of a trailer since: a hook of two words more.
const HOOKED_TRAILER_BYTES: u32 = 0x30;

/// Bytes of the two pointers at the trailer's start (`linked_list::Pointers`, `util/linked_list.rs`).
const POINTERS_BYTES: u32 = 16;

/// Why the tasks of an image can't be found in memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tasks of {runtime}{version} can't be found in memory: its vtables do not say where a task's words lie; tokio 1.23 and later can be read"
)]
pub struct UnknownLayout {
    runtime: &'static str,
    version: String,
}

/// One task type in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Address of the vtable in the process.
    pub vtable: u64,
    /// Index in [`ProbePlan::task_types`].
    pub task_type: usize,
    /// Kind of its tasks.
    pub kind: Kind,
    /// Offset of the scheduler handle.
    pub scheduler_offset: u32,
    /// Offset of the task id.
    pub id_offset: u32,
    /// Offset of the trailer.
    pub trailer_offset: u32,
    /// Whether the tag of the future's stage follows the task id, so far as the version says.
    pub staged: bool,
    /// Bytes of a task's memory, where they are known.
    pub bytes: Option<u32>,
}

impl Layout {
    /// The words up to the task id, and one more where the stage's tag is there.
    pub(super) const fn head(&self, header: u64) -> Piece {
        Piece {
            address: header,
            len: self.id_offset + if self.staged { 16 } else { 8 },
        }
    }

    /// The words of the trailer.
    pub(super) const fn tail(&self, header: u64) -> Piece {
        Piece {
            address: header.saturating_add(self.trailer_offset as u64),
            len: POINTERS_BYTES,
        }
    }
}

/// The task types of one process.
#[derive(Clone, Debug)]
pub struct Layouts {
    /// By ascending vtable address.
    types: Vec<Layout>,
    /// Offset in the header of the vtable's address.
    pub(super) vtable_offset: u64,
    /// What every header's address is a multiple of.
    pub(super) alignment: u64,
    /// Types of the plan whose tasks can't be found.
    unknown: usize,
}

impl Layouts {
    /// The task types of `plan`, at the addresses that they have in the image.
    ///
    /// # Errors
    /// [`UnknownLayout`] where the runtime's vtables do not tell enough.
    pub fn new(plan: &ProbePlan) -> Result<Self, UnknownLayout> {
        let unknown = || UnknownLayout {
            runtime: plan.runtime,
            version: plan
                .runtime_version
                .as_ref()
                .map(|version| format!(" {version}"))
                .unwrap_or_default(),
        };
        let versions = Versions::of(plan.runtime_version.as_deref());
        let indexed = plan.task_types.iter().enumerate();
        let mut types: Vec<Layout> = indexed.filter_map(|(index, of)| layout(index, of, versions)).collect();
        types.sort_unstable_by_key(|layout| layout.vtable);
        if types.is_empty() {
            return Err(unknown());
        }
        Ok(Self {
            vtable_offset: VTABLE_OFFSET,
            alignment: alignment(versions.lowest),
            unknown: plan.task_types.len() - types.len(),
            types,
        })
    }

    /// The same types where the image was moved by `bias`.
    #[must_use]
    pub fn moved(&self, bias: u64) -> Self {
        let mut moved = self.clone();
        for layout in &mut moved.types {
            layout.vtable = layout.vtable.wrapping_add(bias);
        }
        moved.types.sort_unstable_by_key(|layout| layout.vtable);
        moved
    }

    /// The type with this vtable.
    #[must_use]
    pub fn of_vtable(&self, address: u64) -> Option<&Layout> {
        self.index_of(address).map(|index| &self.types[index])
    }

    /// Which type has this vtable.
    pub(super) fn index_of(&self, address: u64) -> Option<usize> {
        self.types.binary_search_by_key(&address, |layout| layout.vtable).ok()
    }

    /// All of them, by ascending vtable address. At least one.
    #[must_use]
    pub fn types(&self) -> &[Layout] {
        &self.types
    }

    /// Types of the image whose tasks can't be found: those of an older runtime beside one that can be read.
    #[must_use]
    pub const fn unknown(&self) -> usize {
        self.unknown
    }

    /// Lowest and highest vtable address.
    pub(super) fn bounds(&self) -> (u64, u64) {
        let [first, .., last] = &self.types[..] else {
            let only = self.types.first().map_or(0, |layout| layout.vtable);
            return (only, only);
        };
        (first.vtable, last.vtable)
    }
}

/// The versions in an image, of which a type's own is not known where there are several. (0, 0) where none is known.
#[derive(Clone, Copy)]
struct Versions {
    lowest: (u32, u32),
    highest: (u32, u32),
}

impl Versions {
    /// Of a text such as `1.38.0, 1.54.1`.
    fn of(text: Option<&str>) -> Self {
        let of_each = |version: &str| minor(version.trim()).unwrap_or_default();
        let all: Vec<(u32, u32)> = text.into_iter().flat_map(|text| text.split(',')).map(of_each).collect();
        Self {
            lowest: all.iter().min().copied().unwrap_or_default(),
            highest: all.iter().max().copied().unwrap_or_default(),
        }
    }
}

/// Bytes of the header's words that every version has.
const HEADER_BYTES: u32 = 0x20;
/// Offset of the vtable's address in the header (tokio 1.23.1 to 1.54.1, `runtime/task/core.rs`).
const VTABLE_OFFSET: u64 = 0x10;

fn layout(index: usize, task_type: &TaskType, versions: Versions) -> Option<Layout> {
    let (scheduler_offset, id_offset) = (task_type.scheduler_offset?, task_type.id_offset?);
    let trailer_offset = task_type.trailer_offset.filter(|trailer| *trailer > id_offset)?;
    let known = id_offset >= HEADER_BYTES && u64::from(task_type.vtable_offset) == VTABLE_OFFSET;
    let size = |version| bytes(trailer_offset, version);
    known.then_some(Layout {
        vtable: task_type.vtable,
        task_type: index,
        kind: task_type.kind,
        scheduler_offset,
        id_offset,
        trailer_offset,
        staged: versions.lowest >= STAGED_SINCE,
        bytes: size(versions.lowest).filter(|bytes| size(versions.highest) == Some(*bytes)),
    })
}

/// `size_of::<Cell<T, S>>()`, unless the future is aligned to more than that; `None` where the version is not known.
fn bytes(trailer_offset: u32, version: (u32, u32)) -> Option<u32> {
    let trailer = match version {
        (0, _) => return None,
        version if version >= STAGED_SINCE => HOOKED_TRAILER_BYTES,
        _ => TRAILER_BYTES,
    };
    trailer_offset
        .checked_add(trailer)?
        .checked_next_multiple_of(alignment(version) as u32)
}

fn alignment(version: (u32, u32)) -> u64 {
    if version >= PADDED_SINCE {
        PADDED_ALIGNMENT
    } else {
        WORD_ALIGNMENT
    }
}

/// Major and minor number of a version.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn task_type(vtable: u64) -> TaskType {
        TaskType {
            vtable,
            kind: Kind::Task,
            names: Vec::new(),
            runtime_owned: false,
            vtable_offset: 0x10,
            trailer_offset: Some(0x80),
            scheduler_offset: Some(0x20),
            id_offset: Some(0x28),
        }
    }

    fn plan(version: Option<&str>, task_types: Vec<TaskType>) -> ProbePlan {
        ProbePlan {
            image: crate::targets::plan::ImageId {
                device: 0,
                inode: 0,
                build_id: String::new(),
            },
            path: "app".into(),
            runtime: "tokio",
            runtime_version: version.map(str::to_owned),
            entry_file_offset: None,
            task_types,
            sites: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Two types, with vtables at 0x5000 and 0x5080.
    pub(in crate::memory) fn layouts(alignment: u64) -> Layouts {
        let plan = plan(None, vec![task_type(0x80), task_type(0)]);
        Layouts {
            alignment,
            ..Layouts::new(&plan).unwrap().moved(0x5000)
        }
    }

    #[test]
    fn types_are_found_by_their_vtables_in_the_process() {
        let layouts = layouts(8);
        assert_eq!(layouts.bounds(), (0x5000, 0x5080));
        assert_eq!(layouts.of_vtable(0x5080).unwrap().task_type, 0);
        assert_eq!(layouts.of_vtable(0x5000).unwrap().task_type, 1);
        assert_eq!(layouts.of_vtable(0x5008), None);
        let piece = |address, len| Piece { address, len };
        assert_eq!(layouts.types[0].head(0x100), piece(0x100, 0x30));
        assert_eq!(layouts.types[0].tail(0x100), piece(0x180, 16));
    }

    #[test]
    fn the_version_says_how_tasks_are_aligned() {
        for (version, alignment, bytes, staged) in [
            (Some("1.54.1"), 128, Some(0x100), true),
            (Some("1.40.0"), 128, Some(0x100), true),
            (Some("1.38.0"), 128, Some(0x100), false),
            (Some("1.37.0"), 8, Some(0xa0), false),
            (Some("1.23.1"), 8, Some(0xa0), false),
            (Some("1.38.0, 1.54.1"), 128, Some(0x100), false),
            (Some("1.54.1, 1.23.1"), 8, None, false),
            (Some("nonsense"), 8, None, false),
            (None, 8, None, false),
        ] {
            let layouts = Layouts::new(&plan(version, vec![task_type(0)])).unwrap();
            let layout = layouts.types[0];
            assert_eq!(
                (layouts.alignment, layout.bytes, layout.staged),
                (alignment, bytes, staged),
                "{version:?}"
            );
        }
    }

    #[test]
    fn types_that_tell_too_little_are_counted() {
        let mut old = task_type(0);
        old.id_offset = None;
        let layouts = Layouts::new(&plan(Some("1.22.0, 1.54.1"), vec![old, task_type(0x80)])).unwrap();
        assert_eq!((layouts.types().len(), layouts.unknown()), (1, 1));
    }

    #[test]
    fn a_runtime_whose_vtables_tell_nothing_is_refused_by_name() {
        let mut old = task_type(0);
        old.id_offset = None;
        let error = Layouts::new(&plan(Some("1.19.2"), vec![old])).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the tasks of tokio 1.19.2 can't be found"),
            "{error}"
        );
    }
}
