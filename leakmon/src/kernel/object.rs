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
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

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

    #[test]
    fn no_program_of_a_probe_is_given_a_stack_that_it_would_share() {
        // An instruction has eight bytes: opcode, two registers, offset, immediate (Documentation/bpf/standardization).
        const FRAME_POINTER: u8 = 10;
        let uses_stack = |bytes: &[u8]| bytes[1] >> 4 == FRAME_POINTER || bytes[1] & 15 == FRAME_POINTER;
        // `BPF_JMP | BPF_CALL` of helper 12, `bpf_tail_call` (include/uapi/linux/bpf.h).
        let calls_tail = |bytes: &[u8]| bytes[0] == 0x85 && bytes[1] == 0 && bytes[4..] == 12_u32.to_le_bytes();
        let Some(object) = OBJECT else {
            return;
        };
        let file = object::File::parse(object).unwrap();
        let section = file.section_by_name("uprobe").unwrap();
        let code = section.data().unwrap();
        let mut with_stack = Vec::new();
        for program in file
            .symbols()
            .filter(|symbol| symbol.section_index() == Some(section.index()))
        {
            let (start, size) = (program.address() as usize, program.size() as usize);
            let instructions = || code[start..start + size].chunks_exact(8);
            if instructions().any(uses_stack) {
                let name = program.name().unwrap();
                assert!(
                    instructions().any(calls_tail),
                    "{name}: see leakmon-ebpf/src/private_stack.rs"
                );
                with_stack.push(name);
            }
        }
        with_stack.sort_unstable();
        assert_eq!(with_stack, ["process_entry", "task_birth", "task_end"]);
    }
}
