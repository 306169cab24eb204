//! What symbolising needs to know of an ELF file: who it is, where its segments lie, what debug information it has.
//!
//! In: an open file. Out: plain data ([`Image`]) and the file itself ([`ImageFile`]). Only headers, notes and small
//! sections are read, each within a bound; the file is a target's and may say anything.
//!
//! Layouts: System V ABI, chapters 4 and 5 (`Elf64_Ehdr`, `Elf64_Phdr`, `Elf64_Shdr`, `Elf64_Chdr`, notes).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Program headers that are read; real images have about a dozen.
const SEGMENTS_MAX: usize = 256;
/// Section headers that are read; real images have about forty, those with `-ffunction-sections` objects none.
const SECTIONS_MAX: usize = 4_096;
/// Bytes of section names and of a note segment that are read.
const SMALL_BYTES_MAX: u64 = 1 << 16;
/// Bytes of a build id that are kept: linkers write 8 to 20, a user may choose any.
const BUILD_ID_BYTES_MAX: usize = 64;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const SECTION_BYTES: usize = 64;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHF_COMPRESSED: u64 = 1 << 11;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_DYNSYM: u32 = 11;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const NT_GNU_BUILD_ID: u32 = 3;

/// Sections of the tree of debug information (DWARF 5, sections 7.5 and 7.28, and 7.25 of DWARF 4).
pub const TREE: [&[u8]; 4] = [b".debug_info", b".debug_abbrev", b".debug_ranges", b".debug_rnglists"];

/// Which version of which file an image is. An inode can't be used again while the file is held open, and a file
/// rewritten in place has another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_size`.
    pub size: u64,
    /// `st_mtime` in nanoseconds.
    pub modified_ns: i64,
}

impl ImageKey {
    /// The key of an open file.
    ///
    /// # Errors
    /// `fstat` fails.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: metadata
                .mtime()
                .wrapping_mul(1_000_000_000)
                .wrapping_add(metadata.mtime_nsec()),
        })
    }
}

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub size: u64,
    /// Virtual address of the first byte.
    pub address: u64,
}

/// A section that is stored compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedSection {
    /// Whether its name begins with `.debug_`.
    pub debug: bool,
    /// Offset in the file of the header `Elf64_Chdr`.
    pub file_offset: u64,
    /// Bytes in the file, header included.
    pub size: u64,
}

/// Facts of an image. Plain data: it keeps no file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Which file it is.
    pub key: ImageKey,
    /// File name, shown to users. Untrusted.
    pub name: Arc<str>,
    /// Path in the root of the process that mapped it. Untrusted.
    pub path: PathBuf,
    /// Build id, lower-case hexadecimal; `None` where it has none.
    pub build_id: Option<Arc<str>>,
    /// `PT_LOAD` segments; none where the file is no ELF file of this machine's kind.
    pub segments: Vec<Segment>,
    /// Bytes of its `.debug_*` sections as stored; 0 where it was stripped of them.
    pub debug_bytes: u64,
    /// Compressed sections.
    pub compressed: Vec<CompressedSection>,
    /// Offset and size in the file of each of [`TREE`], 0 where it is absent; `None` where one of them is compressed.
    pub debug_tree: Option<[(u64, u64); 4]>,
    /// File name in `.gnu_debuglink` and the checksum of that file.
    pub debug_link: Option<(String, u32)>,
    /// Whether it names another file to be read with it, in `.gnu_debuglink`, `.gnu_debugaltlink` or `.debug_sup`,
    /// well-formed or not.
    pub linked: bool,
    /// Bytes of its symbol tables.
    pub symbol_bytes: u64,
    /// Bytes of its string tables.
    pub string_bytes: u64,
    /// Whether it is an executable or a library all of whose sections are described here. A file can number or name its
    /// sections such that other readers see some that are not.
    pub sections_known: bool,
}

