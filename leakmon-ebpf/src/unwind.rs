//! The user stack at a birth, stored once under its hash.
//!
//! In: registers at a probe site or at a system call, the process's mappings and their unwind tables. Out: a key in `STACKS`. The
//! registers' own address is always the first frame. The walk itself is [`leakmon_ebpf::step`]; here it gets its memory.

use crate::{
    atomic::{exchange, masked},
    emit,
    maps::{
        MAPPINGS, PAGES, ROWS, RowChunk, SCRATCH, SCRATCH_SLOTS, STACKS, Scratch, WINDOW_WORDS, remember_walks,
        walk_stacks,
    },
    memo::{self, Memo, Start},
    target::{self, Current},
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_loop, bpf_probe_read_user},
    programs::ProbeContext,
};
use core::{ffi::c_void, mem::size_of};
use leakmon_ebpf::{
    abi::{Cookie, FRAMES_MAX, Loss, Stack, WalkEnd},
    rows::{MAPPINGS_MAX, Mapping, PAGES_PER_CHUNK, Page, ProcessMappings, ROWS_PER_CHUNK, Row, SIGNAL_CONTEXT_WORDS},
    step::{Source, Walk, step},
};

/// Odd constants of xxHash64 (its primes 1 and 2): they spread the bits of an address over the hash.
const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// Where the index of a frame ends: the next power of two, less one, so that it can be masked.
const FRAME_MASK: u64 = FRAMES_MAX as u64;
const MAPPING_MASK: u64 = MAPPINGS_MAX as u64 - 1;
const PAGE_MASK: u64 = PAGES_PER_CHUNK as u64 - 1;
const ROW_MASK: u64 = ROWS_PER_CHUNK as u64 - 1;
const WINDOW_MASK: u64 = WINDOW_WORDS as u64 - 1;

/// Where a walk begins.
#[derive(Clone, Copy)]
pub struct Registers {
    pub pc: u64,
    pub sp: u64,
    pub bp: u64,
    /// Not zero where the thread is in a system call: then the first frame may be code without a table, whose return
    /// address is on top of the stack.
    pub in_system_call: u32,
}

/// Walks the stack of a thread at a probe site, stores it where it is new, and returns its key.
#[inline(always)]
pub fn at_site(ctx: &ProbeContext, cookie: Cookie, current: Current, now_ns: u64) -> u64 {
    let registers = unsafe {
        Registers {
            pc: (*ctx.regs).rip,
            sp: (*ctx.regs).rsp,
            bp: (*ctx.regs).rbp,
            in_system_call: 0,
        }
    };
    stack(registers, cookie, current, now_ns)
}

/// Walks a stack, stores it where it is new, and returns its key.
#[inline(always)]
pub fn stack(registers: Registers, cookie: Cookie, current: Current, now_ns: u64) -> u64 {
    if walk_stacks() == 0 {
        return site_alone(cookie);
    }
    let Some(scratch) = take_scratch() else {
        emit::lose(Loss::ScratchBusy);
        return site_alone(cookie);
    };
    let stored = remembered(registers, cookie, current, scratch);
    if unsafe { (*scratch).stack.walk_end } == WalkEnd::NoTable as u32 {
        target::ask_for_mappings(current, now_ns);
    }
    release(scratch);
    match stored {
        Some(id) => id,
        None => {
            emit::lose(Loss::StacksFull);
            site_alone(cookie)
        }
    }
}

/// The stack's key, from memory where the last walk still holds. `None` where the table of stacks is full.
#[inline(always)]
fn remembered(registers: Registers, cookie: Cookie, current: Current, scratch: *mut Scratch) -> Option<u64> {
    let Some(mappings) = MAPPINGS.get_ptr(current.tgid) else {
        let id = site_only(registers, cookie, scratch);
        return store(id, unsafe { &raw const (*scratch).stack }).then_some(id);
    };
    let start = unsafe {
        Start {
            target: current.target,
            cookie: cookie.0,
            sp: registers.sp,
            bp: registers.bp,
            generation: u64::from((*mappings).generation),
        }
    };
    // Threads are started seldom, and from one address: only sites are worth remembering.
    let memo = if remember_walks() == 0 || registers.in_system_call != 0 {
        None
    } else {
        memo::take(&start)
    };
    let Some(memo) = memo else {
        let id = walk(registers, cookie, scratch, mappings, None);
        return store(id, unsafe { &raw const (*scratch).stack }).then_some(id);
    };
    if let Some(id) = memo::recall(memo, &start, scratch) {
        unsafe { (*scratch).stack.walk_end = WalkEnd::Root as u32 };
        memo::release(memo);
        return Some(id);
    }
    memo::begin(memo, &start);
    let id = walk(registers, cookie, scratch, mappings, Some(memo));
    let stored = store(id, unsafe { &raw const (*scratch).stack });
    if stored {
        memo::finish(memo, unsafe { (*scratch).stack.walk_end }, id);
    }
    memo::release(memo);
    stored.then_some(id)
}

