//! Offsets in images to functions, files and lines, with a bounded memory of what was resolved.
//!
//! In: places of addresses ([`super::address_space::Place`]). Out: [`ResolvedFrame`]s, inlined functions before the
//! function they were inlined into. It blocks and reads files, so it runs on the thread of [`super::service`] only.
//!
//! blazesym reads the files by the path of a descriptor held open, `/proc/self/fd/N`. It trusts what it reads: sizes
//! are checked here before it sees a file, and a panic inside costs that image its names.

use super::address_space::Place;
use super::image::{CompressedSection, Image, ImageFile, ImageKey};
use super::names;
use super::nesting::Tree;
use super::recency::RecencyTable;
use crate::symbols::ResolvedFrame;
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// Addresses whose names are remembered, unless configured otherwise.
pub const CACHE_ENTRIES_MAX: usize = 65_536;
/// Bytes of text in them.
pub const CACHE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of debug information, of all images that are parsed at once, and so of one image: beyond it only the symbol
/// table is used. A dev build with 135 MB of it cost 202 MB at 2,000 lookups spread over the whole image, and 165 MB
/// at the first 100: 70 MB of its own, the rest pages of the file. So this much stays below 250 MB. The symbol table
/// cost 10 MB.
pub const DEBUG_BYTES_MAX: u64 = 160 << 20;
/// Bytes of an image's symbol tables: blazesym keeps 8 bytes for each symbol of 24. An 839 MB binary has some 50 MB.
const SYMBOL_BYTES_MAX: u64 = 128 << 20;
/// Images that stay parsed.
const PARSED_IMAGES_MAX: usize = 16;
/// Bytes of debug information of an image that stays parsed while there is nothing to do. It takes 15 ms and more to
/// parse a larger one again.
const IDLE_BYTES_MAX: u64 = 16 << 20;
/// Frames at one address: the innermost inlined ones and the function itself.
const INLINED_MAX: usize = 64;
/// Weight of an entry besides its text.
const ENTRY_BYTES: u64 = 200;
/// `ELFCOMPRESS_ZLIB`; blazesym is built without the others.
const ELFCOMPRESS_ZLIB: [u8; 4] = [1, 0, 0, 0];
/// Bytes of `Elf64_Chdr`.
const COMPRESSION_HEADER_BYTES: u64 = 24;

/// Bounds of a [`Resolver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`CACHE_ENTRIES_MAX`].
    pub cache_entries: usize,
    /// See [`CACHE_BYTES_MAX`].
    pub cache_bytes: u64,
    /// See [`DEBUG_BYTES_MAX`].
    pub debug_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cache_entries: CACHE_ENTRIES_MAX,
            cache_bytes: CACHE_BYTES_MAX,
            debug_bytes: DEBUG_BYTES_MAX,
        }
    }
}

/// One address of a stack.
#[derive(Clone, Debug)]
pub struct RawFrame {
    /// Where it lies.
    pub place: Place,
    /// Whether the instruction there was about to run (the probe site itself, a frame that a signal interrupted), or
    /// is the one after a call, which may belong to the next function already.
    pub exact: bool,
}

/// What the resolver counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResolverCounts {
    /// Addresses answered from memory.
    pub cached: u64,
    /// Addresses looked up in a file.
    pub looked_up: u64,
    /// Remembered addresses given up to keep the bounds.
    pub evicted: u64,
    /// Images whose debug information was refused or unreadable, and that had to do with their symbol table.
    pub without_debug: u64,
    /// Images that could not be symbolised at all.
    pub unreadable: u64,
}

/// Resolves stacks. Not `Send`: it is made on the thread that uses it.
#[derive(Debug)]
pub struct Resolver {
    cache: RecencyTable<(ImageKey, u64, bool), Arc<[ResolvedFrame]>>,
    /// `None` for images that can't be symbolised.
    parsed: RecencyTable<ImageKey, Option<Rc<ParsedImage>>>,
    debug_bytes_max: u64,
    counts: ResolverCounts,
}

/// A symbolizer for one image alone, so that forgetting the image frees all that was parsed of it.
#[derive(Debug)]
struct ParsedImage {
    symbolizer: Symbolizer,
    source: Source<'static>,
    /// Whether it uses debug information.
    debug: bool,
    /// Keeps the descriptor in the source's path valid.
    _file: Arc<ImageFile>,
}

