//! The entries of `.eh_frame`, evaluated to ranges of addresses with one rule each.
//!
//! In: the section's bytes. Out: unsorted [`Range`]s. Lengths are followed here, entry by entry, so that a broken entry
//! costs itself alone; `gimli` parses and evaluates each.

use std::collections::HashMap;

use gimli::{
    CommonInformationEntry, EhFrame, EhFrameOffset, EndianSlice, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindContextStorage, UnwindSection, UnwindTableRow,
};
use leakmon_ebpf::rows::{FRAME_POINTER_SAME, kind};

use super::image_frames::ImageFrames;
use super::{ENTRIES_MAX, INSTRUCTION_BYTES_MAX, ROWS_MAX, UnwindError, UnwindStats, x86_64};

/// A common part (CIE) longer than this is refused: usual ones have 20 to 30 bytes, and each entry that refers to one
/// executes it anew.
const COMMON_BYTES_MAX: usize = 4096;
/// Common parts kept parsed; compilers emit a handful in an image, linkers merge them.
const COMMONS_MAX: usize = 4096;

type Reader<'a> = EndianSlice<'a, LittleEndian>;
type Common<'a> = CommonInformationEntry<Reader<'a>>;

/// Rules for up to 32 registers (x86-64 code saves at most 17) and 8 remembered states, in place.
pub(super) struct Storage;
impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 32];
    type Stack = [UnwindTableRow<usize, Self>; 8];
}

/// What a row says, without its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) kind: u8,
    pub(super) frame_pointer: u8,
    pub(super) offset: u16,
}

impl Rule {
    pub(super) const NONE: Self = Self {
        kind: kind::NONE,
        frame_pointer: FRAME_POINTER_SAME,
        offset: 0,
    };
    pub(super) const UNSUPPORTED: Self = Self {
        kind: kind::UNSUPPORTED,
        frame_pointer: FRAME_POINTER_SAME,
        offset: 0,
    };
}

/// Addresses of an image that share a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    /// At least 1; a longer range is cut to 4 GiB.
    pub(super) len: u32,
    pub(super) rule: Rule,
}

/// Reads all entries.
pub(super) fn read(image: &ImageFrames<'_>, stats: &mut UnwindStats) -> Result<Vec<Range>, UnwindError> {
    let section = EhFrame::new(image.entries, LittleEndian);
    let mut evaluation = Evaluation {
        image,
        section,
        commons: HashMap::new(),
        context: Box::new(UnwindContext::new_in()),
        instruction_bytes: 0,
        ranges: Vec::new(),
    };
    let mut offset = 0;
    while let Some(head) = EntryHead::at(image.entries, offset) {
        match head {
            // A linker may leave the terminator of one of its inputs in the middle.
            EntryHead::Terminator { next } if image.is_section => offset = next,
            EntryHead::Terminator { .. } => break,
            EntryHead::Broken => {
                stats.broken_entries += 1;
                break;
            }
            EntryHead::Common { next } => offset = next,
            EntryHead::Function { next } => {
                if stats.entries == ENTRIES_MAX || evaluation.instruction_bytes > INSTRUCTION_BYTES_MAX {
                    stats.cut = true;
                    break;
                }
                evaluation.entry(offset, stats)?;
                offset = next;
            }
        }
    }
    Ok(evaluation.ranges)
}

/// The first words of an entry, enough to step over it.
enum EntryHead {
    Terminator { next: usize },
    Common { next: usize },
    Function { next: usize },
    Broken,
}

impl EntryHead {
    /// `None` at the end of the section. A 64-bit length (0xffffffff first) is as in DWARF 5, 7.4.
    fn at(entries: &[u8], offset: usize) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*entries.get(at..)?.first_chunk::<4>()?));
        let long = |at: usize| Some(u64::from_le_bytes(*entries.get(at..)?.first_chunk::<8>()?));
        let length = word(offset)?;
        let (body, length) = match length {
            0 => return Some(Self::Terminator { next: offset + 4 }),
            u32::MAX => match long(offset + 4) {
                Some(length) => (offset + 12, length),
                None => return Some(Self::Broken),
            },
            _ => (offset + 4, u64::from(length)),
        };
        let end = usize::try_from(length).ok().and_then(|length| body.checked_add(length));
        let (Some(id), Some(next)) = (word(body), end.filter(|&end| end <= entries.len())) else {
            return Some(Self::Broken);
        };
        // The id has 32 bits in `.eh_frame`, whatever the length has.
        Some(if id == 0 {
            Self::Common { next }
        } else {
            Self::Function { next }
        })
    }
}

struct Evaluation<'a, 'b> {
    image: &'b ImageFrames<'a>,
    section: EhFrame<Reader<'a>>,
    commons: HashMap<usize, Common<'a>>,
    context: Box<UnwindContext<usize, Storage>>,
    instruction_bytes: u64,
    ranges: Vec<Range>,
}

impl<'a> Evaluation<'a, '_> {
    /// Evaluates the function entry at `offset`.
    fn entry(&mut self, offset: usize, stats: &mut UnwindStats) -> Result<(), UnwindError> {
        let image = self.image;
        let Ok(partial) = self
            .section
            .partial_fde_from_offset(&image.bases, EhFrameOffset(offset))
        else {
            stats.broken_entries += 1;
            return Ok(());
        };
        self.instruction_bytes += partial.entry_len() as u64;
        let Some(common) = self.common(partial.cie_offset().0) else {
            stats.broken_commons += 1;
            return Ok(());
        };
        self.instruction_bytes += common.entry_len() as u64;
        let Ok(function) = partial.parse(|_, _, _| Ok(common.clone())) else {
            stats.broken_entries += 1;
            return Ok(());
        };
        stats.entries += 1;
        self.evaluate(&function, stats)
    }

    /// The common part at `offset`, parsed once.
    fn common(&mut self, offset: usize) -> Option<Common<'a>> {
        if let Some(common) = self.commons.get(&offset) {
            return Some(common.clone());
        }
        let EntryHead::Common { next } = EntryHead::at(self.image.entries, offset)? else {
            return None;
        };
        if next - offset > COMMON_BYTES_MAX {
            return None;
        }
        self.instruction_bytes += (next - offset) as u64;
        let common = self
            .section
            .cie_from_offset(&self.image.bases, EhFrameOffset(offset))
            .ok()?;
        if self.commons.len() < COMMONS_MAX {
            self.commons.insert(offset, common.clone());
        }
        Some(common)
    }

    fn evaluate(
        &mut self,
        function: &FrameDescriptionEntry<Reader<'a>>,
        stats: &mut UnwindStats,
    ) -> Result<(), UnwindError> {
        let is_signal = function.is_signal_trampoline();
        let Ok(mut rows) = function.rows(&self.section, &self.image.bases, &mut self.context) else {
            stats.broken_instructions += 1;
            return Ok(());
        };
        loop {
            let row = match rows.next_row() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(()),
                Err(_) => {
                    stats.broken_instructions += 1;
                    return Ok(());
                }
            };
            let Some(len) = row
                .end_address()
                .checked_sub(row.start_address())
                .filter(|&len| len > 0)
            else {
                continue;
            };
            if self.ranges.len() == ROWS_MAX {
                return Err(UnwindError::TooLarge("rows"));
            }
            let rule = x86_64::rule_for_row(row, &self.section, is_signal, stats);
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            self.ranges.push(Range {
                start: row.start_address(),
                len,
                rule,
            });
        }
    }
}
