//! The walk of the BPF program, in user space: the same step over the same tables.
//!
//! In: an arena, a process's mappings, a thread's registers, a way to read its memory. Out: its stack. It reads no
//! memory by itself.

use leakmon_ebpf::abi::{FRAMES_MAX, WalkEnd};
use leakmon_ebpf::rows::{MAPPINGS_MAX, Mapping, PAGES_PER_CHUNK, Page, ProcessMappings, Row, SIGNAL_CONTEXT_WORDS};
use leakmon_ebpf::step::{Source, Walk, step};

use super::arena::Arena;

/// The registers that a walk begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
}

/// A walked stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkedStack {
    /// Addresses, innermost first: the instruction pointer, then return addresses. At most [`FRAMES_MAX`].
    pub frames: Vec<u64>,
    /// Why the walk stopped.
    pub end: WalkEnd,
    /// Frames left by the frame pointer, for want of a table.
    pub by_frame_pointer: u32,
    /// Every word of memory that the walk depended on, in order: address and value. The walk is a function of its
    /// registers, the tables, the mappings and these.
    pub words: Vec<(u64, u64)>,
}

/// Walks a stack. `read` gives the word at an address of the process, `None` where there is none.
pub fn walk(
    arena: &Arena,
    mappings: &ProcessMappings,
    registers: Registers,
    read: impl FnMut(u64) -> Option<u64>,
) -> WalkedStack {
    let mut source = Process {
        arena,
        mappings,
        read,
        frames: Vec::new(),
        words: Vec::new(),
    };
    let mut state = Walk::new(registers.pc, registers.sp, registers.bp);
    for _ in 0..=FRAMES_MAX {
        if !step(&mut state, &mut source) {
            break;
        }
    }
    let end = [
        WalkEnd::Root,
        WalkEnd::FramePointer,
        WalkEnd::BadRead,
        WalkEnd::TooDeep,
        WalkEnd::NotWalked,
        WalkEnd::NoTable,
        WalkEnd::Unsupported,
    ];
    WalkedStack {
        frames: source.frames,
        end: end
            .into_iter()
            .find(|&end| end as u32 == state.end)
            .unwrap_or(WalkEnd::BadRead),
        by_frame_pointer: state.by_frame_pointer,
        words: source.words,
    }
}

struct Process<'a, R> {
    arena: &'a Arena,
    mappings: &'a ProcessMappings,
    read: R,
    frames: Vec<u64>,
    words: Vec<(u64, u64)>,
}

impl<'a, R: FnMut(u64) -> Option<u64>> Source for Process<'a, R> {
    type Rows = &'a [Row];

    fn mappings_len(&self) -> u32 {
        self.mappings.len.min(MAPPINGS_MAX as u32)
    }

    fn mapping_start(&self, index: u32) -> u64 {
        self.mapping(index).start
    }

    fn mapping(&self, index: u32) -> Mapping {
        self.mappings.mappings[index as usize % MAPPINGS_MAX]
    }

    fn page(&self, chunk: u32, index: u32) -> Option<Page> {
        self.arena.page(chunk.checked_mul(PAGES_PER_CHUNK)?.checked_add(index)?)
    }

    fn rows(&self, chunk: u32) -> Option<&'a [Row]> {
        self.arena.row_chunk(chunk)
    }

    fn row_start(&self, rows: &'a [Row], index: u32) -> u32 {
        self.row(rows, index).pc
    }

    fn row(&self, rows: &'a [Row], index: u32) -> Row {
        rows[index as usize % rows.len()]
    }

    fn pair(&mut self, address: u64) -> Option<(u64, u64)> {
        Some((self.word(address)?, self.word(address.wrapping_add(8))?))
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        (self.read)(address)
    }

    fn signal_context(&mut self, address: u64) -> Option<[u64; SIGNAL_CONTEXT_WORDS]> {
        let mut context = [0; SIGNAL_CONTEXT_WORDS];
        for (word, offset) in context.iter_mut().zip((0..).step_by(8)) {
            *word = self.word(address.wrapping_add(offset))?;
            self.words.push((address.wrapping_add(offset), *word));
        }
        Some(context)
    }

    fn depend(&mut self, address: u64, word: u64) {
        self.words.push((address, word));
    }

    fn depend_on_frame_pointer(&mut self) {
        // The registers of a walk are its caller's to compare.
    }

    fn depend_on_more(&mut self) {
        // The signal frame's words, which are kept where they are read.
    }

    fn keep(&mut self, _index: u32, address: u64) {
        self.frames.push(address);
    }
}
