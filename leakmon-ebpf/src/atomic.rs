//! Instructions that LLVM would not emit as they are needed: atomic ones that `core` does not offer for BPF (its target has no
//! compare-and-swap, so no `fetch_*`).
//!
//! In: a pointer into a map value. Out: the old value, where there is one. The instructions are BPF's own (`BPF_ATOMIC`).

use core::arch::asm;

/// Adds to a counter that several processors share.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount, options(nostack)) }
}

/// Puts `value` in place and returns what was there.
#[inline(always)]
pub unsafe fn exchange(place: *mut u64, mut value: u64) -> u64 {
    unsafe { asm!("{1} = xchg_64({0} + 0, {1})", in(reg) place, inout(reg) value, options(nostack)) }
    value
}

/// Puts `new` in place where `old` is there, and returns what was there.
#[inline(always)]
pub unsafe fn compare_exchange(place: *mut u64, old: u64, new: u64) -> u64 {
    let found: u64;
    // The instruction compares with r0, and leaves what it found there.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({0} + 0, r0, {1})",
            in(reg) place,
            in(reg) new,
            inout("r0") old => found,
            options(nostack)
        );
    }
    found
}

/// `index & MASK`, in a form that LLVM can't reason away: the verifier wants to see it right before the access.
#[inline(always)]
pub fn masked<const MASK: u64>(index: u32) -> usize {
    let mut masked = u64::from(index);
    unsafe { asm!("{0} &= {1}", inout(reg) masked, const MASK, options(pure, nomem, nostack, preserves_flags)) };
    masked as usize
}
