//! One pass over all live tasks, run when user space asks.
//!
//! In: the number of this sweep. Out: in `COUNTS`, the birth time of the oldest live task of every stack; in `AGES`, how many
//! there are of each age class; tasks of the targets in `PURGED` are dropped. User space can't do this itself: reading a big hash
//! entry by entry is slow, and restarts when an entry goes meanwhile.

use crate::{
    atomic, live,
    maps::{AGES, COUNTS, PURGED},
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, programs::RawTracePointContext};
use leakmon_ebpf::abi::{AGE_CLASSES, Ages, CountKey, LiveKey, LiveValue, age_class};

#[repr(C)]
struct Pass {
    number: u64,
    now_ns: u64,
}

/// A new entry of `AGES`. Not on the stack, which is small.
static NO_AGES: Ages = Ages {
    swept: 0,
    classes: [0; AGE_CLASSES],
};

/// Visits every live task.
#[inline(always)]
pub fn sweep(ctx: &RawTracePointContext) -> i32 {
    let mut pass = Pass {
        number: ctx.arg(0),
        now_ns: unsafe { bpf_ktime_get_ns() },
    };
    live::for_each(&mut pass);
    0
}

impl live::Visit for Pass {
    #[inline(always)]
    fn visit(&mut self, key: LiveKey, LiveValue { stack, born_ns }: LiveValue) {
        if PURGED.get_ptr(key.target).is_some() {
            let _gone = live::take(key);
            return;
        }
        let count_key = CountKey {
            target: key.target,
            stack,
        };
        let Some(count) = COUNTS.get_ptr_mut(count_key) else {
            return;
        };
        unsafe {
            if (*count).swept != self.number || born_ns < (*count).oldest_born_ns {
                (*count).oldest_born_ns = born_ns;
                (*count).swept = self.number;
            }
            count_age(count_key, self.number, self.now_ns.saturating_sub(born_ns));
        }
    }
}

/// Adds a task to its age class; the first one of a sweep begins at zero. Only one sweep runs at a time.
#[inline(always)]
unsafe fn count_age(key: CountKey, number: u64, age_ns: u64) {
    unsafe {
        let mut ages = AGES.get_ptr_mut(key);
        if ages.is_none() {
            let _full = AGES.insert(key, &NO_AGES, u64::from(BPF_NOEXIST));
            ages = AGES.get_ptr_mut(key);
        }
        let Some(ages) = ages else {
            return;
        };
        if (*ages).swept != number {
            (*ages).swept = number;
            (*ages).classes = [0; AGE_CLASSES];
        }
        let class = atomic::masked::<{ AGE_CLASSES as u64 - 1 }>(age_class(age_ns));
        *(&raw mut (*ages).classes).cast::<u32>().add(class) += 1;
    }
}
