//! The pointers in an image's data: what the dynamic linker relocates, or, where nothing is relocated, what looks like one.
//!
//! In: the sections and segments of an image. Out: [`Image::words`]. It reads no section that is not a table of relocations.

use super::{Header, Image, ImageError};
use object::{
    Endianness, U64, elf,
    read::{
        ReadRef,
        elf::{Rela, SectionHeader, SectionTable},
    },
};

/// Most words; an 839 MB binary has about 1.5 million.
pub(super) const WORDS_MAX: usize = 1 << 22;
/// Bytes of a pointer.
const WORD_BYTES: usize = 8;

impl<'data> Image<'data> {
    /// `R_X86_64_RELATIVE` of `SHT_RELA` sections (the addend is the address) and `SHT_RELR` (the address is in place); in a
    /// position-dependent image nothing is relocated, and every aligned word of data that is the address of a function counts.
    pub(super) fn load_words<R: ReadRef<'data>>(
        &mut self,
        sections: &SectionTable<'data, Header, R>,
        data: R,
    ) -> Result<(), ImageError> {
        /// A place, or a bitmap of 63.
        const PACKED_BYTES: u64 = 8;
        let endian = Endianness::Little;
        let mut words = Vec::new();
        // Counted before they are read, whatever they are: sections may overlap.
        let mut left = WORDS_MAX as u64;
        for section in sections.iter() {
            let entry_bytes = match section.sh_type(endian) {
                elf::SHT_RELA => size_of::<elf::Rela64<Endianness>>() as u64,
                elf::SHT_RELR => PACKED_BYTES,
                _ => continue,
            };
            left = left
                .checked_sub(section.sh_size(endian) / entry_bytes)
                .ok_or(ImageError::TooLarge("relocations"))?;
            if let Ok(Some((relas, _))) = section.rela(endian, data) {
                let relative = relas
                    .iter()
                    .filter(|rela| rela.r_type(endian, false) == elf::R_X86_64_RELATIVE);
                words.extend(relative.map(|rela| (rela.r_offset(endian), rela.r_addend(endian) as u64)));
            } else if entry_bytes == PACKED_BYTES
                && let Ok(packed) = section.data_as_array::<U64<Endianness>, _>(endian, data)
            {
                for place in packed_places(packed) {
                    left = left.checked_sub(1).ok_or(ImageError::TooLarge("relocations"))?;
                    if let Some(target) = self.word_in_place(place) {
                        words.push((place, target));
                    }
                }
            }
        }
        if !self.position_independent {
            self.collect_function_addresses(&mut words)?;
        }
        words.sort_unstable();
        words.dedup_by_key(|word| word.0);
        self.words = words;
        Ok(())
    }

    /// An address within a function is an entry of a jump table.
    pub(super) fn collect_function_addresses(&self, words: &mut Vec<(u64, u64)>) -> Result<(), ImageError> {
        for segment in self.segments.iter().filter(|segment| !segment.executable) {
            let skipped = segment.address.next_multiple_of(WORD_BYTES as u64) - segment.address;
            let aligned = segment.data.get(skipped as usize..).unwrap_or_default();
            for (index, bytes) in aligned.as_chunks::<WORD_BYTES>().0.iter().enumerate() {
                let word = u64::from_le_bytes(*bytes);
                let within = || self.function(word).is_some_and(|function| function.start < word);
                if self.is_code(word) && !within() {
                    words.push((segment.address + skipped + (index * WORD_BYTES) as u64, word));
                }
                if words.len() > WORDS_MAX {
                    return Err(ImageError::TooLarge("addresses in its data"));
                }
            }
        }
        Ok(())
    }
}

/// The places that a `SHT_RELR` section packs: an even word is one, an odd word a bitmap of those among the 63 words behind
/// the last (System V ABI, "Relative Relocation Table"). Addresses may wrap.
pub(super) fn packed_places(packed: &[U64<Endianness>]) -> impl Iterator<Item = u64> {
    let mut behind = 0_u64;
    packed.iter().flat_map(move |word| {
        let word = word.get(Endianness::Little);
        let (first, bitmap, next) = match word & 1 {
            0 => (word, 1, word.wrapping_add(8)),
            _ => (behind, word >> 1, behind.wrapping_add(63 * 8)),
        };
        behind = next;
        (0..63)
            .filter(move |bit| bitmap >> bit & 1 == 1)
            .map(move |bit| first.wrapping_add(8 * bit))
    })
}
