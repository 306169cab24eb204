//! Offsets of members in the running kernel's structures, from its BTF.
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: byte offsets. Only named structures and their direct members are
//! looked up. The format is `Documentation/bpf/btf.rst` of the kernel.

use std::path::Path;

/// Where the running kernel shows its type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Bytes of BTF that are read at most; a distribution kernel's are about 6 MiB.
const BYTES_MAX: u64 = 64 << 20;

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;

/// Kinds that this reader must know the length of (`BTF_KIND_*`).
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Why an offset can't be known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel shows no BTF.
    #[error("{VMLINUX}: {0}: leakmon needs a kernel built with CONFIG_DEBUG_INFO_BTF")]
    Read(#[from] std::io::Error),
    /// The bytes are not BTF as this reader knows it.
    #[error("{VMLINUX} is not type information that leakmon understands: {0}")]
    Malformed(&'static str),
    /// The kernel has no such member.
    #[error("this kernel has no `{structure}.{member}`: leakmon does not know its layout")]
    Missing {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the member.
        member: &'static str,
    },
}

/// Where the programs find what they need of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `task_struct.tgid`.
    pub task_tgid: u64,
    /// `task_struct.signal`.
    pub task_signal: u64,
    /// `task_struct.pid`, the thread's number.
    pub task_pid: u64,
    /// `signal_struct.live`, an `atomic_t`.
    pub signal_live: u64,
    /// `signal_struct.flags`.
    pub signal_flags: u64,
    /// `signal_struct.group_exec_task` (`group_exit_task` before Linux 5.17).
    pub signal_exec: u64,
}

