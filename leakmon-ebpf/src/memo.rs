//! The last walk of a stack, remembered: where nothing on which it depended has changed, it needs no second walk.
//!
//! In: registers at a site, and the words that a walk depended on ([`leakmon_ebpf::step::Source::depend`]). Out: the key of the
//! stack that was stored then. Sound by induction: site, target, registers and tables are equal, so the first word is read at the
//! same place; it is equal, so the second one is, and so on to the end. A walk that ended for any reason but these (a failed
//! read, a missing table) is not remembered.

use crate::{
    atomic::{exchange, masked},
    maps::{MEMO_BYTES, MEMO_SLOTS, MEMO_WORDS, MEMOS, Scratch},
};
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::ffi::c_void;
use leakmon_ebpf::abi::WalkEnd;

/// What a walk starts from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Start {
    pub target: u64,
    /// Of the site, and so its address too.
    pub cookie: u64,
    pub sp: u64,
    pub bp: u64,
    /// Of the process's mappings and their tables.
    pub generation: u64,
}

/// A remembered walk.
#[repr(C)]
pub struct Memo {
    /// Not zero while somebody uses the slot.
    busy: u64,
    start: Start,
    /// Not zero where `start.bp` matters.
    bp_used: u64,
    /// Key in `STACKS`; 0 while nothing is remembered.
    stack: u64,
    /// How many words are set.
    words_len: u32,
    /// Bytes above `sp` that hold them all.
    span: u32,
    /// Where each word is, in words above `sp`.
    places: [u16; MEMO_WORDS],
    /// What each word was.
    words: [u64; MEMO_WORDS],
}

const SLOT_MASK: u64 = MEMO_SLOTS as u64 - 1;
const WORD_MASK: u64 = MEMO_WORDS as u64 - 1;
const PLACE_MASK: u64 = MEMO_BYTES as u64 / 8 - 1;
const SPAN_MASK: u64 = MEMO_BYTES as u64 - 1;

/// Takes the slot for a start, unless it is in use.
#[inline(always)]
pub fn take(start: &Start) -> Option<*mut Memo> {
    // Stacks differ in their upper bits, depths in the lower ones.
    let spread = start.sp ^ start.sp >> 12 ^ start.cookie >> 16;
    let memo = MEMOS.get_ptr_mut(masked::<SLOT_MASK>((spread >> 4) as u32) as u32)?;
    unsafe { (exchange(&raw mut (*memo).busy, 1) == 0).then_some(memo) }
}

#[inline(always)]
pub fn release(memo: *mut Memo) {
    unsafe { exchange(&raw mut (*memo).busy, 0) };
}

/// The stack that a walk from `start` would give, if the last one still holds.
#[inline(always)]
pub fn recall(memo: *const Memo, start: &Start, scratch: *mut Scratch) -> Option<u64> {
    unsafe {
        let known = &(*memo).start;
        let same = known.sp == start.sp
            && (known.bp == start.bp || (*memo).bp_used == 0)
            && known.cookie == start.cookie
            && known.target == start.target
            && known.generation == start.generation;
        if !same || (*memo).stack == 0 {
            return None;
        }
        let memory = &raw mut (*scratch).memory;
        let span = masked::<SPAN_MASK>((*memo).span) as u32;
        if bpf_probe_read_user(memory.cast(), span, start.sp as *const c_void) != 0 {
            return None;
        }
        let len = (*memo).words_len;
        let mut index = 0;
        while index < MEMO_WORDS as u32 {
            if index >= len {
                break;
            }
            let at = masked::<WORD_MASK>(index);
            let place = *(&raw const (*memo).places).cast::<u16>().add(at);
            let now = *memory.cast::<u64>().add(masked::<PLACE_MASK>(u32::from(place)));
            if now != *(&raw const (*memo).words).cast::<u64>().add(at) {
                return None;
            }
            index += 1;
        }
        Some((*memo).stack)
    }
}

/// Begins to remember a walk.
#[inline(always)]
pub fn begin(memo: *mut Memo, start: &Start) {
    unsafe {
        (*memo).stack = 0;
        (*memo).start = *start;
        (*memo).bp_used = 0;
        (*memo).words_len = 0;
        (*memo).span = 0;
    }
}

/// Remembers a word on which the walk depends. One too far up, or too many: the walk can't be remembered.
#[inline(always)]
pub fn depend(memo: *mut Memo, address: u64, word: u64) {
    unsafe {
        let above = address.wrapping_sub((*memo).start.sp);
        let len = (*memo).words_len;
        // Room for the span as well, which ends behind the word and must stay below the mask.
        if above & 7 != 0 || above > SPAN_MASK - 15 || len >= MEMO_WORDS as u32 {
            return forget(memo);
        }
        let at = masked::<WORD_MASK>(len);
        *(&raw mut (*memo).places).cast::<u16>().add(at) = (above >> 3) as u16;
        *(&raw mut (*memo).words).cast::<u64>().add(at) = word;
        (*memo).words_len = len + 1;
        let end = above as u32 + 8;
        if end > (*memo).span {
            (*memo).span = end;
        }
    }
}

/// The walk depends on the frame pointer that it began with.
#[inline(always)]
pub fn depend_on_frame_pointer(memo: *mut Memo) {
    unsafe { (*memo).bp_used = 1 };
}

/// This walk can't be remembered.
#[inline(always)]
pub fn forget(memo: *mut Memo) {
    unsafe { (*memo).words_len = u32::MAX };
}

/// The walk is over and its stack is stored.
#[inline(always)]
pub fn finish(memo: *mut Memo, end: u32, stack: u64) {
    unsafe {
        let complete = end == WalkEnd::Root as u32 || end == WalkEnd::TooDeep as u32;
        if complete && (*memo).words_len <= MEMO_WORDS as u32 {
            (*memo).stack = stack;
        }
    }
}
