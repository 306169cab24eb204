//! The headers of live tasks, collected in one pass, run when user space asks.
//!
//! In: a target, or the stacks in `WANTED`. Out: entries of `SAMPLES`. User space can't collect them itself: reading a big hash
//! entry by entry is slow, and restarts when an entry goes meanwhile.

use crate::{atomic, live};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap},
    programs::RawTracePointContext,
};
use leakmon_ebpf::abi::{
    CountKey, LiveKey, LiveValue, SAMPLE_CHUNKS_MAX, SAMPLES_PER_CHUNK, Sample, WANTED_ENTRIES_MAX, Wanted,
};

/// Stacks whose tasks are wanted; written by user space before each pass. 70 bytes an entry. Full: no more stacks are asked for.
#[map]
static WANTED: HashMap<CountKey, Wanted> = HashMap::with_max_entries(WANTED_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// What the last pass found, 48 KiB a value, 6 MiB in all. Full: what comes later is left out, and its number is known.
#[map]
static SAMPLES: Array<SampleChunk> = Array::with_max_entries(SAMPLE_CHUNKS_MAX, 0);

/// How many tasks the last pass found, those without room included.
#[map]
static SAMPLED: Array<u64> = Array::with_max_entries(1, 0);

/// A value of [`SAMPLES`].
#[repr(C)]
struct SampleChunk([Sample; SAMPLES_PER_CHUNK as usize]);

#[repr(C)]
struct Pass {
    /// All tasks of this target, or with 0 those of the stacks in `WANTED`.
    target: u64,
    /// Of all tasks only those whose headers belong to this part …
    part: u64,
    /// … of so many, a power of two, less one.
    parts_mask: u64,
}

/// Visits every live task: `target`, `part` and `parts_mask` are the first three arguments.
#[inline(always)]
pub fn sample(ctx: &RawTracePointContext) -> i32 {
    let mut pass = Pass {
        target: ctx.arg(0),
        part: ctx.arg(1),
        parts_mask: ctx.arg(2),
    };
    let Some(found) = SAMPLED.get_ptr_mut(0) else {
        return 0;
    };
    unsafe { *found = 0 };
    live::for_each(&mut pass);
    0
}

impl live::Visit for Pass {
    #[inline(always)]
    fn visit(&mut self, LiveKey { target, header }: LiveKey, LiveValue { stack, born_ns }: LiveValue) {
        let group = if self.target == 0 {
            group_of(CountKey { target, stack }, born_ns)
        } else if target == self.target && (header >> 7) & self.parts_mask == self.part {
            // Headers are multiples of 128 at best; the bits above tell them apart.
            Some(stack)
        } else {
            None
        };
        if let Some(group) = group {
            keep(Sample { header, group, born_ns });
        }
    }
}

/// The group of a task of this stack, where it is wanted and there is room for it.
#[inline(always)]
fn group_of(key: CountKey, born_ns: u64) -> Option<u64> {
    let wanted = WANTED.get_ptr_mut(key)?;
    unsafe {
        if born_ns > (*wanted).born_until_ns || (*wanted).room == 0 {
            return None;
        }
        (*wanted).room -= 1;
        Some((*wanted).group)
    }
}

#[inline(always)]
fn keep(sample: Sample) {
    let Some(found) = SAMPLED.get_ptr_mut(0) else {
        return;
    };
    let index = unsafe { *found };
    unsafe { *found = index + 1 };
    let chunk = index / u64::from(SAMPLES_PER_CHUNK);
    if chunk >= u64::from(SAMPLE_CHUNKS_MAX) {
        return;
    }
    if let Some(chunk) = SAMPLES.get_ptr_mut(chunk as u32) {
        let slot = atomic::masked::<{ SAMPLES_PER_CHUNK as u64 - 1 }>(index as u32);
        // The mask is the proof; an index with a check would bring a way to panic.
        unsafe { (&raw mut (*chunk).0).cast::<Sample>().add(slot).write(sample) };
    }
}
