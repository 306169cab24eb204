//! Life and death of processes: fork, exec, exit.
//!
//! In: the kernel's tracepoints. Out: entries of `TARGETS` and `WATCHED`, and an event each. Only processes that are
//! watched, or were hit, are looked at, and the number of each new one.

use crate::{
    emit,
    maps::{MAPPINGS, TARGETS, WATCHED, debug, signal_live_offset, task_signal_offset, task_tgid_offset},
    target, thread,
};
use aya_ebpf::{
    helpers::{bpf_get_attach_cookie, bpf_ktime_get_ns, bpf_probe_read_kernel, generated::bpf_send_signal},
    programs::{ProbeContext, RawTracePointContext},
};
use aya_log_ebpf::info;
use leakmon_ebpf::abi::{Cookie, FOLLOW, HOLD, HOLD_CHILDREN, HOLD_EXEC, Loss, RecordKind};

/// `SIGSTOP` on x86-64 (`arch/x86/include/uapi/asm/signal.h`).
const SIGSTOP: u32 = 19;

/// `CLONE_THREAD` (`include/uapi/linux/sched.h`): the new task is a thread of the same process.
const CLONE_THREAD: u64 = 0x0001_0000;

/// A target has a new thread, or there is a new process, which is watched too where it is a followed one's child.
#[inline(always)]
pub fn fork(ctx: &RawTracePointContext) -> i32 {
    let tgid = target::tgid();
    if ctx.arg::<u64>(1) & CLONE_THREAD != 0 {
        if let Some(current) = target::known(tgid)
            && !current.is_excluded()
        {
            thread::started(ctx, current);
        }
        return 0;
    }
    let task: u64 = ctx.arg(0);
    let Ok(child) = (unsafe { bpf_probe_read_kernel((task + task_tgid_offset()) as *const u32) }) else {
        return 0;
    };
    // User space may have made a process a target that was just ending, when nobody could take it out again. Whoever has its number
    // now is another.
    if target::known(child).is_some() {
        let _stale = TARGETS.remove(child);
        let _stale = MAPPINGS.remove(child);
    }
    let Some(flags) = WATCHED.get_ptr(tgid) else {
        return 0;
    };
    let flags = unsafe { *flags };
    if flags & FOLLOW == 0 {
        return 0;
    }
    let held = if flags & HOLD_CHILDREN != 0 { HOLD } else { 0 };
    if WATCHED.insert(child, FOLLOW | held | flags & HOLD_EXEC, 0).is_err() {
        emit::lose(Loss::WatchedFull);
        return 0;
    }
    // User space may have stopped watching the parent meanwhile, and would never learn of a child that is held.
    let holds_now = WATCHED
        .get_ptr(tgid)
        .is_some_and(|now| unsafe { *now } & HOLD_EXEC != 0);
    if flags & HOLD_EXEC != 0 && !holds_now {
        let _gone = WATCHED.remove(child);
    }
    let now_ns = unsafe { bpf_ktime_get_ns() };
    emit::emit(RecordKind::Fork, now_ns, 0, 0, u64::from(child), 0);
    0
}

/// The process runs another program from now on: it is another target, with the one thread that called exec.
#[inline(always)]
pub fn exec(ctx: &RawTracePointContext) -> i32 {
    let tgid = target::tgid();
    let before = target::known(tgid).map_or(0, |known| known.target);
    if before == 0 && WATCHED.get_ptr(tgid).is_none() {
        return 0;
    }
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let _none = TARGETS.remove(tgid);
    let _stale = MAPPINGS.remove(tgid);
    let current = target::begin(tgid, now_ns);
    if let Some(current) = current {
        thread::begin_with_first(current, now_ns);
    }
    let now = current.map_or(0, |current| current.target);
    emit::emit(RecordKind::Exec, now_ns, now, 0, before, u64::from(tgid));
    let held = WATCHED
        .get_ptr(tgid)
        .is_some_and(|flags| unsafe { *flags } & HOLD_EXEC != 0);
    // It stops before the first instruction of its new program, as the signal is delivered on the way back to user space.
    if held && now != 0 && unsafe { bpf_send_signal(SIGSTOP) } == 0 {
        emit::emit(RecordKind::Held, now_ns, now, 0, 1, 0);
    }
    if debug() != 0 {
        info!(ctx, "exec: process {} is target {:x}", tgid, now);
    }
    0
}

/// A process stands at its entry point: all libraries that it needs at start are mapped, and none of its own code has
/// run. It becomes a target now, so that user space can look at it before its first task. Where it is to be held, it
/// stops, and user space lets it go once its tables are loaded.
#[inline(always)]
pub fn entry(ctx: &ProbeContext) -> u32 {
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let is_new = target::known(target::tgid()).is_none();
    let Some(current) = target::current(cookie, now_ns) else {
        return 0;
    };
    // This probe was there before the process's first instruction, so no task is older than what is counted.
    unsafe { (*current.entry).whole = 1 };
    if is_new {
        thread::begin_with_first(current, now_ns);
    }
    let Some(flags) = WATCHED.get_ptr(current.tgid) else {
        return 0;
    };
    if unsafe { *flags } & HOLD != 0 && unsafe { bpf_send_signal(SIGSTOP) } == 0 {
        emit::emit(RecordKind::Held, now_ns, current.target, 0, 0, 0);
    }
    0
}

/// A thread ends, and with the last one of a target the target. The group leader may go before the others, so the threads left are
/// looked at (`signal->live`, already lowered: `do_exit` in `kernel/exit.c`).
#[inline(always)]
pub fn exit(ctx: &RawTracePointContext) -> i32 {
    let tgid = target::tgid();
    let known = target::known(tgid);
    if known.is_none() && WATCHED.get_ptr(tgid).is_none() {
        return 0;
    }
    let task: u64 = ctx.arg(0);
    let Ok(signal) = (unsafe { bpf_probe_read_kernel((task + task_signal_offset()) as *const u64) }) else {
        return 0;
    };
    let Ok(threads) = (unsafe { bpf_probe_read_kernel((signal + signal_live_offset()) as *const u32) }) else {
        return 0;
    };
    if threads != 0 {
        if let Some(known) = known {
            thread::ended(task, signal, known.target);
        }
        return 0;
    }
    let _not_watched = WATCHED.remove(tgid);
    let Some(known) = known else {
        return 0;
    };
    let _gone = TARGETS.remove(tgid);
    let _stale = MAPPINGS.remove(tgid);
    emit::emit(RecordKind::Exit, unsafe { bpf_ktime_get_ns() }, known.target, 0, 0, 0);
    if debug() != 0 {
        info!(ctx, "exit: process {}, target {:x}", tgid, known.target);
    }
    0
}
