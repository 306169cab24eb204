//! The BPF object that this leakmon was built with.
//!
//! In: what `build.rs` embedded. Out: the object's bytes, aligned for the ELF parser, or the reason why there are none to
//! trust. It loads nothing.

include!(concat!(env!("OUT_DIR"), "/bpf_object.rs"));

/// Why there is no object to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// There was none when leakmon was built.
    #[error("this leakmon was built without its BPF programs: run `cargo xtask build-ebpf` and build leakmon again")]
    Absent,
    /// The one that there was came from other sources, so the contract between the two sides may differ.
    #[error(
        "this leakmon's BPF programs are older than its sources: run `cargo xtask build-ebpf` and build leakmon again"
    )]
    Stale,
}

/// The BPF object, an ELF file, aligned to 8 bytes.
///
/// # Errors
/// [`ObjectError`] where the object is absent or was built from other sources than this leakmon.
pub fn embedded() -> Result<&'static [u8], ObjectError> {
    choose(OBJECT, BUILT_FROM, SOURCES)
}

/// What the object was built from.
pub(super) const fn hash() -> Option<&'static str> {
    BUILT_FROM
}

fn choose<'a>(
    object: Option<&'a [u8]>,
    built_from: Option<&str>,
    sources: Option<&str>,
) -> Result<&'a [u8], ObjectError> {
    let object = object.ok_or(ObjectError::Absent)?;
    match (built_from, sources) {
        (Some(built_from), Some(sources)) if built_from == sources => Ok(object),
        _ => Err(ObjectError::Stale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_from_these_sources_is_used() {
        let object: &[u8] = b"\x7fELF";
        for (object, built_from, sources, expected) in [
            (None, None, Some("1"), Err(ObjectError::Absent)),
            (None, Some("1"), Some("1"), Err(ObjectError::Absent)),
            (Some(object), Some("1"), Some("1"), Ok(object)),
            (Some(object), Some("1"), Some("2"), Err(ObjectError::Stale)),
            (Some(object), None, Some("2"), Err(ObjectError::Stale)),
            (Some(object), Some("1"), None, Err(ObjectError::Stale)),
            (Some(object), None, None, Err(ObjectError::Stale)),
        ] {
            assert_eq!(choose(object, built_from, sources), expected);
        }
    }

    #[test]
    fn the_errors_say_what_to_do() {
        for error in [ObjectError::Absent, ObjectError::Stale] {
            assert!(error.to_string().contains("`cargo xtask build-ebpf`"), "{error}");
        }
    }

    #[test]
    fn an_embedded_object_is_an_aligned_elf_file() {
        if let Some(object) = OBJECT {
            assert_eq!(object.as_ptr().align_offset(8), 0);
            assert_eq!(object.get(..4), Some(&b"\x7fELF"[..]));
        }
    }
}
