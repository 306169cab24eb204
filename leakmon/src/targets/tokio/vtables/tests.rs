//! Pieces of data, and whether they are tables.

use super::{super::super::image::Segment, *};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
/// tokio 1.21.2 and 1.22.0: eight functions and one integer.
const SHAPE: &Shape = &SHAPES[1];

/// Addresses of the tables in data that begins with eight pointers to code and this word.
fn tables(behind: u64, position_independent: bool) -> Vec<u64> {
    let code = [0xc3; 0x100];
    let functions: Vec<u64> = (0..8).map(|index| CODE + 0x10 * index).collect();
    let data: Vec<u8> = functions
        .iter()
        .chain([&behind, &0])
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
    let found = scan(&image, SHAPE, &Claimed::default());
    found.into_iter().map(|table| table.address).collect()
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
