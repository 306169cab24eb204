//! A task's birth and end.
//!
//! In: a hit of a probe site. Out: the table of live tasks pairs the two, `COUNTS` holds the truth, and an event tells of a
//! callsite that changed. No version and no runtime is known here.

use crate::{
    atomic, emit,
    live::{self, Refused},
    maps::{COUNTS, trace},
    registers,
    target::{self, Current},
    unwind,
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_attach_cookie, bpf_ktime_get_ns, bpf_probe_read_user},
    programs::ProbeContext,
};
use leakmon_ebpf::abi::{
    Cookie, CountKey, CountValue, LiveKey, LiveValue, Loss, PROOFS_PER_STACK, REPORT_INTERVAL_NS, RecordKind, Role,
};

/// A hit that counts.
struct Hit {
    cookie: Cookie,
    key: LiveKey,
    now_ns: u64,
    current: Current,
}

/// What a hit means; `None` where it does not count.
#[inline(always)]
fn hit(ctx: &ProbeContext) -> Option<Hit> {
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.regs.cast()) });
    if !registers::counts(ctx, cookie) {
        return None;
    }
    let header = registers::header(ctx, cookie);
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let current = target::current(cookie, now_ns)?;
    let key = LiveKey {
        target: current.target,
        header,
    };
    Some(Hit {
        cookie,
        key,
        now_ns,
        current,
    })
}

/// A birth site was hit.
#[inline(always)]
pub fn birth(ctx: &ProbeContext) -> u32 {
    let Some(Hit {
        cookie,
        key,
        now_ns,
        current,
    }) = hit(ctx)
    else {
        return 0;
    };
    if target::pay(current, now_ns) {
        // Ends go on being seen, so what is tracked stays right. Whoever was here before has gone without one.
        close_old(key, now_ns);
        target::count_untracked(current.target, Loss::Paused);
        return 0;
    }
    let stack = unwind::at_site(ctx, cookie, current, now_ns);
    track(key, stack, cookie, now_ns);
    0
}

/// An end site was hit, or one that frees a task.
#[inline(always)]
pub fn end(ctx: &ProbeContext) -> u32 {
    let Some(Hit {
        cookie,
        key,
        now_ns,
        current,
    }) = hit(ctx)
    else {
        return 0;
    };
    target::pay(current, now_ns);
    match take(key, now_ns) {
        Some(count) => prove(ctx, cookie, key, count, now_ns),
        // A completed task is freed later, which says nothing new.
        None if cookie.role() == Role::Freed as u8 => {}
        None => target::count_unmatched_end(current),
    }
    0
}

/// Puts a task into the table of live ones and counts its birth.
#[inline(always)]
fn track(key: LiveKey, stack: u64, cookie: Cookie, now_ns: u64) {
    let value = LiveValue { stack, born_ns: now_ns };
    let is_tracked = match live::insert(key, value) {
        Ok(()) => true,
        // In a full table another birth may take what is freed here; then this one is not tracked.
        Err(Refused::Taken) => {
            close_old(key, now_ns);
            live::insert(key, value).is_ok()
        }
        Err(Refused::Full) => false,
    };
    if is_tracked {
        count_tracked(key, stack, cookie, now_ns);
    } else {
        target::count_untracked(key.target, Loss::LiveFull);
    }
}

/// Puts a thread into the table of live ones and counts its start. One that is there already is this very thread: its number is
/// used again only after its end was seen. A tracepoint and user space may tell of it at the same moment, and the first one
/// counts (but see [`live`]).
#[inline(always)]
pub fn track_thread(key: LiveKey, stack: u64, started_ns: u64) {
    let value = LiveValue {
        stack,
        born_ns: started_ns,
    };
    match live::insert_thread(key, value) {
        Ok(()) => count_tracked(key, stack, Cookie::THREAD, started_ns),
        Err(Refused::Taken) => {}
        Err(Refused::Full) => target::count_untracked(key.target, Loss::LiveFull),
    }
}

/// Counts the birth of what has just been put into the table of live ones.
#[inline(always)]
fn count_tracked(key: LiveKey, stack: u64, cookie: Cookie, now_ns: u64) {
    let count_key = CountKey {
        target: key.target,
        stack,
    };
    if !count_birth(count_key, cookie, now_ns) {
        let _gone = live::take(key);
        target::count_untracked(key.target, Loss::CountsFull);
        return;
    }
    if trace() != 0 {
        emit::emit(RecordKind::Birth, now_ns, key.target, stack, key.header, 0);
    }
}

