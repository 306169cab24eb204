//! Where an ELF image keeps its executable segments and its `.eh_frame`.
//!
//! In: the image's bytes. Out: segments as they are mapped, and the section's bytes with its address. Call frame
//! entries themselves are read in [`super::frame_entries`].

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::elf::{EM_X86_64, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::{SEGMENTS_MAX, TEXT_BYTES_MAX, UnwindError};

type Header = FileHeader64<object::LittleEndian>;
type SegmentHeader = ProgramHeader64<object::LittleEndian>;
const ENDIAN: object::LittleEndian = object::LittleEndian;

/// Mappings begin at a multiple of the page size, whatever the segment says (`elf_map` in the kernel's
/// `fs/binfmt_elf.c`).
const PAGE_BYTES: u64 = 4096;

/// An executable segment as the loader maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) vaddr: u64,
    pub(super) file_offset: u64,
    pub(super) size: u64,
}

impl Segment {
    pub(super) fn contains(&self, vaddr: u64) -> bool {
        vaddr.checked_sub(self.vaddr).is_some_and(|within| within < self.size)
    }
}

/// What the rest of the module needs of an image.
#[derive(Debug)]
pub(super) struct ImageFrames<'a> {
    pub(super) segments: Vec<Segment>,
    /// The section's bytes; where only the program header told of it, all bytes from its start to its segment's end.
    pub(super) entries: &'a [u8],
    /// Whether the end of `entries` is the section's, so that a terminator in the middle can be passed over.
    pub(super) is_section: bool,
    pub(super) bases: BaseAddresses,
    /// Where the program begins; most libraries have no such place.
    pub(super) entry_point: Option<u64>,
}

impl<'a> ImageFrames<'a> {
    pub(super) fn parse<R: ReadRef<'a>>(data: R) -> Result<Self, UnwindError> {
        let header = Header::parse(data).map_err(|_| UnwindError::Elf("the file header is broken"))?;
        if !header.is_little_endian() || !header.is_class_64() {
            return Err(UnwindError::Elf("another class or byte order"));
        }
        let machine = header.e_machine(ENDIAN);
        if machine != EM_X86_64 {
            return Err(UnwindError::Machine(machine));
        }
        let program_headers = header
            .program_headers(ENDIAN, data)
            .map_err(|_| UnwindError::Elf("the program headers are broken"))?;
        let file_len = data
            .len()
            .map_err(|()| UnwindError::Elf("the file's size is not known"))?;
        let segments = executable_segments(program_headers, file_len)?;
        let found = by_section(header, data).or_else(|| by_program_header(program_headers, data, file_len));
        let (address, entries, is_section) = found.ok_or(UnwindError::NoEntries)?;
        // `DW_EH_PE_textrel` and `datarel` pointers occur in no x86-64 toolchain's `.eh_frame`; without their bases
        // such an entry is counted as broken.
        let bases = BaseAddresses::default().set_eh_frame(address);
        Ok(Self {
            segments,
            entries,
            is_section,
            bases,
            entry_point: Some(header.e_entry(ENDIAN)).filter(|address| *address != 0),
        })
    }
}

fn executable_segments(headers: &[SegmentHeader], file_len: u64) -> Result<Vec<Segment>, UnwindError> {
    let mut segments = Vec::new();
    let mut text_bytes = 0u64;
    for header in headers {
        if header.p_type(ENDIAN) != PT_LOAD || header.p_flags(ENDIAN) & PF_X == 0 {
            continue;
        }
        let (vaddr, offset) = (header.p_vaddr(ENDIAN), header.p_offset(ENDIAN));
        let slack = vaddr % PAGE_BYTES;
        // The loader refuses a segment whose address and offset differ in a page.
        if offset % PAGE_BYTES != slack || offset >= file_len {
            continue;
        }
        let in_file = header.p_filesz(ENDIAN).min(file_len - offset);
        let size = in_file.saturating_add(slack);
        if in_file == 0 || vaddr.checked_add(in_file).is_none() {
            continue;
        }
        text_bytes = text_bytes.saturating_add(size);
        if segments.len() == SEGMENTS_MAX {
            return Err(UnwindError::TooLarge("executable segments"));
        }
        if text_bytes > TEXT_BYTES_MAX {
            return Err(UnwindError::TooLarge("bytes of code"));
        }
        segments.push(Segment {
            vaddr: vaddr - slack,
            file_offset: offset - slack,
            size,
        });
    }
    if segments.is_empty() {
        Err(UnwindError::NoText)
    } else {
        Ok(segments)
    }
}

/// By section header. Names are compared in place: a name's end is not searched for, which a table of a million
/// headers and one long string would make slow.
fn by_section<'a, R: ReadRef<'a>>(header: &Header, data: R) -> Option<(u64, &'a [u8], bool)> {
    const NAME: &[u8] = b".eh_frame\0";
    let sections = header.section_headers(ENDIAN, data).ok()?;
    let names_index = header.section_strings_index(ENDIAN, data).ok()?;
    let names: &[u8] = sections.get(names_index.0)?.data(ENDIAN, data).ok()?;
    let section = sections.iter().find(|section| {
        let name = section.sh_name(ENDIAN) as usize;
        names.get(name..).is_some_and(|rest| rest.starts_with(NAME))
    })?;
    let entries: &[u8] = section.data(ENDIAN, data).ok()?;
    (!entries.is_empty()).then_some((section.sh_addr(ENDIAN), entries, true))
}

/// By `PT_GNU_EH_FRAME`, which points to `.eh_frame_hdr`, which points to `.eh_frame` (Linux Standard Base 5.0,
/// "Exception Frame Header").
fn by_program_header<'a, R: ReadRef<'a>>(
    headers: &[SegmentHeader],
    data: R,
    file_len: u64,
) -> Option<(u64, &'a [u8], bool)> {
    let index = headers.iter().find(|header| header.p_type(ENDIAN) == PT_GNU_EH_FRAME)?;
    let index_address = index.p_vaddr(ENDIAN);
    let index_bytes = loaded_bytes(headers, data, file_len, index_address)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(index_address);
    let parsed = EhFrameHdr::new(index_bytes, LittleEndian).parse(&bases, 8).ok()?;
    let Pointer::Direct(address) = parsed.eh_frame_ptr() else {
        return None;
    };
    let entries = loaded_bytes(headers, data, file_len, address)?;
    (!entries.is_empty()).then_some((address, entries, false))
}

/// The file's bytes from an address to its segment's end.
fn loaded_bytes<'a, R: ReadRef<'a>>(headers: &[SegmentHeader], data: R, file_len: u64, vaddr: u64) -> Option<&'a [u8]> {
    headers
        .iter()
        .filter(|header| header.p_type(ENDIAN) == PT_LOAD)
        .find_map(|header| {
            let within = vaddr.checked_sub(header.p_vaddr(ENDIAN))?;
            let left = header.p_filesz(ENDIAN).checked_sub(within)?;
            let start = header.p_offset(ENDIAN).checked_add(within)?;
            let end = start.checked_add(left)?.min(file_len);
            data.read_bytes_at(start, end.checked_sub(start)?).ok()
        })
}
