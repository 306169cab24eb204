//! Events to user space: reserve, fill, submit; every failure is counted by its reason.
//!
//! In: what happened. Out: a [`Record`] in the ring, or one more in `LOSS`.

use crate::maps::{EVENTS, LOSS};
use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_get_current_pid_tgid,
};
use leakmon_ebpf::abi::{Loss, Record, RecordKind};

/// Counts something that could not be done.
#[inline(always)]
pub fn lose(reason: Loss) {
    if let Some(counter) = LOSS.get_ptr_mut(reason as u32) {
        // Not atomic: the slot is this processor's, and a preempted increment costs at most one count of a statistic.
        unsafe { *counter += 1 };
    }
}

/// Sends a record and wakes user space where the kind wants to be looked at soon.
#[inline(always)]
pub fn emit(kind: RecordKind, time_ns: u64, target: u64, stack: u64, first: u64, second: u64) {
    let Some(mut record) = EVENTS.reserve::<Record>(0) else {
        lose(Loss::RingFull);
        return;
    };
    let tid = bpf_get_current_pid_tgid() as u32;
    record.write(Record {
        kind: kind as u32,
        tid,
        time_ns,
        target,
        stack,
        first,
        second,
    });
    let wakeup = match kind {
        // The daemon reads the ring once a tick in any case; waking it for each of these would cost a switch a task.
        RecordKind::Changed | RecordKind::Birth | RecordKind::End => BPF_RB_NO_WAKEUP,
        _ => BPF_RB_FORCE_WAKEUP,
    };
    record.submit(u64::from(wakeup));
}
