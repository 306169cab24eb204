//! An x86-64 ELF image, reduced to what a search for probe sites needs.
//!
//! In: the file's data. Out: its loaded bytes by virtual address, the words that the dynamic linker relocates, where functions
//! begin and end, and the function symbols. It knows no runtime and decodes no instruction. Everything in the file is hostile:
//! each table has a bound, each address is checked.

use gimli::{BaseAddresses, CieOrFde, EhFrame, NativeEndian, UnwindSection};
use object::{
    Endianness,
    elf::{self, FileHeader64},
    read::{
        ReadRef,
        elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym},
    },
};
use std::{cell::Cell, ops::Range};

mod words;

/// Longest common part (CIE) of `.eh_frame`, in bytes; usual ones have 20 to 30, and each function's is parsed anew.
const COMMON_BYTES_MAX: u32 = 512;
/// Most functions; the same binary has about 1 million.
const FUNCTIONS_MAX: usize = 1 << 22;
/// Most function symbols.
const SYMBOLS_MAX: usize = 1 << 22;
/// Instructions that are decoded or followed for one image, all searches together, and what is copied meanwhile at its price: some
/// seconds. A program with 53 task types takes 82,000, leakmon itself 181,000 (release builds).
const EFFORT_MAX: u64 = 1 << 24;
/// Most loadable segments; linkers make four or five.
const SEGMENTS_MAX: usize = 64;

type Header = FileHeader64<Endianness>;

/// Why a file is no image that can be searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageError {
    /// The magic number is not there.
    NotElf,
    /// 32-bit.
    Narrow,
    /// `e_machine` of another architecture.
    Machine(u16),
    /// Neither `ET_DYN` nor `ET_EXEC`: an object file or a core.
    NotExecutable,
    /// A header or table points out of the file, or contradicts itself.
    Damaged(&'static str),
    /// More than a bound allows.
    TooLarge(&'static str),
}

/// A loaded piece of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'data> {
    /// Virtual address of its first byte.
    pub(super) address: u64,
    /// Where in the file that byte is.
    pub(super) file_offset: u64,
    /// The bytes.
    pub(super) data: &'data [u8],
    /// Mapped executable.
    pub(super) executable: bool,
}

impl<'data> Segment<'data> {
    fn end(&self) -> u64 {
        self.address + self.data.len() as u64
    }

    fn from(&self, address: u64) -> Option<&'data [u8]> {
        let offset = usize::try_from(address.checked_sub(self.address)?).ok()?;
        self.data.get(offset..)
    }
}

/// A function symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct FunctionSymbol<'data> {
    pub(super) address: u64,
    /// As in the file: mangled, any bytes.
    pub(super) name: &'data [u8],
}

/// The parsed image.
#[derive(Debug, Default)]
pub(super) struct Image<'data> {
    /// By ascending address, not overlapping.
    pub(super) segments: Vec<Segment<'data>>,
    /// Relocated words by ascending address: where, and what address will be there relative to the image. In a position-dependent
    /// image: words of data that are addresses of functions.
    pub(super) words: Vec<(u64, u64)>,
    /// Address ranges of functions from `.eh_frame`, ascending, not overlapping.
    functions: Vec<Range<u64>>,
    /// By ascending address. Empty in a stripped image.
    pub(super) symbols: Vec<FunctionSymbol<'data>>,
    /// `ET_DYN`: loaded anywhere, its pointers relocated. Else its addresses are those of the process.
    pub(super) position_independent: bool,
    /// Address of the first own instruction (`e_entry`); a library has none.
    pub(super) entry: Option<u64>,
    /// Lower-case hexadecimal, empty where there is none.
    pub(super) build_id: String,
    /// Instructions that may still be decoded or followed.
    effort: Cell<u64>,
}

