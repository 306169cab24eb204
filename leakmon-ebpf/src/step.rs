//! The stack walk by unwind tables: one frame a step, the same code in the BPF program and in user space's tests.
//!
//! In: registers, and a [`Source`] that reads tables and the stack. Out: addresses, innermost first, and why the walk
//! ended. It reads no map and no memory itself, so it is tested without a kernel. x86-64; another architecture needs
//! its own row kinds and its own `leave`.

use crate::abi::{FRAMES_MAX, WalkEnd};
use crate::rows::{
    FRAME_POINTER_LOST, FRAME_POINTER_SAME, MAPPINGS_MAX, Mapping, PAGE_SHIFT, PAGES_PER_CHUNK, Page, ROWS_PER_CHUNK,
    Row, SIGNAL_CONTEXT_OFFSET, SIGNAL_CONTEXT_WORDS, kind,
};

/// Halvings that reduce [`crate::rows::ROWS_PER_PAGE_MAX`] candidates to one.
const ROW_HALVINGS: u32 = 8;
/// Halvings that reduce [`MAPPINGS_MAX`] candidates to one.
const MAPPING_HALVINGS: u32 = MAPPINGS_MAX.ilog2();
/// A frame pointer further above the stack pointer than this is none: 1 MiB, half of Rust's default thread stack.
const FRAME_BYTES_MAX: u64 = 1 << 20;
/// No code is below the first page (`mmap_min_addr` is at least this by default).
const CODE_MIN: u64 = 4096;
/// User addresses are below this with five-level page tables (`Documentation/arch/x86/x86_64/mm.rst`).
const CODE_MAX: u64 = 1 << 56;

/// [`Walk::bp_place`]: the register that the walk began with.
pub const AT_START: u64 = 0;
/// [`Walk::bp_place`]: it is lost. No saved register is at an odd address.
pub const NOWHERE: u64 = 1;

/// Where a walk reads tables and stack from, and leaves its frames.
///
/// Indices are below the stated bound; an implementation for BPF masks them all the same, for the verifier.
pub trait Source {
    /// Handle of one chunk of rows.
    type Rows: Copy;

    /// How many mappings the process has.
    fn mappings_len(&self) -> u32;
    /// Start of mapping `index`, below [`MAPPINGS_MAX`].
    fn mapping_start(&self, index: u32) -> u64;
    /// Mapping `index`, below [`MAPPINGS_MAX`].
    fn mapping(&self, index: u32) -> Mapping;
    /// Page entry `index` (below [`PAGES_PER_CHUNK`]) of chunk `chunk`; `None` past the map's end.
    fn page(&self, chunk: u32, index: u32) -> Option<Page>;
    /// Chunk `chunk` of the rows; `None` past the map's end.
    fn rows(&self, chunk: u32) -> Option<Self::Rows>;
    /// Start of row `index`, below [`ROWS_PER_CHUNK`].
    fn row_start(&self, rows: Self::Rows, index: u32) -> u32;
    /// Row `index`, below [`ROWS_PER_CHUNK`].
    fn row(&self, rows: Self::Rows, index: u32) -> Row;
    /// The words at `address` and `address + 8`; `None` where they can't be read.
    fn pair(&mut self, address: u64) -> Option<(u64, u64)>;
    /// The word at `address`; `None` where it can't be read.
    fn word(&mut self, address: u64) -> Option<u64>;
    /// rbp, rbx, rdx, rax, rcx, rsp and rip of a signal frame; `None` where they can't be read.
    fn signal_context(&mut self, address: u64) -> Option<[u64; SIGNAL_CONTEXT_WORDS]>;
    /// Keeps frame `index`, below [`FRAMES_MAX`].
    fn keep(&mut self, index: u32, address: u64);
    /// Told of each word of the stack on which the walk's course depends, with its address: the same registers, tables and words
    /// give the same walk, since each address that is read depends on nothing but those before it.
    fn depend(&mut self, address: u64, word: u64);
    /// Told that the walk's course depends on the frame pointer that it began with. Most don't: compilers use rbp as any register.
    fn depend_on_frame_pointer(&mut self);
    /// Told that the walk depends on more than words of the stack.
    fn depend_on_more(&mut self);
}

