//! The layout of unwind tables in BPF maps: rows, their page index, a process's mappings.
//!
//! In: nothing. Out: plain data with a fixed layout, written by user space and read by the walk in [`crate::step`].
//! This file neither reads `.eh_frame` nor walks.
//!
//! A table belongs to one executable segment of one image and knows addresses only relative to the segment's start,
//! so all processes share it. Three lookups find the rule for an address: the process's mapping (binary search), the
//! mapping's page entry (an index), the row (binary search among the page's rows).

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Rows of one value of the row map: 64 KiB. One array element is one kernel copy, measured at 12 µs.
pub const ROWS_PER_CHUNK: u32 = 8192;
/// Page entries of one value of the page map: 16 KiB, the index of 1 MiB of text.
pub const PAGES_PER_CHUNK: u32 = 4096;
/// Values of the row map unless configured otherwise: 1 M rows in 8 MiB of kernel memory. A 24 MB program has about
/// 365,000 rows, a usual tokio process with libc and vdso 40,000.
pub const ROW_CHUNKS_MAX: u32 = 128;
/// Values of the page map unless configured otherwise: the index of 128 MiB of text in 2 MiB of kernel memory.
pub const PAGE_CHUNKS_MAX: u32 = 128;
/// Bytes of text that one page entry covers, as a power of two. In 24 MB of Rust text a page of 256 bytes has nine
/// rows on average, so the search in it takes three or four steps.
pub const PAGE_SHIFT: u32 = 8;
/// Most rows that one page entry can have to look at: the row in force at the page's start, and one for each later
/// byte. A page entry stores the number less one, so the most is expressible.
pub const ROWS_PER_PAGE_MAX: u32 = 1 << PAGE_SHIFT;
/// Row numbers are below this: they have 24 bits in a page entry.
pub const ROW_NUMBERS_MAX: u32 = 1 << 24;
/// Mappings of executable code that are known of one process. A static program has two, a usual one five to ten; each
/// library adds one. A power of two, so that an index can be masked.
pub const MAPPINGS_MAX: usize = 128;
/// Processes whose mappings are known at once; each costs 4 KiB of kernel memory when present.
pub const MAPPED_PROCESSES_MAX: u32 = 1 << 12;

/// Kinds of x86-64 rows, each with its formula. `o` is [`Row::offset`] times 8; the return address is at CFA − 8
/// unless said otherwise, and the caller's rsp is CFA.
pub mod kind {
    /// No entry describes this address: the walk tries the frame pointer.
    pub const NONE: u8 = 0;
    /// CFA = rsp + o.
    pub const STACK_POINTER: u8 = 1;
    /// CFA = rbp + o.
    pub const FRAME_POINTER: u8 = 2;
    /// The return address is undefined: the thread begins here.
    pub const END: u8 = 3;
    /// A procedure linkage table: CFA = rsp + 8 + (8 if (pc & 15) >= [`super::Row::offset`], else 0). Linkers emit
    /// this as one DWARF expression (`elf_x86_64_eh_frame_plt` in binutils' `bfd/elf64-x86-64.c`).
    pub const LINKAGE: u8 = 4;
    /// The kernel's signal frame (`struct rt_sigframe`, `arch/x86/include/asm/sigframe.h`): rsp is the address of a
    /// `ucontext_t`; rbp, rsp and rip are in its `uc_mcontext`.
    pub const SIGNAL: u8 = 5;
    /// A rule that no other kind expresses: the walk stops.
    pub const UNSUPPORTED: u8 = 6;
}

/// [`Row::frame_pointer`]: the caller's rbp is this frame's.
pub const FRAME_POINTER_SAME: u8 = 0;
/// [`Row::frame_pointer`]: the caller's rbp can't be known.
pub const FRAME_POINTER_LOST: u8 = 255;