impl KernelOffsets {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// [`BtfError`] where the kernel shows no BTF or lacks a member.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        Self::from_bytes(&read(Path::new(VMLINUX))?)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, BtfError> {
        let btf = Btf::parse(bytes)?;
        Ok(Self {
            task_tgid: btf.offset("task_struct", "tgid")?,
            task_signal: btf.offset("task_struct", "signal")?,
            task_pid: btf.offset("task_struct", "pid")?,
            signal_live: btf.offset("signal_struct", "live")?,
            signal_flags: btf.offset("signal_struct", "flags")?,
            signal_exec: btf
                .offset("signal_struct", "group_exec_task")
                .or_else(|_| btf.offset("signal_struct", "group_exit_task"))?,
        })
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The two sections of a BTF blob.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at: usize| u32_at(bytes, at).ok_or(BtfError::Malformed("the header is cut off"));
        let magic = bytes
            .get(..2)
            .and_then(|magic| Some(u16::from_le_bytes(magic.try_into().ok()?)));
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed("the magic number is wrong"));
        }
        let header_len = word(4)? as usize;
        if header_len < HEADER_LEN {
            return Err(BtfError::Malformed("the header is too short"));
        }
        let section = |offset: u32, len: u32| {
            let start = header_len.checked_add(offset as usize)?;
            bytes.get(start..start.checked_add(len as usize)?)
        };
        let cut_off = BtfError::Malformed("a section is cut off");
        let types = section(word(8)?, word(12)?);
        let strings = section(word(16)?, word(20)?);
        match (types, strings) {
            (Some(types), Some(strings)) => Ok(Self { types, strings }),
            _ => Err(cut_off),
        }
    }

    /// Byte offset of a direct member of a named structure.
    fn offset(&self, structure: &'static str, member: &'static str) -> Result<u64, BtfError> {
        let mut at = 0;
        while let Some(record) = self.record(at) {
            at += record.len;
            if record.kind != KIND_STRUCT || !self.is_named(record.name, structure) {
                continue;
            }
            if let Some(offset) = self.member(&record, member) {
                return Ok(offset);
            }
        }
        Err(BtfError::Missing { structure, member })
    }

    fn record(&self, at: usize) -> Option<Record<'a>> {
        let name = u32_at(self.types, at)?;
        let info = u32_at(self.types, at + 4)?;
        let kind = info >> 24 & 0x1f;
        let members_len = (info & 0xffff) as usize;
        let tail_len = match kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => members_len * 12,
            KIND_ENUM | KIND_FUNC_PROTO => members_len * 8,
            _ => 0,
        };
        let tail = self.types.get(at + 12..at + 12 + tail_len)?;
        Some(Record {
            name,
            kind,
            has_bit_fields: info >> 31 != 0,
            tail,
            len: 12 + tail_len,
        })
    }

    fn member(&self, record: &Record<'_>, member: &str) -> Option<u64> {
        record.tail.chunks_exact(12).find_map(|entry| {
            let offset_bits = u32_at(entry, 8)?;
            // With bit fields the upper eight bits are the field's size.
            let offset_bits = if record.has_bit_fields {
                offset_bits & 0x00ff_ffff
            } else {
                offset_bits
            };
            self.is_named(u32_at(entry, 0)?, member)
                .then(|| u64::from(offset_bits / 8))
        })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        self.strings
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

struct Record<'a> {
    name: u32,
    kind: u32,
    has_bit_fields: bool,
    tail: &'a [u8],
    len: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Names in the string section of [`sample`], with their offsets.
    const STRINGS: &[u8] = b"\0task_struct\0tgid\0signal\0signal_struct\0live\0int\0pid\0flags\0group_exec_task\0";

    fn name(wanted: &str) -> u32 {
        let quoted = format!("\0{wanted}\0");
        let at = STRINGS
            .windows(quoted.len())
            .position(|window| window == quoted.as_bytes())
            .unwrap();
        at as u32 + 1
    }

    fn structure(name_at: u32, has_bit_fields: bool, members: &[(u32, u32)]) -> Vec<u32> {
        let mut words = vec![
            name_at,
            KIND_STRUCT << 24 | u32::from(has_bit_fields) << 31 | members.len() as u32,
            64,
        ];
        for (member, offset_bits) in members {
            words.extend([*member, 1, *offset_bits]);
        }
        words
    }

    fn sample() -> Vec<u8> {
        let mut words = vec![name("int"), KIND_INT << 24, 4, 0];
        // A bit field's size is in the upper byte, and must not end up in the offset.
        words.extend(structure(
            name("task_struct"),
            true,
            &[
                (name("tgid"), 0x0100_0000 | 320),
                (name("signal"), 640),
                (name("pid"), 288),
            ],
        ));
        words.extend(structure(
            name("signal_struct"),
            false,
            &[(name("live"), 64), (name("flags"), 800), (name("group_exec_task"), 832)],
        ));
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [
            HEADER_LEN as u32,
            0,
            types.len() as u32,
            types.len() as u32,
            STRINGS.len() as u32,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(STRINGS);
        bytes
    }

    #[test]
    fn members_are_found() {
        let offsets = KernelOffsets::from_bytes(&sample()).unwrap();
        assert_eq!(
            offsets,
            KernelOffsets {
                task_tgid: 40,
                task_signal: 80,
                task_pid: 36,
                signal_live: 8,
                signal_flags: 100,
                signal_exec: 104,
            }
        );
    }

    #[test]
    fn a_missing_member_is_named() {
        let bytes: Vec<u8> = String::from_utf8(sample()).map_or_else(
            |error| {
                let mut bytes = error.into_bytes();
                let at = bytes.windows(4).position(|window| window == b"live").unwrap();
                bytes[at] = b'x';
                bytes
            },
            String::into_bytes,
        );
        let error = KernelOffsets::from_bytes(&bytes).unwrap_err();
        assert!(error.to_string().contains("`signal_struct.live`"), "{error}");
    }

    #[test]
    fn the_running_kernel_is_understood_where_it_shows_its_types() {
        if Path::new(VMLINUX).exists() {
            let offsets = KernelOffsets::of_running_kernel().unwrap();
            assert!(
                offsets.task_tgid > 0 && offsets.task_signal > 0 && offsets.signal_live > 0,
                "{offsets:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn broken_bytes_never_panic(at in 0..200_usize, value: u8, len in 0..200_usize) {
            let mut bytes = sample();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(len);
            let _any = KernelOffsets::from_bytes(&bytes);
        }
    }
}