impl Resolver {
    /// A resolver that has seen nothing.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            cache: RecencyTable::new(limits.cache_entries, limits.cache_bytes),
            parsed: RecencyTable::new(PARSED_IMAGES_MAX, limits.debug_bytes),
            debug_bytes_max: limits.debug_bytes,
            counts: ResolverCounts::default(),
        }
    }

    /// Resolves a stack, innermost frame first. Each address gives at least one frame.
    pub fn resolve(&mut self, stack: &[RawFrame]) -> Vec<ResolvedFrame> {
        let mut frames = Vec::with_capacity(stack.len());
        for raw in stack {
            frames.extend_from_slice(&self.resolve_place(raw));
        }
        frames
    }

    /// Gives back the memory of large images. To be called when there is nothing to resolve for now.
    pub fn rest(&mut self) {
        self.parsed.remove_heavier(IDLE_BYTES_MAX);
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> ResolverCounts {
        ResolverCounts {
            evicted: self.cache.evicted(),
            ..self.counts
        }
    }

    fn resolve_place(&mut self, raw: &RawFrame) -> Arc<[ResolvedFrame]> {
        let (image, file, offset) = match &raw.place {
            Place::Image { image, file, offset } => (image, file, *offset),
            Place::Region { name, offset } => return Arc::new([nameless(Some(name), None, *offset)]),
            Place::Nowhere { address } => return Arc::new([nameless(None, None, *address)]),
        };
        let key = (image.key, offset, raw.exact);
        if let Some(frames) = self.cache.get(&key) {
            self.counts.cached += 1;
            return Arc::clone(frames);
        }
        let bare = nameless(Some(&image.name), image.build_id.as_ref(), offset);
        let Some(file) = file else {
            return Arc::new([bare]);
        };
        self.counts.looked_up += 1;
        let lookup = if raw.exact { offset } else { offset.saturating_sub(1) };
        let found = match image.address_of(lookup) {
            Some(address) => self.look_up(file, address, &bare),
            None => Vec::new(),
        };
        let frames: Arc<[ResolvedFrame]> = if found.is_empty() {
            Arc::new([bare])
        } else {
            found.into()
        };
        self.cache.insert(key, Arc::clone(&frames), weight(&frames));
        frames
    }

    /// Looks an address up in the image's debug information, or in its symbol table if blazesym fails at the former.
    fn look_up(&mut self, file: &Arc<ImageFile>, address: u64, bare: &ResolvedFrame) -> Vec<ResolvedFrame> {
        // At most twice: with debug information, and without.
        for _ in 0..2 {
            let Some(parsed) = self.parse(file) else { break };
            if let Some(frames) = parsed.look_up(address, bare) {
                return frames;
            }
            let next = if parsed.debug { self.open_symbols(file) } else { None };
            self.counts.without_debug += u64::from(next.is_some());
            self.counts.unreadable += u64::from(!parsed.debug);
            self.parsed.insert(file.image.key, next, 0);
        }
        Vec::new()
    }

    /// The symbolizer of an image, made if need be.
    fn parse(&mut self, file: &Arc<ImageFile>) -> Option<Rc<ParsedImage>> {
        let key = file.image.key;
        if let Some(parsed) = self.parsed.get(&key) {
            return parsed.clone();
        }
        let (parsed, debug_bytes) = self.open(file);
        self.parsed.insert(key, parsed.clone(), debug_bytes);
        parsed
    }

    /// Opens an image with its debug information, or its debug file's, and with its symbol table alone where that is
    /// too large or unreadable. Also says how many bytes of debug information are in use.
    fn open(&mut self, file: &Arc<ImageFile>) -> (Option<Rc<ParsedImage>>, u64) {
        let own = (&*file.image, &file.file);
        let separate = file.debug.as_ref().map(|(image, file)| (image, file));
        let mut refused = false;
        // An image that carries both debug information and a link is not given with debug information: blazesym would
        // follow the link by the path on this host, whoever's file is there, and wait for a FIFO.
        for (image, data) in separate.into_iter().chain([own]).filter(|(image, _)| !image.linked) {
            let Some(debug_bytes) = debug_bytes(image, data, self.debug_bytes_max).filter(|bytes| *bytes > 0) else {
                refused |= image.debug_bytes > 0;
                continue;
            };
            if let Some(parsed) = ParsedImage::open(file, data, image, true) {
                return (Some(parsed), debug_bytes);
            }
            refused = true;
        }
        self.counts.without_debug += u64::from(refused);
        (self.open_symbols(file), 0)
    }

    /// Opens an image's symbol table alone.
    fn open_symbols(&mut self, file: &Arc<ImageFile>) -> Option<Rc<ParsedImage>> {
        // blazesym would unpack a compressed symbol table, whatever its size.
        let harmless = file.image.compressed.iter().all(|section| section.debug);
        let parsed = match harmless {
            true => ParsedImage::open(file, &file.file, &file.image, false),
            false => None,
        };
        self.counts.unreadable += u64::from(parsed.is_none());
        parsed
    }
}

