//! Threads: started, ended, and those that were there before.
//!
//! In: the kernel's tracepoints, and threads that user space found in `/proc`. Out: entries of the table of live tasks and of
//! `COUNTS` like those of tasks, under keys that no task has. Only threads of targets are looked at.

use crate::{
    maps::{signal_exec_offset, signal_flags_offset, task_pid_offset},
    target::{self, Current},
    task,
    unwind::{self, Registers},
};
use aya_ebpf::{
    bindings::{pt_regs, task_struct},
    helpers::{
        bpf_ktime_get_ns, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::RawTracePointContext,
};
use core::mem::offset_of;
use leakmon_ebpf::abi::{Cookie, EARLIER_THREADS, LiveKey, TargetId};

/// `SIGNAL_GROUP_EXIT` (`include/linux/sched/signal.h`): all threads of the process are ending.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// A target has a new thread; the current one starts it, by a system call whose registers are on its kernel stack.
#[inline(always)]
pub fn started(ctx: &RawTracePointContext, current: Current) {
    let Some(tid) = tid(ctx.arg(0)) else {
        return;
    };
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf().cast::<task_struct>()) } as u64;
    let word = |offset: usize| unsafe { bpf_probe_read_kernel((registers + offset as u64) as *const u64) };
    let (Ok(pc), Ok(sp), Ok(bp)) = (
        word(offset_of!(pt_regs, rip)),
        word(offset_of!(pt_regs, rsp)),
        word(offset_of!(pt_regs, rbp)),
    ) else {
        return;
    };
    let registers = Registers {
        pc,
        sp,
        bp,
        in_system_call: 1,
    };
    let stack = unwind::stack(registers, Cookie::THREAD, current, now_ns);
    let key = LiveKey::thread(current.target, tid);
    task::track_thread(key, stack, now_ns);
}

/// A thread of a target ends by itself. One that goes with its whole process was alive when that ended, as its tasks were.
#[inline(always)]
pub fn ended(task: u64, signal: u64, target: u64) {
    if is_process_ending(signal) {
        return;
    }
    if let Some(tid) = tid(task) {
        let _not_known = task::untrack(LiveKey::thread(target, tid), unsafe { bpf_ktime_get_ns() });
    }
}

/// The process has one thread, which was not started by one of its own.
#[inline(always)]
pub fn begin_with_first(current: Current, now_ns: u64) {
    let key = LiveKey::thread(current.target, current.tgid);
    task::track_thread(key, EARLIER_THREADS, now_ns);
}

/// User space found a thread in `/proc` (`found` 1), or found that one has gone (0). Arguments: target, tid, when it was
/// started, `found`. One that is known already is left alone.
#[inline(always)]
pub fn found(ctx: &RawTracePointContext) -> i32 {
    let (target, tid, born_ns, found): (u64, u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    let key = LiveKey::thread(target, tid as u32);
    let still_that = target::known(TargetId(target).tgid()).is_some_and(|known| known.target == target);
    if !still_that {
        return 0;
    }
    if found == 0 {
        let _not_known = task::untrack(key, unsafe { bpf_ktime_get_ns() });
    } else {
        task::track_thread(key, EARLIER_THREADS, born_ns);
    }
    0
}

#[inline(always)]
fn tid(task: u64) -> Option<u32> {
    unsafe { bpf_probe_read_kernel((task + task_pid_offset()) as *const u32) }.ok()
}

/// Whether all threads are being ended: by `exit_group` or a signal, or by one of them that calls exec (`zap_other_threads` in
/// `kernel/signal.c`, `de_thread` in `fs/exec.c`).
#[inline(always)]
fn is_process_ending(signal: u64) -> bool {
    let flags = unsafe { bpf_probe_read_kernel((signal + signal_flags_offset()) as *const u32) };
    let executing = unsafe { bpf_probe_read_kernel((signal + signal_exec_offset()) as *const u64) };
    flags.is_ok_and(|flags| flags & SIGNAL_GROUP_EXIT != 0) || executing.is_ok_and(|task| task != 0)
}