/// The state between two steps.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Walk {
    /// Address of the frame to leave next.
    pub pc: u64,
    /// Stack pointer in that frame.
    pub sp: u64,
    /// Frame pointer in that frame.
    pub bp: u64,
    /// Where `bp` was read, [`AT_START`] or [`NOWHERE`].
    pub bp_place: u64,
    /// The mapping found last; most calls stay in it.
    pub mapping: Mapping,
    /// Frames kept.
    pub frames_len: u32,
    /// 1 if `pc` is a return address, whose call is the instruction before it; else 0.
    pub adjust: u32,
    /// Frames that were left by the frame pointer, for want of a table.
    pub by_frame_pointer: u32,
    /// [`WalkEnd`], once a step has returned `false`.
    pub end: u32,
    /// Not zero where the walk begins behind a system call instruction.
    pub in_system_call: u32,
}

impl Walk {
    /// A walk that begins at a thread's registers.
    #[must_use]
    pub const fn new(pc: u64, sp: u64, bp: u64) -> Self {
        Self {
            pc,
            sp,
            bp,
            bp_place: AT_START,
            mapping: Mapping {
                start: 0,
                file_offset: 0,
                len: 0,
                relative: 0,
                page: 0,
                image: 0,
            },
            frames_len: 0,
            adjust: 0,
            by_frame_pointer: 0,
            end: WalkEnd::TooDeep as u32,
            in_system_call: 0,
        }
    }

    #[inline(always)]
    fn stop(&mut self, end: WalkEnd) -> bool {
        self.end = end as u32;
        false
    }

    #[inline(always)]
    fn go_on(&mut self, pc: u64, sp: u64, adjust: u32) -> bool {
        self.pc = pc;
        self.sp = sp;
        self.adjust = adjust;
        true
    }
}

/// Keeps the current frame and moves to its caller. Returns whether there is one; if not, [`Walk::end`] says why.
///
/// At most [`FRAMES_MAX`] frames are kept: the next step ends the walk as [`WalkEnd::TooDeep`].
#[inline(always)]
pub fn step<S: Source>(walk: &mut Walk, source: &mut S) -> bool {
    let index = walk.frames_len;
    if index >= FRAMES_MAX as u32 {
        return walk.stop(WalkEnd::TooDeep);
    }
    source.keep(index, walk.pc);
    walk.frames_len = index + 1;
    let address = walk.pc.wrapping_sub(u64::from(walk.adjust));
    match find(walk, source, address) {
        Some(row) if row.kind != kind::NONE => leave(walk, source, address, row),
        _ if index == 0 && walk.in_system_call != 0 => leave_system_call(walk, source),
        _ => leave_by_frame_pointer(walk, source),
    }
}

/// The row for an address of the process.
#[inline(always)]
fn find<S: Source>(walk: &mut Walk, source: &S, address: u64) -> Option<Row> {
    let mut within = address.wrapping_sub(walk.mapping.start);
    if within >= u64::from(walk.mapping.len) {
        let mapping = find_mapping(source, address);
        within = address.wrapping_sub(mapping.start);
        if within >= u64::from(mapping.len) {
            return None;
        }
        walk.mapping = mapping;
    }
    let relative = (within as u32).wrapping_add(walk.mapping.relative);
    let page_index = walk.mapping.page.wrapping_add(relative >> PAGE_SHIFT);
    let page = source.page(page_index / PAGES_PER_CHUNK, page_index % PAGES_PER_CHUNK)?;
    let rows = source.rows(page.row() / ROWS_PER_CHUNK)?;
    let mut low = page.row() % ROWS_PER_CHUNK;
    let mut left = page.rows_len();
    let mut halving = 0;
    while halving < ROW_HALVINGS {
        if left <= 1 {
            break;
        }
        let half = left >> 1;
        let middle = (low + half) % ROWS_PER_CHUNK;
        if source.row_start(rows, middle) <= relative {
            low = middle;
        }
        left -= half;
        halving += 1;
    }
    Some(source.row(rows, low))
}

/// The last mapping that starts at or below `address`, or the first one.
#[inline(always)]
fn find_mapping<S: Source>(source: &S, address: u64) -> Mapping {
    let mut low = 0;
    let mut left = source.mappings_len();
    let mut halving = 0;
    while halving < MAPPING_HALVINGS {
        if left <= 1 {
            break;
        }
        let half = left >> 1;
        let middle = (low + half) % MAPPINGS_MAX as u32;
        if source.mapping_start(middle) <= address {
            low = middle;
        }
        left -= half;
        halving += 1;
    }
    source.mapping(low)
}

