//! The id of a callsite: the same for one build on every host, whatever address the loader chose.
//!
//! In: the kind and the frame that is the location. Out: 64 bits, printed as sixteen hexadecimal digits. It groups
//! nothing: `live` does.
//!
//! The id is FNV-1a (64 bits) over: the kind's word, a zero byte, the image's build id in lower-case hexadecimal, a
//! zero byte, the offset in the image's file as eight bytes, least significant first. An image without build id goes
//! by `image:` and its file name instead. Only the offset of the machine instruction is hashed and not the depth of
//! inlining: of the frames that share one address the location is always the same one, and so a host that has the
//! debug file gives the id that a host without it gives, wherever both find the location in the same machine frame.

use crate::symbols::ResolvedFrame;
use std::fmt;

/// FNV-1a, 64 bits: offset basis and prime (RFC 9923).
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Who a callsite is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallsiteId(pub u64);

impl CallsiteId {
    /// The id of kind `kind` (`task`, `local` …) at `location`, see [`crate::symbols::hidden::HideTable::location`].
    #[must_use]
    pub fn new(kind: &str, location: &ResolvedFrame) -> Self {
        let mut hash = BASIS;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
            }
        };
        add(kind.as_bytes());
        add(&[0]);
        match (&location.build_id, &location.image) {
            (Some(build_id), _) => add(build_id.as_bytes()),
            (None, image) => {
                add(b"image:");
                add(image.as_deref().unwrap_or_default().as_bytes());
            }
        }
        add(&[0]);
        add(&location.offset.to_le_bytes());
        Self(hash)
    }
}

impl fmt::Display for CallsiteId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn frame(build_id: Option<&str>, image: Option<&str>, offset: u64) -> ResolvedFrame {
        ResolvedFrame {
            build_id: build_id.map(Into::into),
            image: image.map(Into::into),
            offset,
            ..ResolvedFrame::default()
        }
    }

    #[test]
    fn the_id_is_the_one_that_is_specified() {
        // Computed apart from this code, by FNV-1a over the bytes that the module's text lists.
        for (kind, location, id) in [
            ("task", frame(Some("00ff"), Some("app"), 0x1234), "d4d029488592827a"),
            ("task", frame(None, Some("app"), 0x1234), "a5d4038089e0a00a"),
            ("blocking", frame(None, None, 0), "8ac2e5237c2db2bd"),
        ] {
            assert_eq!(CallsiteId::new(kind, &location).to_string(), id);
        }
    }

    #[test]
    fn names_and_lines_do_not_change_the_id() {
        let bare = frame(Some("ab"), Some("app"), 7);
        let named = ResolvedFrame {
            function: Some("app::main".into()),
            file: Some("src/main.rs".into()),
            line: Some(3),
            image: Some("renamed".into()),
            inlined: true,
            ..bare.clone()
        };
        assert_eq!(CallsiteId::new("task", &bare), CallsiteId::new("task", &named));
    }

    #[test]
    fn kind_build_and_offset_tell_callsites_apart() {
        let mut seen = HashSet::new();
        for kind in ["task", "local", "blocking"] {
            for build_id in [None, Some(""), Some("ab"), Some("abcd")] {
                for offset in [0, 1, 0x100, 0x1000, u64::MAX] {
                    assert!(seen.insert(CallsiteId::new(kind, &frame(build_id, Some("app"), offset))));
                }
            }
        }
    }
}
