//! What children are asked of an image: its probe plan, its unwind table. And what of their answers is believed.
//!
//! In: open files. Out: plans and tables, as the parsers of this stage make them, but from a child that a hostile file may
//! have taken over: sizes, indices and texts are checked here. A wrong number in range harms nobody but the file's own processes:
//! the bytes at each site are compared before a probe is attached there, and the walk's programs check each step.

use super::{
    opening::{AnalyseError, Found, Refusal, identify, open, search},
    plan::ProbePlan,
    runtimes::RUNTIMES,
    unwind::{ROWS_MAX, SEGMENTS_MAX, SegmentRows, TEXT_BYTES_MAX, UnwindStats, UnwindTable},
};
use crate::analysis::{Analyst, Failure, Job, SharedFile, answering};
use leakmon_ebpf::{abi::Cookie, rows::Row};
use object::read::{ReadCache, ReadRef};
use serde::{Deserialize, Serialize};
use std::{alloc::Layout, fs::File, ops::Range, path::Path, time::Duration};
use zerocopy::{FromBytes, IntoBytes};

/// Memory of a child that reads an image: its loaded segments and symbol tables. With what the child has anyway it stays
/// below 512 MB.
const MEMORY_BYTES: u64 = 448 << 20;
/// A 24 MB program takes a second, and a debug build of leakmon ten times that.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Finds probe sites.
pub static PLAN: Job = Job {
    name: "plan",
    memory_bytes: MEMORY_BYTES,
    processor_seconds: 25,
    answer_time: ANSWER_TIME,
    // A program with 53 task types has 40 KB.
    answer_bytes_max: 32 << 20,
    start: |mut files| {
        let file = files.pop().ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(answering(move |()| {
            search(Data(&ReadCache::new(SharedFile::new(&file))))
        }))
    },
};

/// Builds unwind tables.
pub static UNWIND_TABLE: Job = Job {
    name: "unwind_table",
    memory_bytes: MEMORY_BYTES,
    processor_seconds: 25,
    answer_time: ANSWER_TIME,
    answer_bytes_max: ROWS_MAX * size_of::<Row>() + (1 << 16),
    start: |mut files| {
        let file = files.pop().ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(answering(move |()| {
            UnwindTable::build_from(Data(&ReadCache::new(SharedFile::new(&file))))
                .map(|table| SentTable::from(&table))
                .map_err(|error| error.to_string())
        }))
    },
};

/// A file of which only what is asked for is read, into the child's own memory.
#[derive(Clone, Copy)]
struct Data<'a, 'file>(&'a ReadCache<SharedFile<'file>>);

impl<'a> ReadRef<'a> for Data<'a, '_> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        let read = self.0.read_bytes_at(offset, size);
        let is_in_file = || Some(offset.checked_add(size)? <= self.0.len().ok()?);
        if read.is_err() && is_in_file() == Some(true) {
            // What the file has and can't be had is too much for this child. As a damaged file it would be shown wrongly.
            std::alloc::handle_alloc_error(Layout::new::<u8>());
        }
        read
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

/// Plans the probes of an open file, in a child. `path` is for messages and for the plan.
///
/// It blocks, for [`Job::answer_time`] at most.
///
/// # Errors
/// [`AnalyseError`], each meaning that this file can't be probed.
pub fn analyse(analyst: &Analyst, file: &File, path: &Path) -> Result<ProbePlan, AnalyseError> {
    let id = identify(file, path)?;
    let failed = |failure| AnalyseError::Failed {
        path: path.to_owned(),
        failure,
    };
    let mut child = analyst.child(&PLAN, &[file]).map_err(failed)?;
    match child.ask::<(), Result<Found, Refusal>>(&()).map_err(failed)? {
        Ok(found) if is_credible(&found) => Ok(found.into_plan(path, id)),
        Err(refusal) if is_credible_refusal(&refusal) => Err(refusal.of(path)),
        _ => Err(failed(child.disbelieve())),
    }
}

/// As [`analyse`], of the file at a path, which is given back open.
///
/// # Errors
/// [`AnalyseError`].
pub fn analyse_path(analyst: &Analyst, path: &Path) -> Result<(ProbePlan, File), AnalyseError> {
    let file = open(path)?;
    Ok((analyse(analyst, &file, path)?, file))
}

/// Why an image has no unwind table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It can't have one.
    #[error("{0}")]
    None(String),
    /// The child gave no answer.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Builds the unwind table of an open file, in a child. It blocks, for [`Job::answer_time`] at most.