impl ParsedImage {
    /// Opens `data`, a file that `file` holds open, and tries one lookup, by which blazesym reads the headers.
    fn open(file: &Arc<ImageFile>, data: &File, image: &Image, debug: bool) -> Option<Rc<Self>> {
        if !image.sections_known || image.symbol_bytes > SYMBOL_BYTES_MAX {
            return None;
        }
        let tree = if debug { Tree::of(image, data) } else { Tree::Deep };
        if tree == Tree::Costly {
            return None;
        }
        let mut elf = Elf::new(PathBuf::from(format!("/proc/self/fd/{}", data.as_raw_fd())));
        elf.debug_syms = debug;
        let parsed = Self {
            // Demangling is done by `names`, within bounds; debug files are found by `debug_file`, in the process's
            // root.
            symbolizer: Symbolizer::builder()
                .enable_auto_reload(false)
                .enable_code_info(debug)
                .enable_inlined_fns(tree == Tree::Shallow)
                .enable_demangling(false)
                .set_debug_dirs(Some(Vec::<PathBuf>::new()))
                .build(),
            source: Source::Elf(elf),
            debug,
            _file: Arc::clone(file),
        };
        let first = Input::VirtOffset(image.segments.first()?.address);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            parsed.symbolizer.symbolize_single(&parsed.source, first).is_ok()
        }));
        matches!(tried, Ok(true)).then(|| Rc::new(parsed))
    }

    /// The frames at a virtual address, innermost first; none where no symbol covers it. `None` if blazesym fails or
    /// panics.
    fn look_up(&self, address: u64, bare: &ResolvedFrame) -> Option<Vec<ResolvedFrame>> {
        let looked_up = catch_unwind(AssertUnwindSafe(|| {
            let input = Input::VirtOffset(address);
            let symbolized = self.symbolizer.symbolize_single(&self.source, input).ok()?;
            Some(
                symbolized
                    .as_sym()
                    .map_or_else(Vec::new, |symbol| frames_of(symbol, bare)),
            )
        }));
        looked_up.ok().flatten()
    }
}

/// blazesym lists inlined functions outermost first, and the function that holds them apart.
fn frames_of(symbol: &Sym<'_>, bare: &ResolvedFrame) -> Vec<ResolvedFrame> {
    let inlined = symbol.inlined.iter().rev().take(INLINED_MAX - 1);
    let mut frames: Vec<ResolvedFrame> = inlined
        .map(|function| ResolvedFrame {
            inlined: true,
            ..named(&function.name, function.code_info.as_ref(), bare)
        })
        .collect();
    frames.push(named(&symbol.name, symbol.code_info.as_deref(), bare));
    frames
}

fn named(name: &str, code: Option<&CodeInfo<'_>>, bare: &ResolvedFrame) -> ResolvedFrame {
    ResolvedFrame {
        function: (!name.is_empty()).then(|| names::demangle(name)),
        file: code.map(|code| names::cut(&code.to_path().to_string_lossy())),
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
        ..bare.clone()
    }
}

fn nameless(image: Option<&Arc<str>>, build_id: Option<&Arc<str>>, offset: u64) -> ResolvedFrame {
    ResolvedFrame {
        image: image.cloned(),
        build_id: build_id.cloned(),
        offset,
        ..ResolvedFrame::default()
    }
}

fn weight(frames: &[ResolvedFrame]) -> u64 {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len) as u64;
    frames
        .iter()
        .map(|frame| ENTRY_BYTES + text(&frame.function) + text(&frame.file))
        .sum()
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
fn decompressed_bytes(section: &CompressedSection, mut file: &File, max: u64) -> Option<u64> {
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
