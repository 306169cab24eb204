//! Offsets in images to functions, files and lines, with a bounded memory of what was resolved.
//!
//! In: places of addresses ([`super::address_space::Place`]). Out: [`ResolvedFrame`]s, inlined functions before the
//! function they were inlined into. It reads no file: each image has a confined child of its own ([`super::naming`]), which is
//! asked for an address that is not remembered, and whose answers are checked. It blocks, so it runs on the thread of
//! [`super::service`] only.

use super::address_space::Place;
use super::image::{ImageFile, ImageKey};
use super::names;
use super::naming::{Answer, BY_DEBUG_INFORMATION, BY_SYMBOL_TABLE, INLINED_MAX, Named, Question};
use super::recency::RecencyTable;
use crate::analysis::{Analyst, Child, Failure};
use crate::symbols::ResolvedFrame;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses whose names are remembered, unless configured otherwise.
pub const CACHE_ENTRIES_MAX: usize = 65_536;
/// Bytes of text in them.
pub const CACHE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of debug information, of all images that are parsed at once, and so of one image: beyond it only the symbol
/// table is used. A dev build with 135 MB of it cost 202 MB at 2,000 lookups spread over the whole image, and 165 MB
/// at the first 100: 70 MB of its own, the rest pages of the file. So this much stays below 250 MB. The symbol table
/// cost 10 MB.
pub const DEBUG_BYTES_MAX: u64 = 160 << 20;
/// A child that has been waited for so long, all its answers together, is dismissed: its processor time is limited.
const RETIRED_AFTER: Duration = Duration::from_secs(30);
/// Images that stay parsed, each by a child.
const PARSED_IMAGES_MAX: usize = 16;
/// Bytes of debug information of an image that stays parsed while there is nothing to do. It takes 15 ms and more to
/// parse a larger one again.
const IDLE_BYTES_MAX: u64 = 16 << 20;
/// Weight of an entry besides its text.
const ENTRY_BYTES: u64 = 200;

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
    namings: RecencyTable<ImageKey, Naming>,
    analyst: Analyst,
    debug_bytes_max: u64,
    counts: ResolverCounts,
}

/// How an image is named.
#[derive(Debug)]
enum Naming {
    /// By a child, with its debug information or without.
    Child {
        child: Child,
        debug: bool,
        waited: Duration,
    },
    /// Not at all.
    Impossible,
}

impl Resolver {
    /// A resolver that has seen nothing, and that has files read by `analyst`.
    #[must_use]
    pub fn new(limits: Limits, analyst: Analyst) -> Self {
        Self {
            cache: RecencyTable::new(limits.cache_entries, limits.cache_bytes),
            namings: RecencyTable::new(PARSED_IMAGES_MAX, limits.debug_bytes),
            analyst,
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
        self.namings.remove_heavier(IDLE_BYTES_MAX);
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

    /// Has an address looked up in the image's debug information, or in its symbol table where the former can't be used.
    fn look_up(&mut self, file: &ImageFile, address: u64, bare: &ResolvedFrame) -> Vec<ResolvedFrame> {
        let key = file.image.key;
        let question = Question {
            address,
            debug_bytes_max: self.debug_bytes_max,
        };
        let mut next = self.namings.remove(&key).unwrap_or_else(|| self.begin(file));
        loop {
            let Naming::Child {
                mut child,
                debug,
                waited,
            } = next
            else {
                self.namings.insert(key, Naming::Impossible, 0);
                return Vec::new();
            };
            let began = Instant::now();
            let failure = match child.ask(&question) {
                Ok(Answer::Named { frames, debug_bytes }) if is_credible(&frames) => {
                    let waited = waited + began.elapsed();
                    // A new one is asked next, if there is anything more to ask.
                    if waited < RETIRED_AFTER {
                        self.namings
                            .insert(key, Naming::Child { child, debug, waited }, debug_bytes);
                    }
                    return frames.into_iter().map(|frame| shown(frame, bare)).collect();
                }
                Ok(Answer::Named { .. }) => Some(child.disbelieve()),
                Ok(Answer::Unusable) => None,
                Err(failure) => Some(failure),
            };
            next = self.fall_back(file, debug, failure.as_ref());
        }
    }

    /// The first way to name an image.
    fn begin(&mut self, file: &ImageFile) -> Naming {
        if file.image.debug_bytes == 0 && file.debug.is_none() {
            return self.begin_symbols(file);
        }
        let files: Vec<&File> = [Some(&file.file), file.debug.as_ref().map(|(_, file)| file)]
            .into_iter()
            .flatten()
            .collect();
        match self.analyst.child(&BY_DEBUG_INFORMATION, &files) {
            Ok(child) => Naming::Child {
                child,
                debug: true,
                waited: Duration::ZERO,
            },
            Err(failure) => self.fall_back(file, true, Some(&failure)),
        }
    }

    fn begin_symbols(&mut self, file: &ImageFile) -> Naming {
        match self.analyst.child(&BY_SYMBOL_TABLE, &[&file.file]) {
            Ok(child) => Naming::Child {
                child,
                debug: false,
                waited: Duration::ZERO,
            },
            Err(failure) => self.fall_back(file, false, Some(&failure)),
        }
    }

    /// What to do with an image that could not be named with its debug information, or not without it either.
    fn fall_back(&mut self, file: &ImageFile, debug: bool, failure: Option<&Failure>) -> Naming {
        let name = &file.image.name;
        if debug {
            self.counts.without_debug += 1;
            if let Some(failure) = failure {
                tracing::warn!("{name:?}: {failure}: its frames are shown without lines");
            }
            return self.begin_symbols(file);
        }
        self.counts.unreadable += 1;
        if let Some(failure) = failure {
            tracing::warn!("{name:?}: {failure}: its frames are shown by image and offset");
        }
        Naming::Impossible
    }
}

/// Whether an answer is one that an honest child gives.
fn is_credible(frames: &[Named]) -> bool {
    let is_short = |text: &Option<String>| {
        text.as_ref()
            .is_none_or(|text| text.chars().nth(names::NAME_CHARS_MAX).is_none())
    };
    frames.len() <= INLINED_MAX
        && frames
            .iter()
            .all(|frame| is_short(&frame.function) && is_short(&frame.file))
}

fn shown(frame: Named, bare: &ResolvedFrame) -> ResolvedFrame {
    ResolvedFrame {
        function: frame.function,
        file: frame.file,
        line: frame.line,
        inlined: frame.inlined,
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

#[cfg(test)]
mod tests;