///
/// # Errors
/// [`TableError`].
pub fn unwind_table(analyst: &Analyst, file: &File) -> Result<UnwindTable, TableError> {
    let mut child = analyst.child(&UNWIND_TABLE, &[file])?;
    let table = match child.ask::<(), Result<SentTable, String>>(&())? {
        Ok(sent) => sent.into_table(),
        Err(reason) if is_text(&reason) => return Err(TableError::None(reason)),
        Err(_) => None,
    };
    table.ok_or_else(|| child.disbelieve().into())
}

/// Bytes of a text in an answer; type names have 4 KiB at most.
const TEXT_BYTES_MAX_ANSWER: usize = 1 << 15;
/// Machine encodings of registers are below it.
const REGISTERS: u8 = 16;
/// Bytes of the longest x86 instruction.
const INSTRUCTION_BYTES_MAX: usize = 15;
/// Offsets in a file are below it: an `off_t` is signed.
const FILE_OFFSETS_MAX: u64 = 1 << 63;

fn is_text(text: &str) -> bool {
    text.len() <= TEXT_BYTES_MAX_ANSWER
}

fn is_credible(found: &Found) -> bool {
    let sites = found.sites.iter().all(|site| {
        site.register < REGISTERS
            && site.file_offset < FILE_OFFSETS_MAX
            && (1..=INSTRUCTION_BYTES_MAX).contains(&site.bytes.len())
            && is_text(&site.instruction)
            && site.task_type.is_none_or(|index| index < found.task_types.len())
    });
    let types = found
        .task_types
        .iter()
        .all(|task_type| task_type.names.iter().all(|name| is_text(name)));
    sites
        && types
        && found.sites.len() <= Cookie::SITES_MAX as usize
        && found.runtime < RUNTIMES.len()
        && found.entry_file_offset.is_none_or(|offset| offset < FILE_OFFSETS_MAX)
        && found.build_id.bytes().all(|byte| byte.is_ascii_hexdigit())
        && is_text(&found.build_id)
        && found.version.as_deref().is_none_or(is_text)
        && found.problems.iter().all(|problem| is_text(problem))
}

fn is_credible_refusal(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Damaged(what) | Refusal::TooLarge(what) => is_text(what),
        Refusal::Unsupported {
            runtime,
            version,
            reason,
        } => *runtime < RUNTIMES.len() && version.as_deref().is_none_or(is_text) && is_text(reason),
        Refusal::NotElf | Refusal::Narrow | Refusal::Machine(_) | Refusal::NotExecutable | Refusal::NoRuntime => true,
    }
}

/// An [`UnwindTable`] on its way.
#[derive(Debug, Serialize, Deserialize)]
struct SentTable {
    segments: Vec<SentRows>,
    stats: UnwindStats,
}

#[derive(Debug, Serialize, Deserialize)]
struct SentRows {
    vaddr: u64,
    file_offset: u64,
    size: u64,
    /// Of [`Row`]s.
    rows: Vec<u8>,
}

impl From<&UnwindTable> for SentTable {
    fn from(table: &UnwindTable) -> Self {
        let segments = table.segments.iter().map(|segment| SentRows {
            vaddr: segment.vaddr,
            file_offset: segment.file_offset,
            size: segment.size,
            rows: segment.rows.as_bytes().to_vec(),
        });
        Self {
            segments: segments.collect(),
            stats: table.stats,
        }
    }
}

impl SentTable {
    /// The table, where it is one that [`UnwindTable::build`] could have made.
    fn into_table(self) -> Option<UnwindTable> {
        let segments: Vec<SegmentRows> = self
            .segments
            .into_iter()
            .map(SentRows::into_rows)
            .collect::<Option<_>>()?;
        let text_bytes = segments
            .iter()
            .try_fold(0_u64, |sum, segment| sum.checked_add(segment.size))?;
        let bounded = segments.len() <= SEGMENTS_MAX && text_bytes <= TEXT_BYTES_MAX;
        bounded.then_some(UnwindTable {
            segments,
            stats: self.stats,
        })
    }
}

impl SentRows {
    fn into_rows(self) -> Option<SegmentRows> {
        let whole = self.rows.len().is_multiple_of(size_of::<Row>());
        let rows = self.rows.chunks_exact(size_of::<Row>()).map(Row::read_from_bytes);
        let rows: Vec<Row> = rows.collect::<Result<_, _>>().ok().filter(|_| whole)?;
        let rising = rows.is_sorted_by(|one, next| one.pc < next.pc);
        let within = rows.first()?.pc == 0 && u64::from(rows.last()?.pc) < self.size;
        (rising && within).then_some(SegmentRows {
            vaddr: self.vaddr,
            file_offset: self.file_offset,
            size: self.size,
            rows,
        })
    }
}

#[cfg(test)]
mod tests;
