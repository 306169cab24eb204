//! Addresses to names: a stack of addresses goes in, what a person calls them comes out.
//!
//! In: addresses of a target, and the files that it maps ([`address_space`]). Out: [`ResolvedFrame`]s ([`resolver`]),
//! the frame that is the location ([`hidden`]), the callsite's id ([`callsite`]), task types as they are shown
//! ([`names`]). It counts nothing and prints nothing. Names come from the target: they are bounded here and escaped
//! by `export`.
//!
//! ```text
//! address ──address_space──▶ (image, offset) ──service──▶ resolver ──▶ frames ──hidden──▶ location ──callsite──▶ id
//! ```

pub mod address_space;
pub mod callsite;
pub mod debug_file;
pub mod hidden;
pub mod image;
pub mod names;
pub mod naming;
pub mod nesting;
pub mod recency;
pub mod resolver;
pub mod service;

use std::sync::Arc;

/// One frame of a stack, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedFrame {
    /// Demangled, without hash, at most [`names::NAME_CHARS_MAX`] characters; `None` where no symbol covers the
    /// address.
    pub function: Option<String>,
    /// Source file, where line tables exist.
    pub file: Option<String>,
    /// Line in it, from 1.
    pub line: Option<u32>,
    /// File name of the image; `None` where no mapping is known.
    pub image: Option<Arc<str>>,
    /// Build id of the image, hexadecimal; `None` where it has none.
    pub build_id: Option<Arc<str>>,
    /// Offset in the image's file (of the return address, where it is one), or the bare address where no mapping is
    /// known.
    pub offset: u64,
    /// Inlined into the next frame.
    pub inlined: bool,
}