/// The key of a birth whose stack is not stored: user space knows the site from the cookie in `COUNTS`.
#[inline(always)]
fn site_alone(cookie: Cookie) -> u64 {
    mix(PRIME_2, cookie.0)
}

#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word.wrapping_mul(PRIME_2))
        .rotate_left(31)
        .wrapping_mul(PRIME_1)
}

/// What a step of the walk reads from.
#[repr(C)]
struct Memory {
    scratch: *mut Scratch,
    mappings: *const ProcessMappings,
    /// Where the walk is remembered, if it is.
    memo: Option<*mut Memo>,
    hash: u64,
}

/// A stack of which nothing but the site is known, since the process's mappings are not.
#[inline(always)]
fn site_only(registers: Registers, cookie: Cookie, scratch: *mut Scratch) -> u64 {
    unsafe {
        let address = registers.pc;
        (*scratch).stack.cookie = cookie.0;
        (*scratch).stack.frames[0] = address;
        (*scratch).stack.frames_len = 1;
        (*scratch).stack.walk_end = WalkEnd::NoTable as u32;
        emit::lose(Loss::WalkNoTable);
        mix(mix(PRIME_1, cookie.0), address)
    }
}

/// Fills the scratch's stack and returns its hash, the site included: two sites never share a stack.
#[inline(always)]
fn walk(
    registers: Registers,
    cookie: Cookie,
    scratch: *mut Scratch,
    mappings: *const ProcessMappings,
    memo: Option<*mut Memo>,
) -> u64 {
    unsafe {
        (*scratch).walk = Walk::new(registers.pc, registers.sp, registers.bp);
        (*scratch).walk.in_system_call = registers.in_system_call;
        // No word is at the top of the address space, so the first read fills the window.
        (*scratch).window_base = u64::MAX;
        (*scratch).stack.cookie = cookie.0;
        let hash = mix(PRIME_1, cookie.0);
        let mut memory = Memory {
            scratch,
            mappings,
            memo,
            hash,
        };
        // One more than there are frames: the last step says that the stack is too deep.
        bpf_loop(FRAMES_MAX as u32 + 1, visit as *mut c_void, (&raw mut memory).cast(), 0);
        (*scratch).stack.frames_len = (*scratch).walk.frames_len;
        (*scratch).stack.walk_end = (*scratch).walk.end;
        count_end((*scratch).walk.end);
        memory.hash
    }
}

/// Counts a walk that ended early by its cause.
#[inline(always)]
fn count_end(end: u32) {
    if end == WalkEnd::NoTable as u32 {
        emit::lose(Loss::WalkNoTable);
    } else if end == WalkEnd::FramePointer as u32 {
        emit::lose(Loss::WalkFramePointer);
    } else if end == WalkEnd::BadRead as u32 {
        emit::lose(Loss::WalkBadRead);
    } else if end == WalkEnd::TooDeep as u32 {
        emit::lose(Loss::WalkTooDeep);
    } else if end == WalkEnd::Unsupported as u32 {
        emit::lose(Loss::WalkUnsupported);
    }
}

/// One step of `bpf_loop`: 0 goes on, 1 ends.
unsafe extern "C" fn visit(_step: u64, memory: *mut Memory) -> i64 {
    unsafe {
        let walk = &mut (*(*memory).scratch).walk;
        i64::from(!step(walk, &mut *memory))
    }
}

impl Source for Memory {
    type Rows = *const RowChunk;

    #[inline(always)]
    fn mappings_len(&self) -> u32 {
        unsafe { (*self.mappings).len }
    }

    #[inline(always)]
    fn mapping_start(&self, index: u32) -> u64 {
        unsafe {
            (*self.mappings)
                .mappings
                .get_unchecked(masked::<MAPPING_MASK>(index))
                .start
        }
    }

    #[inline(always)]
    fn mapping(&self, index: u32) -> Mapping {
        unsafe { *(*self.mappings).mappings.get_unchecked(masked::<MAPPING_MASK>(index)) }
    }

    #[inline(always)]
    fn page(&self, chunk: u32, index: u32) -> Option<Page> {
        let pages = PAGES.get_ptr(chunk)?;
        Some(unsafe { *(*pages).0.get_unchecked(masked::<PAGE_MASK>(index)) })
    }

