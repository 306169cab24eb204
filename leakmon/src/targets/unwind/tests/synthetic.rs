//! Small ELF images with entries made to order.

use gimli::constants::{DW_CFA_advance_loc, DW_CFA_def_cfa, DW_CFA_def_cfa_offset, DW_CFA_nop, DW_CFA_offset};

/// Address and file offset of `.eh_frame` in every image made here.
pub(super) const ENTRIES_AT: usize = 0x200;
const INDEX_AT: usize = 0x180;

/// `CFA = rsp + 8`, return address at CFA − 8: how every function of x86-64 begins.
pub(super) const USUAL_START: [u8; 5] = [DW_CFA_def_cfa.0, 7, 8, DW_CFA_offset.0 | 16, 1];

/// The bytes of an `.eh_frame` that begins at [`ENTRIES_AT`].
#[derive(Clone, Default)]
pub(super) struct Entries(pub(super) Vec<u8>);

impl Entries {
    /// Appends a common part with absolute four-byte addresses relative to their place; returns its offset.
    pub(super) fn common(&mut self, augmentation: &[u8], instructions: &[u8]) -> usize {
        let offset = self.0.len();
        let mut body = vec![0, 0, 0, 0, 1];
        body.extend(augmentation);
        // Code alignment 1, data alignment −8, return address in column 16, one byte of data: pc-relative sdata4.
        body.extend([0, 1, 0x78, 16, 1, 0x1b]);
        body.extend(instructions);
        self.entry(body);
        offset
    }

    /// Appends an entry for the addresses `start..start + len`.
    pub(super) fn function(&mut self, common: usize, start: u32, len: u32, instructions: &[u8]) {
        let body_at = self.0.len() + 4;
        let mut body = ((body_at - common) as u32).to_le_bytes().to_vec();
        body.extend(start.wrapping_sub((ENTRIES_AT + body_at + 4) as u32).to_le_bytes());
        body.extend(len.to_le_bytes());
        body.push(0);
        body.extend(instructions);
        self.entry(body);
    }

    fn entry(&mut self, mut body: Vec<u8>) {
        while !body.len().is_multiple_of(8) {
            body.push(DW_CFA_nop.0);
        }
        self.0.extend((body.len() as u32).to_le_bytes());
        self.0.extend(body);
    }

    /// The image: these entries, then one segment that holds everything up to `text_end`, all of it executable.
    /// `has_sections`: with section headers, else only with `PT_GNU_EH_FRAME`.
    pub(super) fn image(&self, text_end: usize, has_sections: bool) -> Vec<u8> {
        let mut bytes = vec![0; text_end.max(ENTRIES_AT + self.0.len() + 4)];
        bytes[ENTRIES_AT..ENTRIES_AT + self.0.len()].copy_from_slice(&self.0);
        // Version 1; pointer pc-relative sdata4, no table.
        bytes[INDEX_AT..INDEX_AT + 4].copy_from_slice(&[1, 0x1b, 0xff, 0xff]);
        put(
            &mut bytes,
            INDEX_AT + 4,
            &((ENTRIES_AT - INDEX_AT - 4) as u32).to_le_bytes(),
        );
        let loaded = bytes.len() as u64;
        let sections_at = if has_sections { self.sections(&mut bytes) } else { 0 };
        header(&mut bytes, sections_at);
        program_header(&mut bytes, 64, 1, 5, 0, loaded);
        if !has_sections {
            program_header(&mut bytes, 120, 0x6474_e550, 4, INDEX_AT as u64, 8);
        }
        bytes
    }

    /// Appends names and section headers; returns where the headers are.
    fn sections(&self, bytes: &mut Vec<u8>) -> u64 {
        let names_at = bytes.len() as u64;
        bytes.extend(b"\0.eh_frame\0\0\0\0\0\0");
        let at = bytes.len();
        bytes.resize(at + 3 * 64, 0);
        for (index, name, kind, start, len) in [
            (1, 1u32, 1u32, ENTRIES_AT as u64, self.0.len() as u64),
            (2, 0, 3, names_at, 16),
        ] {
            let header = at + index * 64;
            put(bytes, header, &name.to_le_bytes());
            put(bytes, header + 4, &kind.to_le_bytes());
            put(bytes, header + 16, &start.to_le_bytes());
            put(bytes, header + 24, &start.to_le_bytes());
            put(bytes, header + 32, &len.to_le_bytes());
        }
        at as u64
    }
}

/// `len` bytes of code, each with a CFA of its own.
pub(super) fn a_row_a_byte(len: u32) -> Vec<u8> {
    (1..len)
        .flat_map(|at| {
            [
                DW_CFA_advance_loc.0 | 1,
                DW_CFA_def_cfa_offset.0,
                8 + 8 * (at % 8) as u8,
            ]
        })
        .collect()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn header(bytes: &mut [u8], sections_at: u64) {
    put(bytes, 0, b"\x7fELF\x02\x01\x01");
    put(bytes, 16, &3u16.to_le_bytes());
    put(bytes, 18, &62u16.to_le_bytes());
    put(bytes, 20, &1u32.to_le_bytes());
    put(bytes, 32, &64u64.to_le_bytes());
    put(bytes, 40, &sections_at.to_le_bytes());
    put(bytes, 52, &64u16.to_le_bytes());
    put(bytes, 54, &56u16.to_le_bytes());
    put(bytes, 56, &2u16.to_le_bytes());
    put(bytes, 58, &64u16.to_le_bytes());
    if sections_at != 0 {
        put(bytes, 60, &3u16.to_le_bytes());
        put(bytes, 62, &2u16.to_le_bytes());
    }
}

fn program_header(bytes: &mut [u8], at: usize, kind: u32, flags: u32, start: u64, len: u64) {
    put(bytes, at, &kind.to_le_bytes());
    put(bytes, at + 4, &flags.to_le_bytes());
    for (field, value) in [(8, start), (16, start), (24, start), (32, len), (40, len), (48, 4096)] {
        put(bytes, at + field, &value.to_le_bytes());
    }
}
