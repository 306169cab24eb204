//! The clock of the BPF programs.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// `CLOCK_MONOTONIC` in nanoseconds, what `bpf_ktime_get_ns` reads. 0 should the clock be missing, which Linux rules out.
#[must_use]
pub fn monotonic_ns() -> u64 {
    now_ns(ClockId::CLOCK_MONOTONIC)
}

/// The time on that clock at which a process's or thread's start was recorded, `boot_ns` after boot, suspensions included
/// (`CLOCK_BOOTTIME`). Off by the little time between two readings.
#[must_use]
pub fn monotonic_of_boot(boot_ns: u64) -> u64 {
    let suspended_ns = now_ns(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic_ns());
    boot_ns.saturating_sub(suspended_ns)
}

/// The processor time that the current thread has used.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(now_ns(ClockId::CLOCK_THREAD_CPUTIME_ID))
}

fn now_ns(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        time.tv_sec()
            .cast_unsigned()
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec().cast_unsigned())
    })
}
