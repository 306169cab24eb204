//! Keeps the kernel from giving programs of probes a stack that they would share.
//!
//! In: a program's context. Out: nothing. Since Linux 6.13 a program with 64 bytes of stack or more has a private one on x86-64,
//! one a processor (`bpf_enable_priv_stack` in kernel/bpf/verifier.c). Tracepoints are guarded against running twice at once on a
//! processor; uprobes are not, and where the kernel is preemptible the second program would write over the keys and counts of the
//! first. A program that has a tail call gets none, be it one that is never made.

use crate::maps::{NOWHERE, never};
use aya_ebpf::programs::ProbeContext;

/// To be the first thing in every program of a probe. It costs next to nothing: the verifier takes out what can't be reached.
#[inline(always)]
pub fn refuse(ctx: &ProbeContext) {
    if never() != 0 {
        unsafe { NOWHERE.tail_call(ctx, 0) };
    }
}
