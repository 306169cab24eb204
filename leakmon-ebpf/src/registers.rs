//! A probe site's registers.
//!
//! In: `pt_regs` at the hit and the cookie. Out: the header's address, and whether the hit counts. One function per
//! architecture; this is x86-64's.

use aya_ebpf::{bindings::pt_regs, programs::ProbeContext};
use core::ptr::read_volatile;
use leakmon_ebpf::abi::{Condition, Cookie};

/// The zero flag in `flags` (Intel SDM volume 1, 3.4.3).
const ZERO_FLAG: u64 = 1 << 6;

/// Value of the register that the cookie names, 0 for an unknown number. The reads are volatile so that LLVM does not
/// merge them into one read at a computed offset, which the verifier refuses for the context.
#[inline(always)]
pub fn header(ctx: &ProbeContext, cookie: Cookie) -> u64 {
    let regs: *const pt_regs = ctx.regs;
    unsafe {
        match cookie.register() {
            0 => read_volatile(&raw const (*regs).rax),
            1 => read_volatile(&raw const (*regs).rcx),
            2 => read_volatile(&raw const (*regs).rdx),
            3 => read_volatile(&raw const (*regs).rbx),
            5 => read_volatile(&raw const (*regs).rbp),
            6 => read_volatile(&raw const (*regs).rsi),
            7 => read_volatile(&raw const (*regs).rdi),
            8 => read_volatile(&raw const (*regs).r8),
            9 => read_volatile(&raw const (*regs).r9),
            10 => read_volatile(&raw const (*regs).r10),
            11 => read_volatile(&raw const (*regs).r11),
            12 => read_volatile(&raw const (*regs).r12),
            13 => read_volatile(&raw const (*regs).r13),
            14 => read_volatile(&raw const (*regs).r14),
            15 => read_volatile(&raw const (*regs).r15),
            _ => 0,
        }
    }
}

/// Whether this hit is one that counts.
#[inline(always)]
pub fn counts(ctx: &ProbeContext, cookie: Cookie) -> bool {
    let zero = unsafe { (*ctx.regs).eflags } & ZERO_FLAG != 0;
    let condition = cookie.condition();
    condition == Condition::Always as u8
        || (condition == Condition::ZeroSet as u8 && zero)
        || (condition == Condition::ZeroClear as u8 && !zero)
}
