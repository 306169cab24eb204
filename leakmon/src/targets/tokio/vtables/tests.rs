//! Pieces of data, and whether they are tables.

use super::{super::super::image::Segment, *};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
/// tokio 1.21.2 and 1.22.0: eight functions and one integer.
const SHAPE: &Shape = &SHAPES[1];

/// Addresses of the tables in data that begins with eight pointers to code and this word.
fn tables(behind: u64, position_independent: bool) -> Vec<u64> {
    with_image(&[behind, 0], position_independent, |image| {
        addresses(&scan(image, SHAPE, &Claimed::default()))
    })
}

fn addresses(tables: &[Vtable]) -> Vec<u64> {
    tables.iter().map(|table| table.address).collect()
}

/// An image whose data is eight pointers to code and these words.
fn with_image<T>(behind: &[u64], position_independent: bool, look: impl FnOnce(&Image<'_>) -> T) -> T {
    let code = [0xc3; 0x100];
    let functions: Vec<u64> = (0..8).map(|index| CODE + 0x10 * index).collect();
    let data: Vec<u8> = functions
        .iter()
        .chain(behind)
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let words: Vec<(u64, u64)> = (DATA..).step_by(8).zip(functions.iter().copied()).collect();
    let mut image = Image::of_code(CODE, &code, &words);
    image.segments.push(Segment {
        address: DATA,
        file_offset: 0x1000,
        data: &data,
        executable: false,
    });
    image.position_independent = position_independent;
    look(&image)
}

#[test]
fn an_address_is_no_offset_where_pointers_are_not_relocated() {
    const NONE: [u64; 0] = [];
    assert_eq!(tables(0x60, false), [DATA]);
    assert_eq!(tables(DATA + 0x48, false), NONE);
    assert_eq!(tables(CODE, false), NONE);
    // Else it would be relocated if it were an address.
    assert_eq!(tables(DATA + 0x48, true), [DATA]);
}

#[test]
fn a_pointer_before_a_table_of_an_earlier_shape_begins_no_table() {
    // tokio 1.23 and newer: the seven last pointers, and the offsets of trailer, scheduler and id.
    with_image(&[0x60, 0x20, 0x28], true, |image| {
        let newer = scan(image, &SHAPES[0], &Claimed::default());
        assert_eq!(addresses(&newer), [DATA + 8]);
        assert_eq!(addresses(&scan(image, SHAPE, &Claimed::default())), [DATA]);
        let mut claimed = Claimed::default();
        claimed.add(&SHAPES[0], &newer);
        assert!(scan(image, SHAPE, &claimed).is_empty());
    });
}