impl<'data> Image<'data> {
    /// Parses the tables, and reads nothing of the rest of the file.
    pub(super) fn parse<R: ReadRef<'data>>(data: R) -> Result<Self, ImageError> {
        let header = header(data)?;
        let endian = Endianness::Little;
        let mut image = Self {
            position_independent: header.e_type(endian) == elf::ET_DYN,
            entry: Some(header.e_entry(endian)).filter(|entry| *entry != 0),
            effort: Cell::new(EFFORT_MAX),
            ..Self::default()
        };
        image.load_segments(header, data)?;
        let sections = header
            .sections(endian, data)
            .map_err(|_| ImageError::Damaged("section headers"))?;
        image.load_functions(&sections, data)?;
        image.load_words(&sections, data)?;
        image.load_symbols(&sections, data)?;
        image.build_id = build_id(&sections, data);
        Ok(image)
    }

    fn load_segments<R: ReadRef<'data>>(&mut self, header: &Header, data: R) -> Result<(), ImageError> {
        const WHAT: &str = "program headers";
        let endian = Endianness::Little;
        let programs = header
            .program_headers(endian, data)
            .map_err(|_| ImageError::Damaged(WHAT))?;
        for program in programs.iter().filter(|program| program.p_type(endian) == elf::PT_LOAD) {
            let bytes = program
                .data(endian, data)
                .map_err(|()| ImageError::Damaged("a loaded segment"))?;
            let address = program.p_vaddr(endian);
            // The upper half is the kernel's; this keeps every later sum of an address and a small number in range.
            if address.checked_add(bytes.len() as u64).is_none_or(|end| end >= 1 << 47) {
                return Err(ImageError::Damaged(WHAT));
            }
            self.segments.push(Segment {
                address,
                file_offset: program.p_offset(endian),
                data: bytes,
                executable: program.p_flags(endian) & elf::PF_X != 0,
            });
            if self.segments.len() > SEGMENTS_MAX {
                return Err(ImageError::TooLarge(WHAT));
            }
        }
        self.segments.sort_by_key(|segment| segment.address);
        if self.segments.windows(2).any(|pair| pair[0].end() > pair[1].address) {
            return Err(ImageError::Damaged(WHAT));
        }
        Ok(())
    }

    fn load_functions<R: ReadRef<'data>>(
        &mut self,
        sections: &SectionTable<'data, Header, R>,
        data: R,
    ) -> Result<(), ImageError> {
        let endian = Endianness::Little;
        let Some((_, section)) = sections.section_by_name(endian, b".eh_frame") else {
            return Ok(());
        };
        let bytes = section
            .data(endian, data)
            .map_err(|_| ImageError::Damaged(".eh_frame"))?;
        let frames = EhFrame::new(bytes, NativeEndian);
        let bases = BaseAddresses::default().set_eh_frame(section.sh_addr(endian));
        let mut entries = frames.entries(&bases);
        let mut functions = Vec::new();
        // A damaged entry ends the list: the functions before it are still right.
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else { continue };
            let short = bytes
                .get(partial.cie_offset().0..)
                .and_then(|common| common.first_chunk())
                .is_some_and(|length| u32::from_le_bytes(*length) <= COMMON_BYTES_MAX);
            if !short {
                continue;
            }
            let Ok(fde) = partial.parse(EhFrame::cie_from_offset) else {
                continue;
            };
            let start = fde.initial_address();
            if let Some(end) = start.checked_add(fde.len()).filter(|end| *end > start) {
                functions.push(start..end);
            }
            if functions.len() > FUNCTIONS_MAX {
                return Err(ImageError::TooLarge(".eh_frame"));
            }
        }
        functions.sort_unstable_by_key(|function| (function.start, function.end));
        functions.dedup_by_key(|function| function.start);
        for index in 1..functions.len() {
            let next = functions[index].start;
            let before = &mut functions[index - 1];
            before.end = before.end.min(next);
        }
        self.functions = functions;
        Ok(())
    }

    fn load_symbols<R: ReadRef<'data>>(
        &mut self,
        sections: &SectionTable<'data, Header, R>,
        data: R,
    ) -> Result<(), ImageError> {
        let endian = Endianness::Little;
        // Symbols only confirm and name: a damaged table is as good as none.
        let Ok(table) = sections.symbols(endian, data, elf::SHT_SYMTAB) else {
            return Ok(());
        };
        for symbol in table.iter() {
            if symbol.st_type() == elf::STT_FUNC && symbol.st_value(endian) != 0 {
                if let Ok(name) = symbol.name(endian, table.strings()) {
                    self.symbols.push(FunctionSymbol {
                        address: symbol.st_value(endian),
                        name,
                    });
                }
                if self.symbols.len() > SYMBOLS_MAX {
                    return Err(ImageError::TooLarge(".symtab"));
                }
            }
        }
        self.symbols
            .sort_unstable_by_key(|symbol| (symbol.address, symbol.name));
        Ok(())
    }

    fn segment(&self, address: u64) -> Option<&Segment<'data>> {
        let index = self
            .segments
            .partition_point(|segment| segment.address <= address)
            .checked_sub(1)?;
        self.segments.get(index).filter(|segment| address < segment.end())
    }

    /// The bytes of `range`, none where it isn't wholly within one segment.
    pub(super) fn bytes(&self, range: Range<u64>) -> Option<&'data [u8]> {
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        self.segment(range.start)?.from(range.start)?.get(..length)
    }

    fn word_in_place(&self, address: u64) -> Option<u64> {
        let bytes = self.bytes(address..address.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// A word of data that is no pointer: not relocated; where nothing is relocated, no address of the image's own.
    pub(super) fn plain_word(&self, address: u64) -> Option<u64> {
        self.relocated_word(address)
            .is_none()
            .then(|| self.word_in_place(address))?
            .filter(|word| self.position_independent || self.segment(*word).is_none())
    }

    /// The image address that the dynamic linker will make a pointer to, at `address`.
    pub(super) fn relocated_word(&self, address: u64) -> Option<u64> {
        let index = self.words.binary_search_by_key(&address, |word| word.0).ok()?;
        Some(self.words.get(index)?.1)
    }

    /// Whether the address is in an executable segment.
    pub(super) fn is_code(&self, address: u64) -> bool {
        self.segment(address).is_some_and(|segment| segment.executable)
    }

    /// Where in the file the byte at `address` is.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segment(address)?;
        segment.file_offset.checked_add(address - segment.address)
    }

    /// Pays for the work on so many instructions. False where a hostile image has used up what one image may cost.
    pub(super) fn pay(&self, instructions: usize) -> bool {
        let left = self.effort.get().saturating_sub(instructions as u64);
        self.effort.set(left);
        left > 0
    }

    /// Whether all searches of this image ran to their end.
    pub(super) fn is_searched(&self) -> bool {
        self.effort.get() > 0
    }

    /// Whether `.eh_frame` named any function.
    pub(super) fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// The function around an address.
    pub(super) fn function(&self, address: u64) -> Option<Range<u64>> {
        let index = self
            .functions
            .partition_point(|function| function.start <= address)
            .checked_sub(1)?;
        self.functions
            .get(index)
            .filter(|function| function.contains(&address))
            .cloned()
    }

    /// The names of the functions that begin at `address`: several where identical code was merged.
    pub(super) fn symbols_at(&self, address: u64) -> impl Iterator<Item = &'data [u8]> {
        let first = self.symbols.partition_point(|symbol| symbol.address < address);
        self.symbols
            .iter()
            .skip(first)
            .take_while(move |symbol| symbol.address == address)
            .map(|symbol| symbol.name)
    }
}