impl Image {
    /// Reads the facts of `file`. A file that is not a 64-bit little-endian ELF file has no segments.
    ///
    /// # Errors
    /// `fstat` fails. What can't be read of the file's contents is taken as absent.
    pub fn read(file: &File, path: &Path) -> io::Result<Self> {
        let key = ImageKey::of(file)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let mut image = Self {
            key,
            name: super::names::cut(&name).into(),
            path: path.to_path_buf(),
            build_id: None,
            segments: Vec::new(),
            debug_bytes: 0,
            compressed: Vec::new(),
            debug_tree: None,
            debug_link: None,
            linked: false,
            symbol_bytes: 0,
            string_bytes: 0,
            sections_known: false,
        };
        if let Some(header) = bytes(file, 0, HEADER_BYTES as u64)
            // ELFCLASS64, ELFDATA2LSB
            && header.starts_with(b"\x7fELF\x02\x01")
        {
            image.read_segments(file, &header);
            image.sections_known = image.read_sections(file, &header).is_some();
        }
        Ok(image)
    }

    /// Virtual address of a byte of the file.
    #[must_use]
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = file_offset.checked_sub(segment.file_offset)?;
            (within < segment.size).then(|| segment.address.checked_add(within))?
        })
    }

    fn read_segments(&mut self, file: &File, header: &[u8]) -> Option<()> {
        let (offset, size) = (u64_at(header, 32)?, u16_at(header, 54)?);
        let count = usize::from(u16_at(header, 56)?).min(SEGMENTS_MAX);
        let table = bytes(file, offset, (count * SEGMENT_BYTES) as u64)?;
        if usize::from(size) != SEGMENT_BYTES {
            return None;
        }
        for entry in table.chunks_exact(SEGMENT_BYTES) {
            let segment = Segment {
                file_offset: u64_at(entry, 8)?,
                address: u64_at(entry, 16)?,
                size: u64_at(entry, 32)?,
            };
            match u32_at(entry, 0)? {
                PT_LOAD => self.segments.push(segment),
                PT_NOTE if self.build_id.is_none() && segment.size <= SMALL_BYTES_MAX => {
                    self.build_id = bytes(file, segment.file_offset, segment.size)
                        .and_then(|notes| build_id(&notes, u64_at(entry, 48)?));
                }
                _ => {}
            }
        }
        Some(())
    }

    fn read_sections(&mut self, file: &File, header: &[u8]) -> Option<()> {
        let (offset, size) = (u64_at(header, 40)?, u16_at(header, 58)?);
        // 0 and 0xffff say that the real numbers are in the first section header, for more sections than are read.
        let count = Some(usize::from(u16_at(header, 60)?)).filter(|count| (1..=SECTIONS_MAX).contains(count))?;
        let names_index = usize::from(u16_at(header, 62)?);
        let table = bytes(file, offset, (count * SECTION_BYTES) as u64)?;
        if usize::from(size) != SECTION_BYTES {
            return None;
        }
        let entry = table.chunks_exact(SECTION_BYTES).nth(names_index)?;
        let names_bytes = Some(u64_at(entry, 32)?).filter(|size| *size <= SMALL_BYTES_MAX)?;
        let names = bytes(file, u64_at(entry, 24)?, names_bytes)?;
        let mut tree = [None; TREE.len()];
        for entry in table.chunks_exact(SECTION_BYTES) {
            let (kind, flags) = (u32_at(entry, 4)?, u64_at(entry, 8)?);
            let (file_offset, size) = (u64_at(entry, 24)?, u64_at(entry, 32)?);
            let name = text_at(&names, u32_at(entry, 0)?)?;
            let symbols = [SHT_SYMTAB, SHT_DYNSYM].contains(&kind) || name == b".symtab" || name == b".dynsym";
            self.symbol_bytes = self.symbol_bytes.saturating_add(if symbols { size } else { 0 });
            self.string_bytes = self
                .string_bytes
                .saturating_add(if kind == SHT_STRTAB { size } else { 0 });
            self.linked |= [&b".gnu_debuglink"[..], b".gnu_debugaltlink", b".debug_sup"].contains(&name);
            let debug = name.starts_with(b".debug_") || name.starts_with(b".zdebug_");
            // A note of the debugger's scripts is no debug information; it is in stripped images too.
            if debug && kind != SHT_NOBITS && name != b".debug_gdb_scripts" {
                self.debug_bytes = self.debug_bytes.saturating_add(size);
            }
            let plain = flags & SHF_COMPRESSED == 0;
            if !plain {
                self.compressed.push(CompressedSection {
                    debug,
                    file_offset,
                    size,
                });
            }
            let part = TREE.iter().position(|part| *part == name);
            // Of two, another reader may take the other.
            if part.is_some_and(|part| tree[part].replace(plain.then_some((file_offset, size))).is_some()) {
                return None;
            }
            if name == b".gnu_debuglink" && size <= SMALL_BYTES_MAX {
                self.debug_link = bytes(file, file_offset, size).and_then(|link| debug_link(&link));
            }
        }
        let tree = tree.map(|part| part.unwrap_or(Some((0, 0))));
        self.debug_tree = match tree {
            [Some(info), Some(abbreviations), Some(ranges), Some(lists)] => Some([info, abbreviations, ranges, lists]),
            _ => None,
        };
        // Objects have relocations that readers of debug information apply.
        [ET_EXEC, ET_DYN].contains(&u16_at(header, 16)?).then_some(())
    }
}

