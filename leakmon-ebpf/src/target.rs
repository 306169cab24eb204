//! Who the process of a hit is.
//!
//! In: the current process. Out: its [`TargetId`], where it is watched. The entry is made at the first hit, so nothing
//! waits for user space.

use crate::{
    atomic, emit,
    maps::{TARGETS, TOTALS, WATCHED},
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_current_pid_tgid};
use leakmon_ebpf::abi::{Cookie, Loss, REPORT_INTERVAL_NS, RecordKind, TargetEntry, TargetId, Totals};

/// The current process's number.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current target; `None` where the process is not watched or there is no room for it.
#[inline(always)]
pub fn current(cookie: Cookie, now_ns: u64) -> Option<u64> {
    let tgid = tgid();
    if let Some(entry) = TARGETS.get_ptr(tgid) {
        return Some(unsafe { (*entry).target });
    }
    if !cookie.is_for_every_process() && WATCHED.get_ptr(tgid).is_none() {
        return None;
    }
    let target = begin(tgid, now_ns)?;
    emit::emit(RecordKind::Target, now_ns, target, 0, 0, 0);
    Some(target)
}

/// Makes `tgid` a target from now on. Two threads may race for the first hit: the first one's entry stays.
#[inline(always)]
pub fn begin(tgid: u32, now_ns: u64) -> Option<u64> {
    let entry = TargetEntry {
        target: TargetId::new(tgid, now_ns).0,
        since_ns: now_ns,
        asked_ns: 0,
    };
    let _lost_race = TARGETS.insert(tgid, entry, u64::from(BPF_NOEXIST));
    let Some(stored) = TARGETS.get_ptr(tgid) else {
        emit::lose(Loss::TargetsFull);
        return None;
    };
    let target = unsafe { (*stored).target };
    if target == entry.target {
        let totals = Totals {
            unmatched_ends: 0,
            replaced: 0,
            untracked: 0,
        };
        if TOTALS.insert(target, totals, 0).is_err() {
            emit::lose(Loss::TargetsFull);
        }
    }
    Some(target)
}

/// Asks user space to look at the current target's mappings, unless it was asked just now.
#[inline(always)]
pub fn ask_for_mappings(now_ns: u64) {
    let Some(entry) = TARGETS.get_ptr_mut(tgid()) else {
        return;
    };
    unsafe {
        if now_ns.wrapping_sub((*entry).asked_ns) < REPORT_INTERVAL_NS {
            return;
        }
        (*entry).asked_ns = now_ns;
        emit::emit(RecordKind::Miss, now_ns, (*entry).target, 0, 0, 0);
    }
}

/// Counts an end whose birth was not counted.
#[inline(always)]
pub fn count_unmatched_end(target: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(target) {
        unsafe { atomic::add(&raw mut (*totals).unmatched_ends, 1) };
    }
}

/// Counts a birth at an address whose task had not ended.
#[inline(always)]
pub fn count_replaced(target: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(target) {
        unsafe { atomic::add(&raw mut (*totals).replaced, 1) };
    }
}

/// Counts a birth that found a table full.
#[inline(always)]
pub fn count_untracked(target: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(target) {
        unsafe { atomic::add(&raw mut (*totals).untracked, 1) };
    }
}
