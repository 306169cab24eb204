//! One pass over all live tasks, run when user space asks.
//!
//! In: the number of this sweep. Out: in `COUNTS`, the birth time of the oldest live task of every stack; tasks of the
//! targets in `PURGED` are dropped. User space can't do this itself: reading a big hash entry by entry is slow, and
//! restarts when an entry goes meanwhile.

use crate::maps::{COUNTS, LIVE, PURGED};
use aya_ebpf::{helpers::generated::bpf_for_each_map_elem, programs::RawTracePointContext};
use core::ffi::c_void;
use leakmon_ebpf::abi::{CountKey, LiveKey, LiveValue};

#[repr(C)]
struct Pass {
    number: u64,
}

/// Visits every live task.
#[inline(always)]
pub fn sweep(ctx: &RawTracePointContext) -> i32 {
    let mut pass = Pass { number: ctx.arg(0) };
    let map = (&raw const LIVE).cast_mut().cast::<c_void>();
    unsafe { bpf_for_each_map_elem(map, visit as *mut c_void, (&raw mut pass).cast(), 0) };
    0
}

unsafe extern "C" fn visit(_map: *mut c_void, key: *const LiveKey, value: *const LiveValue, pass: *const Pass) -> i64 {
    unsafe {
        let key = *key;
        let LiveValue { stack, born_ns } = *value;
        if PURGED.get_ptr(key.target).is_some() {
            let _gone = LIVE.remove(key);
            return 0;
        }
        if let Some(count) = COUNTS.get_ptr_mut(CountKey {
            target: key.target,
            stack,
        }) {
            let number = (*pass).number;
            if (*count).swept != number || born_ns < (*count).oldest_born_ns {
                (*count).oldest_born_ns = born_ns;
                (*count).swept = number;
            }
        }
    }
    0
}