/// Takes a task or thread out of the table of live ones and counts its end. False where it was not there.
#[inline(always)]
pub fn untrack(key: LiveKey, now_ns: u64) -> bool {
    take(key, now_ns).is_some()
}

/// As [`untrack`]: the counters of its stack where it was there, null where those are missing.
#[inline(always)]
fn take(key: LiveKey, now_ns: u64) -> Option<*mut CountValue> {
    let stack = live::take(key)?;
    let count_key = CountKey {
        target: key.target,
        stack,
    };
    let count = count_end(count_key, now_ns);
    if trace() != 0 {
        emit::emit(RecordKind::End, now_ns, key.target, stack, key.header, 0);
    }
    Some(count)
}

/// Closes the task that was born at the same address and never seen to end, where there is one: a blocking task dropped unrun is
/// freed without completing.
#[inline(always)]
fn close_old(key: LiveKey, now_ns: u64) {
    if untrack(key, now_ns) {
        target::count_replaced(key.target);
    }
}

/// Adds one to `born`, making the entry where there is none. False where the table is full.
#[inline(always)]
fn count_birth(key: CountKey, cookie: Cookie, now_ns: u64) -> bool {
    if let Some(count) = COUNTS.get_ptr_mut(key) {
        unsafe { atomic::add(&raw mut (*count).born, 1) };
        report(key, count, now_ns);
        return true;
    }
    let fresh = CountValue {
        born: 1,
        ended: 0,
        reported_ns: now_ns,
        cookie: cookie.0,
        oldest_born_ns: 0,
        swept: 0,
    };
    if COUNTS.insert(key, fresh, u64::from(BPF_NOEXIST)).is_ok() {
        emit::emit(RecordKind::Stack, now_ns, key.target, key.stack, cookie.0, 0);
        return true;
    }
    // Another thread made it meanwhile, or the table is full.
    let Some(count) = COUNTS.get_ptr_mut(key) else {
        return false;
    };
    unsafe { atomic::add(&raw mut (*count).born, 1) };
    true
}

/// Adds one to `ended`; the counters, or null where they are missing.
#[inline(always)]
fn count_end(key: CountKey, now_ns: u64) -> *mut CountValue {
    let Some(count) = COUNTS.get_ptr_mut(key) else {
        return core::ptr::null_mut();
    };
    unsafe { atomic::add(&raw mut (*count).ended, 1) };
    report(key, count, now_ns);
    count
}

/// Sends what the header of one of a stack's first ending tasks shows, for user space to compare with the plan. At its birth it was
/// not written yet.
#[inline(always)]
fn prove(ctx: &ProbeContext, end: Cookie, key: LiveKey, count: *const CountValue, now_ns: u64) {
    if count.is_null() || unsafe { (*count).ended } > PROOFS_PER_STACK {
        return;
    }
    let birth = Cookie(unsafe { (*count).cookie });
    let word = birth.vtable_word();
    if word == 0 {
        return;
    }
    let place = key.header.wrapping_add(8 * u64::from(word));
    let read = unsafe {
        (
            bpf_probe_read_user(key.header as *const u64),
            bpf_probe_read_user(place as *const u64),
        )
    };
    let (Ok(state), Ok(vtable)) = read else { return };
    let distance = vtable.wrapping_sub(unsafe { (*ctx.regs).rip });
    let second = end.with_vtable_word(state as u8).0;
    emit::emit(RecordKind::Proof, now_ns, key.target, birth.0, distance, second);
}

/// Sends the entry's counters, at most once in [`REPORT_INTERVAL_NS`]. Two processors may both send: counters are
/// cumulative, so an event more or less changes nothing.
#[inline(always)]
fn report(key: CountKey, count: *mut CountValue, now_ns: u64) {
    unsafe {
        if now_ns.wrapping_sub((*count).reported_ns) < REPORT_INTERVAL_NS {
            return;
        }
        (*count).reported_ns = now_ns;
        emit::emit(
            RecordKind::Changed,
            now_ns,
            key.target,
            key.stack,
            (*count).born,
            (*count).ended,
        );
    }
}