fn header<'data, R: ReadRef<'data>>(data: R) -> Result<&'data Header, ImageError> {
    let ident = data.read_bytes_at(0, 4).map_err(|()| ImageError::NotElf)?;
    if ident != elf::ELFMAG {
        return Err(ImageError::NotElf);
    }
    let ident = data.read_bytes_at(0, 20).map_err(|()| ImageError::Damaged("header"))?;
    let machine = u16::from_le_bytes([ident[18], ident[19]]);
    if ident[5] != elf::ELFDATA2LSB {
        return Err(ImageError::Machine(machine.swap_bytes()));
    }
    if ident[4] == elf::ELFCLASS32 {
        return Err(if machine == elf::EM_386 || machine == elf::EM_X86_64 {
            ImageError::Narrow
        } else {
            ImageError::Machine(machine)
        });
    }
    if machine != elf::EM_X86_64 {
        return Err(ImageError::Machine(machine));
    }
    let header = Header::parse(data).map_err(|_| ImageError::Damaged("header"))?;
    match header.e_type(Endianness::Little) {
        elf::ET_DYN | elf::ET_EXEC => Ok(header),
        _ => Err(ImageError::NotExecutable),
    }
}

fn build_id<'data, R: ReadRef<'data>>(sections: &SectionTable<'data, Header, R>, data: R) -> String {
    /// A build id is 20 bytes; some linkers make 8, 16 or 32.
    const BYTES_MAX: usize = 64;
    let endian = Endianness::Little;
    for section in sections.iter() {
        let Ok(Some(mut notes)) = section.notes(endian, data) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
                return note
                    .desc()
                    .iter()
                    .take(BYTES_MAX)
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
            }
        }
    }
    String::new()
}

#[cfg(test)]
impl<'data> Image<'data> {
    /// One function at `address`, and relocated words.
    pub(super) fn of_code(address: u64, code: &'data [u8], words: &[(u64, u64)]) -> Self {
        Self {
            segments: vec![Segment {
                address,
                file_offset: 0x40,
                data: code,
                executable: true,
            }],
            words: words.to_vec(),
            functions: std::iter::once(address..address + code.len() as u64).collect(),
            position_independent: true,
            effort: Cell::new(EFFORT_MAX),
            ..Self::default()
        }
    }

    /// The same with other functions.
    pub(super) fn with_functions(self, functions: impl Iterator<Item = Range<u64>>) -> Self {
        Self {
            functions: functions.collect(),
            ..self
        }
    }

    /// The same with less effort left.
    pub(super) fn with_effort(self, instructions: u64) -> Self {
        self.effort.set(instructions);
        self
    }
}

#[cfg(test)]
mod tests;
