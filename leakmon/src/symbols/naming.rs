//! What a child does to name an address of one image: blazesym, within bounds.
//!
//! In: an image's open file, and its debug file's. Out: `Named` frames, or that this image can't be named this way. The files
//! are opened again and mapped by blazesym before the child is confined, by the paths of their descriptors; nothing in
//! them is read before.
//!
//! blazesym trusts what it reads: sizes are checked here before it looks at a file, a panic inside costs the image its names,
//! and whatever else it may do, the child.

use super::{
    image::{CompressedSection, Image},
    names,
    nesting::Tree,
};
use crate::analysis::{Job, SharedFile, Work, answering};
use blazesym::symbolize::{
    CodeInfo, Input, Sym, Symbolizer,
    source::{Elf, Source},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

/// Frames at one address: the innermost inlined ones and the function itself.
pub(super) const INLINED_MAX: usize = 64;
/// Bytes of an image's symbol tables: blazesym keeps 8 bytes for each symbol of 24. An 839 MB binary has some 50 MB.
pub(super) const SYMBOL_BYTES_MAX: u64 = 128 << 20;
/// Bytes of its string tables: of those, a hostile one may have all read for one name.
const STRING_BYTES_MAX: u64 = 256 << 20;
/// Bytes of all that blazesym may map in and look at, where it uses debug information: with what it may allocate, and what
/// a child has anyway, it stays below 512 MB.
const READ_BYTES_MAX: u64 = 272 << 20;
/// `ELFCOMPRESS_ZLIB`; blazesym is built without the others.
const ELFCOMPRESS_ZLIB: [u8; 4] = [1, 0, 0, 0];
/// Bytes of `Elf64_Chdr`.
const COMPRESSION_HEADER_BYTES: u64 = 24;
/// A child is dismissed long before it has used this much (`resolver::RETIRED_AFTER`).
const PROCESSOR_SECONDS: u64 = 90;
/// The first answer of a debug build of leakmon, for 160 MB of debug information, takes some seconds.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// [`INLINED_MAX`] frames of two texts of [`names::NAME_CHARS_MAX`] characters of four bytes, and numbers.
const ANSWER_BYTES_MAX: usize = INLINED_MAX * (2 * 4 * names::NAME_CHARS_MAX + 32) + 64;

/// Names addresses by debug information. Files: the image, and its debug file where it has one.
pub static BY_DEBUG_INFORMATION: Job = Job {
    name: "debug_information",
    // 135 MB of debug information took 70 MB; compressed it is unpacked into memory.
    memory_bytes: 224 << 20,
    processor_seconds: PROCESSOR_SECONDS,
    answer_time: ANSWER_TIME,
    answer_bytes_max: ANSWER_BYTES_MAX,
    start: by_debug_information,
};

/// Names addresses by the symbol table. File: the image.
pub static BY_SYMBOL_TABLE: Job = Job {
    name: "symbol_table",
    memory_bytes: 96 << 20,
    processor_seconds: PROCESSOR_SECONDS,
    answer_time: ANSWER_TIME,
    answer_bytes_max: ANSWER_BYTES_MAX,
    start: by_symbol_table,
};

/// What a child is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Question {
    /// Virtual address in the image.
    pub(super) address: u64,
    /// Bytes of debug information, unpacked, that may be used.
    pub(super) debug_bytes_max: u64,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The frames at the address, innermost first; none where no symbol covers it.
    Named {
        frames: Vec<Named>,
        /// Bytes of debug information in use.
        debug_bytes: u64,
    },
    /// The image can't be named this way.
    Unusable,
}

/// A frame, as far as the image knows it. Texts have at most [`names::NAME_CHARS_MAX`] characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) function: Option<String>,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) inlined: bool,
}

fn by_debug_information(files: Vec<File>) -> io::Result<Work> {
    let mut files = files.into_iter();
    let own = files.next().ok_or(io::ErrorKind::InvalidInput)?;
    // The debug file is better where there is one.
    let sources = files
        .chain([own])
        .map(DebugSource::map)
        .collect::<io::Result<Vec<_>>>()?;
    let mut sources = Some(sources);
    let mut opened = None;
    Ok(answering(move |question: Question| {
        if let Some(sources) = sources.take() {
            opened = sources
                .into_iter()
                .find_map(|source| source.open(question.debug_bytes_max));
        }
        let named = opened.as_ref().and_then(|(naming, debug_bytes)| {
            Some(Answer::Named {
                frames: naming.look_up(question.address)?,
                debug_bytes: *debug_bytes,
            })
        });
        named.unwrap_or(Answer::Unusable)
    }))
}

fn by_symbol_table(files: Vec<File>) -> io::Result<Work> {
    let file = files.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?;
    let mut naming = Some(Naming::map(&file, false, false)?);
    let mut checked = false;
    Ok(answering(move |question: Question| {
        if !std::mem::replace(&mut checked, true) {
            naming = naming.take().filter(|naming| has_usable_symbols(&file, naming));
        }
        let named = naming.as_ref().and_then(|naming| {
            Some(Answer::Named {
                frames: naming.look_up(question.address)?,
                debug_bytes: 0,
            })
        });
        named.unwrap_or(Answer::Unusable)
    }))
}

fn has_usable_symbols(file: &File, naming: &Naming) -> bool {
    image_of(file).is_some_and(|image| {
        // blazesym would unpack a compressed symbol table, whatever its size.
        image.compressed.iter().all(|section| section.debug)
            && image.symbol_bytes <= SYMBOL_BYTES_MAX
            && image.string_bytes <= STRING_BYTES_MAX
            && naming.try_headers(&image)
    })
}

