//! From entries made to order to rows.

use gimli::constants::{
    DW_CFA_advance_loc, DW_CFA_def_cfa, DW_CFA_def_cfa_expression, DW_CFA_def_cfa_offset, DW_CFA_offset,
    DW_CFA_undefined,
};
use leakmon_ebpf::rows::{FRAME_POINTER_LOST, kind};

use super::super::{UnwindError, UnwindTable};
use super::synthetic::{Entries, USUAL_START, a_row_a_byte};
use super::{assert_consistent, row_at};

const TEXT: u32 = 0x1000;

/// The row at `TEXT` of a function with these instructions.
fn row_of(augmentation: &[u8], instructions: &[u8]) -> (u8, u8, u16) {
    let mut entries = Entries::default();
    let common = entries.common(augmentation, &USUAL_START);
    entries.function(common, TEXT, 64, instructions);
    let table = UnwindTable::build(&entries.image(0x2000, true)).unwrap();
    assert_consistent(&table);
    let row = row_at(&table.segments[0], TEXT);
    (row.kind, row.frame_pointer, row.offset)
}

#[test]
fn each_rule_becomes_its_kind() {
    let linkage = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
    let signal = [0x77, 0xa0, 0x01, 0x06];
    let expression = |bytes: &[u8]| [&[DW_CFA_def_cfa_expression.0, bytes.len() as u8], bytes].concat();
    let rbp_at = |slot: u8| vec![DW_CFA_offset.0 | 6, slot];
    for (augmentation, instructions, expected) in [
        (&b"zR"[..], vec![], (kind::STACK_POINTER, 0, 1)),
        (
            b"zR",
            vec![DW_CFA_def_cfa_offset.0, 0x80, 0x40],
            (kind::STACK_POINTER, 0, 1024),
        ),
        (
            b"zR",
            [vec![DW_CFA_def_cfa.0, 6, 16], rbp_at(2)].concat(),
            (kind::FRAME_POINTER, 2, 2),
        ),
        (b"zR", rbp_at(7), (kind::STACK_POINTER, 7, 1)),
        (
            b"zR",
            vec![DW_CFA_offset.0 | 6, 0xff, 1],
            (kind::STACK_POINTER, FRAME_POINTER_LOST, 1),
        ),
        (b"zR", vec![DW_CFA_undefined.0, 16], (kind::END, 0, 0)),
        (b"zR", expression(&linkage), (kind::LINKAGE, 0, 11)),
        (b"zRS", expression(&signal), (kind::SIGNAL, 0, 0)),
        // Not in a signal frame, an unknown expression, another register, an odd offset, one that is too great, a
        // return address elsewhere.
        (b"zR", expression(&signal), (kind::UNSUPPORTED, 0, 0)),
        (b"zR", expression(&[0x76, 0x78, 0x06]), (kind::UNSUPPORTED, 0, 0)),
        (b"zR", vec![DW_CFA_def_cfa.0, 10, 8], (kind::UNSUPPORTED, 0, 0)),
        (b"zR", vec![DW_CFA_def_cfa_offset.0, 12], (kind::UNSUPPORTED, 0, 0)),
        (
            b"zR",
            vec![DW_CFA_def_cfa_offset.0, 0x80, 0x80, 0x20],
            (kind::UNSUPPORTED, 0, 0),
        ),
        (b"zR", vec![DW_CFA_offset.0 | 16, 2], (kind::UNSUPPORTED, 0, 0)),
    ] {
        assert_eq!(row_of(augmentation, &instructions), expected, "{instructions:x?}");
    }
}

#[test]
fn a_page_with_a_row_a_byte_is_searched_in_full() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &USUAL_START);
    entries.function(common, TEXT + 3, 1000, &a_row_a_byte(1000));
    for has_sections in [true, false] {
        let table = UnwindTable::build(&entries.image(0x2000, has_sections)).unwrap();
        assert_consistent(&table);
        let segment = &table.segments[0];
        assert_eq!(segment.pages().map(|(_, len)| len).max(), Some(256));
        for at in 0..1000 {
            assert_eq!(u32::from(row_at(segment, TEXT + 3 + at).offset), 1 + at % 8);
        }
    }
}

#[test]
fn gaps_are_marked_and_padding_is_not() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &USUAL_START);
    for (start, len) in [(0, 17), (32, 16), (64, 1), (300, 20), (310, 5), (315, 10)] {
        entries.function(common, TEXT + start, len, &[]);
    }
    // Outside the segment, and empty.
    entries.function(common, 0x10_0000, 8, &[]);
    entries.function(common, TEXT + 200, 0, &[]);
    let table = UnwindTable::build(&entries.image(0x2000, true)).unwrap();
    assert_consistent(&table);
    let rows: Vec<(u32, u8)> = table.segments[0]
        .rows
        .iter()
        // The headers before it are no code, and may look like some.
        .filter(|row| row.pc >= TEXT)
        .map(|row| (row.pc - TEXT, row.kind))
        .collect();
    let (usual, none) = (kind::STACK_POINTER, kind::NONE);
    assert_eq!(
        rows,
        [
            (0, usual),
            (48, none),
            (64, usual),
            (65, none),
            (300, usual),
            (325, none)
        ]
    );
    assert_eq!(
        (table.stats.entries, table.stats.outside, table.stats.overlapping),
        (8, 1, 1)
    );
}

#[test]
fn a_broken_entry_costs_itself_alone() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &USUAL_START);
    let unknown = entries.common(b"zQ", &USUAL_START);
    let long = entries.common(b"zR", &[USUAL_START.as_slice(), &[0; 5000]].concat());
    entries.function(unknown, TEXT, 16, &[]);
    entries.function(long, TEXT + 16, 16, &[]);
    // An unknown instruction after the first row.
    entries.function(common, TEXT + 32, 16, &[DW_CFA_advance_loc.0 | 4, 0x3e]);
    entries.0.extend([0; 4]);
    entries.function(common, TEXT + 64, 16, &[]);
    let mut bytes = entries.image(0x2000, true);
    let table = UnwindTable::build(&bytes).unwrap();
    assert_consistent(&table);
    assert_eq!((table.stats.broken_commons, table.stats.broken_instructions), (2, 1));
    let kinds: Vec<u8> = [0, 16, 33, 64]
        .iter()
        .map(|at| row_at(&table.segments[0], TEXT + at).kind)
        .collect();
    assert_eq!(
        kinds,
        [kind::NONE, kind::NONE, kind::STACK_POINTER, kind::STACK_POINTER]
    );

    // A length that leads out of the section ends the reading.
    entries.0.extend([0xff, 0xff, 0, 0, 1, 2, 3, 4]);
    entries.function(common, TEXT + 128, 16, &[]);
    bytes = entries.image(0x2000, true);
    let table = UnwindTable::build(&bytes).unwrap();
    assert_eq!(
        (table.stats.broken_entries, row_at(&table.segments[0], TEXT + 128).kind),
        (1, kind::NONE)
    );
}

#[test]
fn an_image_without_a_table_says_why() {
    let entries = Entries::default();
    let image = entries.image(0x2000, true);
    assert_eq!(UnwindTable::build(&image), Err(UnwindError::NoEntries));
    assert!(matches!(UnwindTable::build(b"\x7fELF"), Err(UnwindError::Elf(_))));
    let mut other = image.clone();
    other[18] = 183;
    assert_eq!(UnwindTable::build(&other), Err(UnwindError::Machine(183)));
    let mut data_only = image;
    data_only[68] = 4;
    assert_eq!(UnwindTable::build(&data_only), Err(UnwindError::NoText));
}
