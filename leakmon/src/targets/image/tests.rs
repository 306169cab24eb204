//! Packed relocations, and images that repeat or overlap their parts.

use super::{
    words::{WORDS_MAX, packed_places},
    *,
};
use object::U64;
use proptest::prelude::*;

fn places(packed: &[u64]) -> Vec<u64> {
    let packed: Vec<_> = packed.iter().map(|word| U64::new(Endianness::Little, *word)).collect();
    packed_places(&packed).collect()
}

/// Sections of these types and contents, without names, in a library of one segment.
fn library(sections: &[(u32, &[u8])], repeated: usize) -> Vec<u8> {
    let mut data = vec![0; 0x1000];
    let mut headers = vec![0; 64];
    for (kind, contents) in sections {
        let mut header = [0; 64];
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(data.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
        headers.extend(header.repeat(repeated));
        data.extend(*contents);
    }
    // The last names the sections.
    headers.extend([0, 0, 0, 0, 3, 0, 0, 0]);
    headers.resize(headers.len() + 56, 0);
    let (at, count) = (data.len() as u64, (headers.len() / 64) as u16);
    data.extend(&headers);
    data[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    data[16..24].copy_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
    data[40..48].copy_from_slice(&at.to_le_bytes());
    data[58..60].copy_from_slice(&64_u16.to_le_bytes());
    data[60..62].copy_from_slice(&count.to_le_bytes());
    data[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    data
}

#[test]
fn packed_relocations_are_unpacked() {
    for (packed, expected) in [
        (&[][..], vec![]),
        (&[0x1000, 0b1011, 0x2000], vec![0x1000, 0x1008, 0x1018, 0x2000]),
        (&[0x1000, 1, 0b11], vec![0x1000, 0x1008 + 63 * 8]),
        (&[u64::MAX - 7, 0b11], vec![u64::MAX - 7, 0]),
    ] {
        assert_eq!(places(packed), expected);
    }
}

#[test]
fn overlapping_relocations_are_counted_before_they_are_followed() {
    let packed: Vec<u8> = [u64::MAX - 7, u64::MAX]
        .iter()
        .cycle()
        .take(1 << 15)
        .flat_map(|word| word.to_le_bytes())
        .collect();
    for (sections, refused) in [(1, false), (2, false), (1_000, true), (60_000, true)] {
        let image = library(&[(elf::SHT_RELR, &packed)], sections);
        let error = Image::parse(&image[..]).err();
        assert_eq!(
            error,
            refused.then_some(ImageError::TooLarge("relocations")),
            "{sections}"
        );
    }
    let image = library(&[(elf::SHT_RELA, &vec![0; 24 << 16])], WORDS_MAX / (1 << 16) + 1);
    assert_eq!(
        Image::parse(&image[..]).err(),
        Some(ImageError::TooLarge("relocations"))
    );
}

proptest! {
    #[test]
    fn any_packed_words_are_survived(packed in prop::collection::vec(any::<u64>(), 0..40)) {
        prop_assert!(places(&packed).len() <= 63 * packed.len());
    }
}

#[test]
fn what_a_jump_table_holds_is_no_function() {
    let (code, at, data_at) = ([0xc3; 0x40], 0x1000, 0x2000);
    let words = [at, at + 8, at + 0x3f, at + 0x40, data_at];
    let data: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    let mut image = Image::of_code(at, &code, &[]);
    image.segments.push(Segment {
        address: data_at,
        file_offset: 0x1000,
        data: &data,
        executable: false,
    });
    let mut found = Vec::new();
    image.collect_function_addresses(&mut found).unwrap();
    assert_eq!(found, [(data_at, at)]);
}