    #[inline(always)]
    fn rows(&self, chunk: u32) -> Option<*const RowChunk> {
        ROWS.get_ptr(chunk)
    }

    #[inline(always)]
    fn row_start(&self, rows: *const RowChunk, index: u32) -> u32 {
        unsafe { (*rows).0.get_unchecked(masked::<ROW_MASK>(index)).pc }
    }

    #[inline(always)]
    fn row(&self, rows: *const RowChunk, index: u32) -> Row {
        unsafe { *(*rows).0.get_unchecked(masked::<ROW_MASK>(index)) }
    }

    #[inline(always)]
    fn pair(&mut self, address: u64) -> Option<(u64, u64)> {
        unsafe {
            let scratch = self.scratch;
            let within = address.wrapping_sub((*scratch).window_base);
            let mut word = within >> 3;
            // Below the window's start `within` has wrapped, so it is beyond the end as well.
            if within & 7 != 0 || word > WINDOW_WORDS as u64 - 2 {
                word = fill_window(scratch, address)?;
            }
            let window = (&raw const (*scratch).window).cast::<u64>();
            let first = *window.add(masked::<WINDOW_MASK>(word as u32));
            Some((first, *window.add(masked::<WINDOW_MASK>(word as u32 + 1))))
        }
    }

    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        unsafe {
            let words = &raw mut (*self.scratch).words;
            read(words.cast(), 8, address).then(|| (*words)[0])
        }
    }

    #[inline(always)]
    fn signal_context(&mut self, address: u64) -> Option<[u64; SIGNAL_CONTEXT_WORDS]> {
        unsafe {
            let words = &raw mut (*self.scratch).words;
            read(words.cast(), size_of::<[u64; SIGNAL_CONTEXT_WORDS]>() as u32, address).then(|| *words)
        }
    }

    #[inline(always)]
    fn depend(&mut self, address: u64, word: u64) {
        if let Some(memo) = self.memo {
            memo::depend(memo, address, word);
        }
    }

    #[inline(always)]
    fn depend_on_frame_pointer(&mut self) {
        if let Some(memo) = self.memo {
            memo::depend_on_frame_pointer(memo);
        }
    }

    #[inline(always)]
    fn depend_on_more(&mut self) {
        if let Some(memo) = self.memo {
            memo::forget(memo);
        }
    }

    #[inline(always)]
    fn keep(&mut self, index: u32, address: u64) {
        self.hash = mix(self.hash, address);
        unsafe {
            let frames = (&raw mut (*self.scratch).stack.frames).cast::<u64>();
            let index = masked::<FRAME_MASK>(index);
            // The mask alone leaves one index too many.
            if index < FRAMES_MAX {
                *frames.add(index) = address;
            }
        }
    }
}

/// Reads the window from `address` on, or, at the upper end of the stack, the two words there. Returns their index.
#[inline(always)]
unsafe fn fill_window(scratch: *mut Scratch, address: u64) -> Option<u64> {
    unsafe {
        let window = &raw mut (*scratch).window;
        if read(window.cast(), size_of::<[u64; WINDOW_WORDS]>() as u32, address) {
            (*scratch).window_base = address;
            return Some(0);
        }
        (*scratch).window_base = u64::MAX;
        read(window.cast(), 16, address).then_some(0)
    }
}

#[inline(always)]
unsafe fn read(to: *mut c_void, bytes: u32, address: u64) -> bool {
    unsafe { bpf_probe_read_user(to, bytes, address as *const c_void) == 0 }
}

/// Stores a stack once. False where the table is full.
#[inline(always)]
fn store(id: u64, stack: *const Stack) -> bool {
    if STACKS.get_ptr(id).is_some() {
        return true;
    }
    STACKS.insert(id, unsafe { &*stack }, u64::from(BPF_NOEXIST)).is_ok() || STACKS.get_ptr(id).is_some()
}

/// Takes one of this processor's slots; a preempted holder keeps its own.
#[inline(always)]
fn take_scratch() -> Option<*mut Scratch> {
    let mut slot = 0;
    while slot < SCRATCH_SLOTS {
        let scratch = SCRATCH.get_ptr_mut(slot)?;
        if unsafe { exchange(&raw mut (*scratch).busy, 1) } == 0 {
            return Some(scratch);
        }
        slot += 1;
    }
    None
}

#[inline(always)]
fn release(scratch: *mut Scratch) {
    unsafe { exchange(&raw mut (*scratch).busy, 0) };
}