/// An image whose file is held open, so it can be symbolised after its process has gone and its path has been
/// deleted.
#[derive(Debug)]
pub struct ImageFile {
    /// Its facts.
    pub image: Arc<Image>,
    /// The file.
    pub file: File,
    /// Facts and file of its separate debug file, where it needs and has one.
    pub debug: Option<(Image, File)>,
}

/// Exactly `len` bytes at `offset`. The length is bounded by the callers; what lies beyond the end is `None`.
fn bytes(file: &File, offset: u64, len: u64) -> Option<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut buffer, offset).ok()?;
    Some(buffer)
}

fn array_at<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    array_at(data, at).map(u16::from_le_bytes)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    array_at(data, at).map(u32::from_le_bytes)
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    array_at(data, at).map(u64::from_le_bytes)
}

/// A text of a string table, up to its zero byte.
fn text_at(table: &[u8], at: u32) -> Option<&[u8]> {
    table.get(at as usize..)?.split(|byte| *byte == 0).next()
}

/// The build id among the notes of a segment: entries of name size, descriptor size, type, name, descriptor, each
/// padded to `align` (4, or 8 in segments that say so).
fn build_id(notes: &[u8], align: u64) -> Option<Arc<str>> {
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0_usize;
    while let (Some(name_size), Some(size), Some(kind)) =
        (u32_at(notes, at), u32_at(notes, at + 4), u32_at(notes, at + 8))
    {
        let name_at = at + 12;
        let start = name_at
            .checked_add(name_size as usize)?
            .checked_next_multiple_of(align)?;
        let end = start.checked_add(size as usize)?;
        let descriptor = notes.get(start..end)?;
        if kind == NT_GNU_BUILD_ID && notes.get(name_at..name_at + 4) == Some(b"GNU\0") && name_size == 4 {
            let kept = &descriptor[..descriptor.len().min(BUILD_ID_BYTES_MAX)];
            let text: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
            return (!text.is_empty()).then(|| text.into());
        }
        at = end.checked_next_multiple_of(align)?;
    }
    None
}