/// The facts of a file, where all its sections are known.
fn image_of(file: &File) -> Option<Image> {
    let image = Image::read(file, Path::new("")).ok()?;
    image.sections_known.then_some(image)
}

/// A file that may have debug information, mapped for either way of using it.
struct DebugSource {
    file: File,
    with_inlined: Naming,
    without_inlined: Naming,
}

impl DebugSource {
    fn map(file: File) -> io::Result<Self> {
        Ok(Self {
            with_inlined: Naming::map(&file, true, true)?,
            without_inlined: Naming::map(&file, true, false)?,
            file,
        })
    }

    /// Checks the file's bounds and tries it; also says how many bytes of debug information are in use.
    fn open(self, debug_bytes_max: u64) -> Option<(Naming, u64)> {
        let image = image_of(&self.file)?;
        // An image that carries both debug information and a link is not given with debug information: blazesym would
        // follow the link.
        if image.linked || image.symbol_bytes > SYMBOL_BYTES_MAX {
            return None;
        }
        let read_bytes = image.debug_bytes.saturating_add(image.symbol_bytes);
        let debug_bytes = debug_bytes(&image, &self.file, debug_bytes_max).filter(|bytes| *bytes > 0)?;
        if read_bytes.saturating_add(image.string_bytes) > READ_BYTES_MAX {
            return None;
        }
        let naming = match Tree::of(&image, &self.file) {
            Tree::Shallow => self.with_inlined,
            Tree::Deep => self.without_inlined,
            Tree::Costly => return None,
        };
        naming.try_headers(&image).then_some((naming, debug_bytes))
    }
}

/// A symbolizer for one file.
struct Naming {
    symbolizer: Symbolizer,
    source: Source<'static>,
}

impl Naming {
    /// Has blazesym open and map `file`, which is read at the first look-up.
    fn map(file: &File, debug: bool, inlined: bool) -> io::Result<Self> {
        // Demangling is done by `names`, within bounds; debug files are found by `debug_file`, in the process's root.
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .enable_code_info(debug)
            .enable_inlined_fns(inlined)
            .enable_demangling(false)
            .set_debug_dirs(Some(Vec::<PathBuf>::new()))
            .build();
        let mut elf = Elf::new(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
        elf.debug_syms = false;
        // No address: the file is opened and mapped, and stays so.
        let mapped = symbolizer.symbolize(&Source::Elf(elf.clone()), Input::VirtOffset(&[]));
        mapped.map_err(io::Error::other)?;
        elf.debug_syms = debug;
        Ok(Self {
            symbolizer,
            source: Source::Elf(elf),
        })
    }

    /// Tries one look-up, at which blazesym reads the headers.
    fn try_headers(&self, image: &Image) -> bool {
        image
            .segments
            .first()
            .is_some_and(|segment| self.look_up(segment.address).is_some())
    }

    /// The frames at a virtual address, innermost first; none where no symbol covers it. `None` if blazesym fails or
    /// panics.
    fn look_up(&self, address: u64) -> Option<Vec<Named>> {
        let looked_up = catch_unwind(AssertUnwindSafe(|| {
            let input = Input::VirtOffset(address);
            let symbolized = self.symbolizer.symbolize_single(&self.source, input).ok()?;
            Some(symbolized.as_sym().map_or_else(Vec::new, frames_of))
        }));
        looked_up.ok().flatten()
    }
}

/// blazesym lists inlined functions outermost first, and the function that holds them apart.
fn frames_of(symbol: &Sym<'_>) -> Vec<Named> {
    let inlined = symbol.inlined.iter().rev().take(INLINED_MAX - 1);
    let mut frames: Vec<Named> = inlined
        .map(|function| named(&function.name, function.code_info.as_ref(), true))
        .collect();
    frames.push(named(&symbol.name, symbol.code_info.as_deref(), false));
    frames
}

fn named(name: &str, code: Option<&CodeInfo<'_>>, inlined: bool) -> Named {
    Named {
        function: (!name.is_empty()).then(|| names::demangle(name)),
        file: code.map(|code| names::cut(&code.to_path().to_string_lossy())),
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
        inlined,
    }
}

/// Bytes of debug information once decompressed, or `None` where they exceed `max` or can't be known.
fn debug_bytes(image: &Image, file: &File, max: u64) -> Option<u64> {
    let mut total = image.debug_bytes;
    for section in &image.compressed {
        if !section.debug || total > max {
            return None;
        }
        total = total.checked_add(decompressed_bytes(section, file, max - total)?)?;
    }
    (total <= max).then_some(total)
}

/// Decompresses a section to nowhere, since its header may lie about its size. `None` where it is larger than `max`.
fn decompressed_bytes(section: &CompressedSection, file: &File, max: u64) -> Option<u64> {
    let mut file = SharedFile::new(file);
    let mut header = [0; COMPRESSION_HEADER_BYTES as usize];
    file.seek(SeekFrom::Start(section.file_offset)).ok()?;
    file.read_exact(&mut header).ok()?;
    let (method, rest) = header.split_first_chunk::<4>()?;
    let claimed = u64::from_le_bytes(rest.get(4..12)?.try_into().ok()?);
    // blazesym allocates what is claimed.
    if *method != ELFCOMPRESS_ZLIB || claimed > max {
        return None;
    }
    let data = file.take(section.size.checked_sub(COMPRESSION_HEADER_BYTES)?);
    let mut decoder = flate2::read::ZlibDecoder::new(data).take(max.checked_add(1)?);
    let size = io::copy(&mut decoder, &mut io::sink()).ok()?;
    (size <= max).then_some(size)
}

#[cfg(test)]
mod tests;