/// Moves to the caller by a row's rule.
#[inline(always)]
fn leave<S: Source>(walk: &mut Walk, source: &mut S, address: u64, row: Row) -> bool {
    let offset = u64::from(row.offset);
    let frame = match row.kind {
        kind::STACK_POINTER => walk.sp.wrapping_add(offset * 8),
        kind::FRAME_POINTER => {
            use_frame_pointer(walk, source);
            // A lost frame pointer is 0 (see below), and no frame is at 0.
            if walk.bp == 0 {
                return walk.stop(WalkEnd::Unsupported);
            }
            walk.bp.wrapping_add(offset * 8)
        }
        kind::LINKAGE => walk.sp.wrapping_add(if address & 15 >= offset { 16 } else { 8 }),
        kind::END => return walk.stop(WalkEnd::Root),
        kind::SIGNAL => {
            let Some(context) = source.signal_context(walk.sp.wrapping_add(SIGNAL_CONTEXT_OFFSET)) else {
                return walk.stop(WalkEnd::BadRead);
            };
            source.depend_on_more();
            walk.bp = context[0];
            walk.bp_place = walk.sp.wrapping_add(SIGNAL_CONTEXT_OFFSET);
            // Not a return address: the interrupted instruction itself.
            return walk.go_on(context[6], context[5], 0);
        }
        _ => return walk.stop(WalkEnd::Unsupported),
    };
    // Stacks grow down, so the caller's frame is above; this also bounds what a torn stack can do.
    if frame <= walk.sp {
        return walk.stop(WalkEnd::BadRead);
    }
    let Some((below, return_address)) = source.pair(frame.wrapping_sub(16)) else {
        return walk.stop(WalkEnd::BadRead);
    };
    source.depend(frame.wrapping_sub(8), return_address);
    match row.frame_pointer {
        FRAME_POINTER_SAME => {}
        FRAME_POINTER_LOST => {
            walk.bp = 0;
            walk.bp_place = NOWHERE;
        }
        // The usual place, `push rbp` first, is in the pair already.
        2 => {
            walk.bp = below;
            walk.bp_place = frame.wrapping_sub(16);
        }
        slot => {
            let place = frame.wrapping_sub(u64::from(slot) * 8);
            let Some(saved) = source.word(place) else {
                return walk.stop(WalkEnd::BadRead);
            };
            walk.bp = saved;
            walk.bp_place = place;
        }
    }
    // Some thread starts without unwind information push a zero instead.
    if return_address == 0 {
        return walk.stop(WalkEnd::Root);
    }
    walk.go_on(return_address, frame, 1)
}

/// Only here a saved frame pointer decides anything: until then it may hold whatever the function had in rbp.
#[inline(always)]
fn use_frame_pointer<S: Source>(walk: &Walk, source: &mut S) {
    if walk.bp_place == AT_START {
        source.depend_on_frame_pointer();
    } else if walk.bp_place != NOWHERE {
        source.depend(walk.bp_place, walk.bp);
    }
}

/// Moves to the caller of the function that made a system call, where no table covers it. C libraries end the unwind
/// information of `clone3` and `clone` before the system call, since the child has another stack behind it; what follows in the
/// parent is a plain `ret` (glibc 2.36, `sysdeps/unix/sysv/linux/x86_64/clone{,3}.S`; musl 1.2, `src/thread/x86_64/clone.s`).
#[inline(always)]
fn leave_system_call<S: Source>(walk: &mut Walk, source: &mut S) -> bool {
    let Some(return_address) = source.word(walk.sp) else {
        return walk.stop(WalkEnd::BadRead);
    };
    if !(CODE_MIN..CODE_MAX).contains(&return_address) {
        return walk.stop(WalkEnd::NoTable);
    }
    walk.go_on(return_address, walk.sp.wrapping_add(8), 1)
}

/// Moves to the caller by the chain of frame pointers, where no table covers the address.
#[inline(always)]
fn leave_by_frame_pointer<S: Source>(walk: &mut Walk, source: &mut S) -> bool {
    let end = if walk.by_frame_pointer == 0 {
        WalkEnd::NoTable
    } else {
        WalkEnd::FramePointer
    };
    let bp = walk.bp;
    use_frame_pointer(walk, source);
    // `push rbp` as a function's first instruction leaves rbp a multiple of 16 (psABI, 3.2.2).
    if bp < walk.sp || bp & 15 != 0 || bp - walk.sp > FRAME_BYTES_MAX {
        return walk.stop(end);
    }
    let Some((saved, return_address)) = source.pair(bp) else {
        return walk.stop(end);
    };
    source.depend(bp.wrapping_add(8), return_address);
    if !(CODE_MIN..CODE_MAX).contains(&return_address) {
        return walk.stop(end);
    }
    walk.bp = saved;
    walk.bp_place = bp;
    walk.by_frame_pointer += 1;
    walk.go_on(return_address, bp.wrapping_add(16), 1)
}