/// The contents of `.gnu_debuglink`: a file name, a zero byte, padding to four bytes, the CRC-32 of that file. A name
/// that leads elsewhere is no name.
fn debug_link(data: &[u8]) -> Option<(String, u32)> {
    let end = data.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&data[..end]).ok()?;
    let checksum = u32_at(data, (end + 1).next_multiple_of(4))?;
    let bare = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    bare.then(|| (name.to_owned(), checksum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn image_of(data: &[u8]) -> Image {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(data).unwrap();
        Image::read(&file, Path::new("/some/where/app")).unwrap()
    }

    #[test]
    fn the_running_test_is_read() {
        let path = std::env::current_exe().unwrap();
        let image = Image::read(&File::open(&path).unwrap(), &path).unwrap();
        assert_eq!(image.path, path);
        assert!(image.segments.len() >= 2);
        assert!(
            image.debug_bytes > 1_000_000,
            "the test is built with debug information"
        );
        assert_eq!(image.compressed, []);
        let first = image.segments[0];
        assert_eq!(image.address_of(first.file_offset), Some(first.address));
        assert_eq!(image.address_of(u64::MAX), None);
    }

    #[test]
    fn other_files_have_no_segments() {
        for data in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x01\x01", &[0x7f; 64]] {
            let image = image_of(data);
            assert_eq!((image.segments.len(), image.debug_bytes, &*image.name), (0, 0, "app"));
        }
    }

    #[test]
    fn build_ids_are_found_among_notes() {
        let abi_tag = b"\x04\0\0\0\x10\0\0\0\x01\0\0\0GNU\0\0\0\0\0\x03\0\0\0\x02\0\0\0\0\0\0\0";
        let id = b"\x04\0\0\0\x03\0\0\0\x03\0\0\0GNU\0\xab\xcd\x01\0";
        let other = b"\x04\0\0\0\x03\0\0\0\x03\0\0\0XXX\0\xab\xcd\x01\0";
        let empty = b"\x04\0\0\0\0\0\0\0\x03\0\0\0GNU\0";
        let lie = b"\x04\0\0\0\xff\xff\xff\xff\x03\0\0\0GNU\0\xab\xcd\x01\0";
        for (notes, found) in [
            (id.to_vec(), Some("abcd01")),
            ([&abi_tag[..], id].concat(), Some("abcd01")),
            ([&other[..], id].concat(), Some("abcd01")),
            (other.to_vec(), None),
            (empty.to_vec(), None),
            (lie.to_vec(), None),
            (vec![], None),
        ] {
            assert_eq!(build_id(&notes, 4).as_deref(), found);
        }
    }

    #[test]
    fn debug_links_are_bare_names() {
        for (data, link) in [
            (
                &b"app.debug\0\0\0\x01\x02\x03\x04"[..],
                Some(("app.debug".to_owned(), 0x0403_0201)),
            ),
            (b"abc\0\x01\0\0\0", Some(("abc".to_owned(), 1))),
            (b"../x\0\0\0\0\x01\x02\x03\x04", None),
            (b"..\0\0\x01\x02\x03\x04", None),
            (b"\0\0\0\0\x01\x02\x03\x04", None),
            (b"abc\0\x01\0\0", None),
            (b"abc", None),
        ] {
            assert_eq!(debug_link(data), link);
        }
    }

    proptest! {
        #[test]
        fn a_damaged_header_is_survived(changes in proptest::collection::vec((0_usize..4_096, any::<u8>()), 1..40)) {
            let mut data = std::fs::read("/bin/true").unwrap();
            for (at, value) in changes {
                if let Some(byte) = data.get_mut(at) {
                    *byte = value;
                }
            }
            data[..6].copy_from_slice(b"\x7fELF\x02\x01");
            let image = image_of(&data);
            prop_assert!(image.segments.len() <= SEGMENTS_MAX);
            prop_assert!(image.build_id.is_none_or(|id| id.len() <= 2 * BUILD_ID_BYTES_MAX));
        }

        #[test]
        fn any_notes_are_survived(notes in proptest::collection::vec(any::<u8>(), 0..200), align in any::<u64>()) {
            build_id(&notes, align);
            debug_link(&notes);
        }
    }
}
