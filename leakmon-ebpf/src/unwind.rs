//! The user stack at a birth, stored once under its hash.
//!
//! In: the registers at a probe site. Out: a key in `STACKS`. The site's own address is always the first frame. By frame
//! pointers for now: code built without them yields the site and little else.

use crate::{
    atomic, emit,
    maps::{SCRATCH, SCRATCH_SLOTS, STACKS, Scratch, walk_stacks},
};
use aya_ebpf::{
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::generated::bpf_get_stack,
    programs::ProbeContext,
};
use core::mem::size_of;
use leakmon_ebpf::abi::{Cookie, FRAMES_MAX, Loss, Stack, WalkEnd};

/// Odd constants of xxHash64 (its primes 1 and 2): they spread the bits of an address over the hash.
const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// Walks the stack, stores it where it is new, and returns its key.
#[inline(always)]
pub fn stack(ctx: &ProbeContext, cookie: Cookie) -> u64 {
    if walk_stacks() == 0 {
        return site_alone(cookie);
    }
    let Some(scratch) = take_scratch() else {
        emit::lose(Loss::ScratchBusy);
        return site_alone(cookie);
    };
    let stack = unsafe { &raw mut (*scratch).stack };
    let id = walk(ctx, cookie, stack);
    let stored = store(id, stack);
    release(scratch);
    if stored {
        return id;
    }
    emit::lose(Loss::StacksFull);
    site_alone(cookie)
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

/// Fills `stack` and returns its hash, the site included: two sites never share a stack.
#[inline(always)]
fn walk(ctx: &ProbeContext, cookie: Cookie, stack: *mut Stack) -> u64 {
    unsafe {
        (*stack).cookie = cookie.0;
        (*stack).walk_end = WalkEnd::FramePointer as u32;
        (*stack).frames[0] = (*ctx.regs).rip;
        let size = size_of::<[u64; FRAMES_MAX]>() as u32;
        let frames = (&raw mut (*stack).frames).cast();
        let bytes = bpf_get_stack(ctx.regs.cast(), frames, size, u64::from(BPF_F_USER_STACK));
        let len = if bytes >= 8 { (bytes as usize) / 8 } else { 1 };
        (*stack).frames_len = len as u32;
        let mut hash = mix(PRIME_1, cookie.0);
        let mut index = 0;
        while index < FRAMES_MAX {
            if index >= len {
                break;
            }
            hash = mix(hash, (*stack).frames[index]);
            index += 1;
        }
        hash
    }
}

/// Stores a stack once. False where the table is full.
#[inline(always)]
fn store(id: u64, stack: *const Stack) -> bool {
    if STACKS.get_ptr(id).is_some() {
        return true;
    }
    let truncated = unsafe { (*stack).walk_end } != WalkEnd::Root as u32;
    let stored = STACKS.insert(id, unsafe { &*stack }, u64::from(BPF_NOEXIST)).is_ok() || STACKS.get_ptr(id).is_some();
    if stored && truncated {
        emit::lose(Loss::StackTruncated);
    }
    stored
}

/// Takes one of this processor's slots; a preempted holder keeps its own.
#[inline(always)]
fn take_scratch() -> Option<*mut Scratch> {
    let mut slot = 0;
    while slot < SCRATCH_SLOTS {
        let scratch = SCRATCH.get_ptr_mut(slot)?;
        if unsafe { atomic::exchange(&raw mut (*scratch).busy, 1) } == 0 {
            return Some(scratch);
        }
        slot += 1;
    }
    None
}

#[inline(always)]
fn release(scratch: *mut Scratch) {
    unsafe { atomic::exchange(&raw mut (*scratch).busy, 0) };
}