/// From rsp in a signal frame (a `ucontext_t`) to `uc_mcontext`'s rbp: `uc_flags`, `uc_link`, `uc_stack` take 40
/// bytes, r8–r15, rdi and rsi 80 (`struct sigcontext_64`, `arch/x86/include/uapi/asm/sigcontext.h`).
pub const SIGNAL_CONTEXT_OFFSET: u64 = 120;
/// Words read from there: rbp, rbx, rdx, rax, rcx, rsp, rip.
pub const SIGNAL_CONTEXT_WORDS: usize = 7;

/// One rule: how to leave the frame of the addresses from `pc` up to the next row's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct Row {
    /// First address, relative to the segment's start. Segments are cut at 4 GiB.
    pub pc: u32,
    /// One of [`kind`].
    pub kind: u8,
    /// Where the caller's rbp is: [`FRAME_POINTER_SAME`], [`FRAME_POINTER_LOST`], else `k`: at CFA − 8·k.
    pub frame_pointer: u8,
    /// Operand of the kind, in units of 8 bytes (of one byte for [`kind::LINKAGE`]).
    pub offset: u16,
}

/// The entry of the page index for 256 bytes of text: which rows may hold for an address in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(transparent)]
pub struct Page(pub u32);

impl Page {
    /// Rows `row` to `row + rows_len - 1`, all in one chunk. `row` is below [`ROW_NUMBERS_MAX`], `rows_len` between 1
    /// and [`ROWS_PER_PAGE_MAX`]; a greater number is cut to that.
    #[must_use]
    pub const fn new(row: u32, rows_len: u32) -> Self {
        let last = rows_len.saturating_sub(1);
        Self(row << 8 | if last > 0xff { 0xff } else { last })
    }

    /// The row in force at the page's start.
    #[must_use]
    pub const fn row(self) -> u32 {
        self.0 >> 8
    }

    /// How many rows to look at, 1 to [`ROWS_PER_PAGE_MAX`].
    #[must_use]
    pub const fn rows_len(self) -> u32 {
        (self.0 & 0xff) + 1
    }
}

/// A range of a process's addresses with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct Mapping {
    /// First address in the process.
    pub start: u64,
    /// What is mapped at `start`: an address there is file offset `address - start + file_offset`.
    pub file_offset: u64,
    /// Bytes mapped.
    pub len: u32,
    /// What is mapped at `start`, relative to the segment's start.
    pub relative: u32,
    /// Page entry of the segment's start.
    pub page: u32,
    /// Number of the image, as in a cookie.
    pub image: u32,
}

/// The mappings of a process (key: tgid).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct ProcessMappings {
    /// How many of `mappings` are set, at most [`MAPPINGS_MAX`].
    pub len: u32,
    /// Changes whenever the mappings or a table they refer to change, so that a remembered walk is dropped.
    pub generation: u32,
    /// In ascending order of `start`, without overlaps.
    pub mappings: [Mapping; MAPPINGS_MAX],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_back_its_rows_at_both_bounds() {
        for row in [0, 1, 8191, ROW_NUMBERS_MAX - 1] {
            for rows_len in [1, 2, 255, 256] {
                let page = Page::new(row, rows_len);
                assert_eq!((page.row(), page.rows_len()), (row, rows_len));
            }
        }
        assert_eq!(Page::new(3, 257).rows_len(), 256);
        assert_eq!(Page::new(3, 0).rows_len(), 1);
    }

    #[test]
    fn layouts_have_the_size_that_the_maps_are_made_for() {
        assert_eq!(size_of::<Row>(), 8);
        assert_eq!(size_of::<Page>(), 4);
        assert_eq!(size_of::<Mapping>(), 32);
        assert_eq!(size_of::<ProcessMappings>(), 8 + 32 * MAPPINGS_MAX);
        const { assert!(ROW_CHUNKS_MAX * ROWS_PER_CHUNK <= ROW_NUMBERS_MAX) };
        const { assert!(MAPPINGS_MAX.is_power_of_two()) };
    }
}
