//! Who the process of a hit is.
//!
//! In: the current process. Out: its entry in `TARGETS`, where it is watched, and what is counted per target. The entry is
//! made at the first hit, so nothing waits for user space. A target with more hits than it may have is paused here.

use crate::{
    atomic, emit,
    maps::{TARGETS, TOTALS, WATCHED, hits_per_second_max, pause_ns},
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_current_pid_tgid, programs::RawTracePointContext};
use leakmon_ebpf::abi::{Cookie, Loss, RATE_WINDOW_NS, REPORT_INTERVAL_NS, RecordKind, TargetEntry, TargetId, Totals};

/// The current process, which is a target.
#[derive(Clone, Copy)]
pub struct Current {
    pub tgid: u32,
    /// [`TargetId`].
    pub target: u64,
    pub entry: *mut TargetEntry,
}

impl Current {
    /// Whether user space does not want it.
    #[inline(always)]
    pub fn is_excluded(self) -> bool {
        unsafe { (*self.entry).excluded != 0 }
    }
}

/// The current process's number.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current target; `None` where the process is not watched or there is no room for it.
#[inline(always)]
pub fn current(cookie: Cookie, now_ns: u64) -> Option<Current> {
    let tgid = tgid();
    if let Some(known) = known(tgid) {
        return (!known.is_excluded()).then_some(known);
    }
    if !cookie.is_for_every_process() && WATCHED.get_ptr(tgid).is_none() {
        return None;
    }
    let current = begin(tgid, now_ns)?;
    emit::emit(RecordKind::Target, now_ns, current.target, 0, 0, 0);
    Some(current)
}

/// A process that is a target already.
#[inline(always)]
pub fn known(tgid: u32) -> Option<Current> {
    let entry = TARGETS.get_ptr_mut(tgid)?;
    let target = unsafe { (*entry).target };
    Some(Current { tgid, target, entry })
}

/// Makes `tgid` a target from now on. Two threads may race for the first hit: the first one's entry stays.
#[inline(always)]
pub fn begin(tgid: u32, now_ns: u64) -> Option<Current> {
    let entry = TargetEntry::new(TargetId::new(tgid, now_ns), now_ns);
    let _lost_race = TARGETS.insert(tgid, entry, u64::from(BPF_NOEXIST));
    let Some(current) = known(tgid) else {
        emit::lose(Loss::TargetsFull);
        return None;
    };
    if current.target == entry.target && TOTALS.insert(current.target, Totals::NONE, 0).is_err() {
        emit::lose(Loss::TargetsFull);
    }
    Some(current)
}

/// Counts a hit against the bound on the target's rate. Returns whether the target is paused.
///
/// The counter is not atomic: a guard may be off by the hits that two processors count at once, and costs less so.
#[inline(always)]
pub fn pay(current: Current, now_ns: u64) -> bool {
    let limit = hits_per_second_max();
    if limit == 0 {
        return false;
    }
    unsafe {
        let entry = current.entry;
        if now_ns < (*entry).paused_until_ns {
            return true;
        }
        if now_ns.wrapping_sub((*entry).window_ns) >= RATE_WINDOW_NS {
            (*entry).window_ns = now_ns;
            (*entry).hits = 0;
        }
        (*entry).hits += 1;
        if (*entry).hits <= limit {
            return false;
        }
        let until_ns = now_ns + pause_ns();
        (*entry).paused_until_ns = until_ns;
        (*entry).window_ns = until_ns;
        (*entry).hits = 0;
        emit::emit(RecordKind::Paused, now_ns, current.target, 0, until_ns, 0);
    }
    true
}

/// User space does not want a target. The argument is its [`TargetId`]; an entry that has become another target's is left alone.
#[inline(always)]
pub fn exclude(ctx: &RawTracePointContext) -> i32 {
    let target: u64 = ctx.arg(0);
    if let Some(entry) = TARGETS.get_ptr_mut(TargetId(target).tgid()) {
        unsafe {
            if (*entry).target == target {
                (*entry).excluded = 1;
            }
        }
    }
    0
}

/// Asks user space to look at the current target's mappings, unless it was asked just now.
#[inline(always)]
pub fn ask_for_mappings(current: Current, now_ns: u64) {
    unsafe {
        let entry = current.entry;
        if now_ns.wrapping_sub((*entry).asked_ns) < REPORT_INTERVAL_NS {
            return;
        }
        (*entry).asked_ns = now_ns;
    }
    emit::emit(RecordKind::Miss, now_ns, current.target, 0, 0, 0);
}

/// Counts an end whose birth is not in the table of live tasks. In a target that was seen at its entry point no task is older, so
/// what ends is a task that was not tracked; elsewhere nobody can tell. Of a target that was paused not every birth that was left
/// out was counted.
#[inline(always)]
pub fn count_unmatched_end(current: Current) {
    let Some(totals) = TOTALS.get_ptr_mut(current.target) else {
        return;
    };
    unsafe {
        let was_paused = (*current.entry).paused_until_ns != 0;
        if (*current.entry).whole != 0 && (was_paused || (*totals).untracked_ends < (*totals).untracked) {
            atomic::add(&raw mut (*totals).untracked_ends, 1);
        } else {
            atomic::add(&raw mut (*totals).unmatched_ends, 1);
        }
    }
}

/// Counts a birth at an address whose task had not ended.
#[inline(always)]
pub fn count_replaced(target: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(target) {
        unsafe { atomic::add(&raw mut (*totals).replaced, 1) };
    }
}

/// Counts a birth that is not tracked, and why.
#[inline(always)]
pub fn count_untracked(target: u64, reason: Loss) {
    emit::lose(reason);
    if let Some(totals) = TOTALS.get_ptr_mut(target) {
        unsafe { atomic::add(&raw mut (*totals).untracked, 1) };
    }
}
