//! The table of live tasks and threads: places that need no hash ([`crate::slots`]), and two hashes for what finds its place
//! taken. A pass over a hash visits every bucket it has, so the first one is small, and the second, which has room for a million,
//! is looked at only while there is something in it.
//!
//! In: keys and values. Out: what the table had. `OVERFLOW` is never less than what the second hash holds. A key is in one of the
//! three at most, where no two processors put it in at the same moment: a task is born once at an address. Of a thread two may
//! tell at once; both would count if just then the first hash were full for one and not for the other.

use crate::{
    atomic,
    maps::{LIVE, LIVE_MORE, OVERFLOW, live_more_entries},
    slots::{self, Place},
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_for_each_map_elem};
use core::ffi::c_void;
use leakmon_ebpf::abi::{LiveKey, LiveSlot, LiveValue};

/// Why a task can't be put into the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is one at this address.
    Taken,
    Full,
}

/// What the kernel says of a key that is there already (`include/uapi/asm-generic/errno-base.h`).
const EEXIST: i32 = 17;

/// Puts in a task that is not there yet.
#[inline(always)]
pub fn insert(key: LiveKey, value: LiveValue) -> Result<(), Refused> {
    let place = Place::of(key).ok_or(Refused::Full)?;
    if place.holds(key) {
        return Err(Refused::Taken);
    }
    if place.is_free() {
        // It may have been taken when this address was used before.
        if place.has_spilled() && is_hashed(key) {
            return Err(Refused::Taken);
        }
        if place.put(key, value) {
            return Ok(());
        }
    }
    insert_hashed(place, key, value)
}

/// Puts in a thread that is not there yet.
#[inline(always)]
pub fn insert_thread(key: LiveKey, value: LiveValue) -> Result<(), Refused> {
    let place = Place::of(key).ok_or(Refused::Full)?;
    insert_hashed(place, key, value)
}

/// Takes a task or thread out: its stack; `None` where there is none, or another processor has taken it just now.
#[inline(always)]
pub fn take(key: LiveKey) -> Option<u64> {
    let place = Place::of(key)?;
    if let Some(stack) = place.take(key) {
        return Some(stack);
    }
    if !place.has_spilled() {
        return None;
    }
    let stack = take_hashed(key)?;
    place.count_spilled(-1);
    Some(stack)
}

/// What is done with each task and thread of a pass.
pub trait Visit {
    /// `self` is what the pass keeps, on the stack of its program. It may [`take`] the one it is called for.
    fn visit(&mut self, key: LiveKey, value: LiveValue);
}

/// Visits each task and thread.
#[inline(always)]
pub fn for_each<V: Visit>(pass: &mut V) {
    unsafe {
        let context: *mut c_void = (&raw mut *pass).cast();
        slots::for_each(visit_slot::<V>, context);
        let first = (&raw const LIVE).cast_mut().cast();
        bpf_for_each_map_elem(first, visit_hashed::<V> as *mut c_void, context, 0);
        if is_overflowing() {
            let more = (&raw const LIVE_MORE).cast_mut().cast();
            bpf_for_each_map_elem(more, visit_hashed::<V> as *mut c_void, context, 0);
        }
    }
}

unsafe extern "C" fn visit_slot<V: Visit>(
    _map: *mut c_void,
    _index: *const u32,
    slot: *const LiveSlot,
    pass: *mut c_void,
) -> i64 {
    unsafe {
        if let Some((key, value)) = slots::read(slot) {
            (*pass.cast::<V>()).visit(key, value);
        }
    }
    0
}

unsafe extern "C" fn visit_hashed<V: Visit>(
    _map: *mut c_void,
    key: *const LiveKey,
    value: *const LiveValue,
    pass: *mut c_void,
) -> i64 {
    unsafe { (*pass.cast::<V>()).visit(*key, *value) };
    0
}

/// Puts what has no place into a hash. Counted first, so that whoever looks for it finds that it may be there.
#[inline(always)]
fn insert_hashed(place: Place, key: LiveKey, value: LiveValue) -> Result<(), Refused> {
    if is_overflowing() && LIVE_MORE.get_ptr(key).is_some() {
        return Err(Refused::Taken);
    }
    place.count_spilled(1);
    let inserted = match LIVE.insert(key, value, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Ok(()),
        Err(error) if error == -EEXIST => Err(Refused::Taken),
        Err(_) => insert_more(key, value),
    };
    if inserted.is_err() {
        place.count_spilled(-1);
    }
    inserted
}

#[inline(always)]
fn insert_more(key: LiveKey, value: LiveValue) -> Result<(), Refused> {
    if live_more_entries() == 0 {
        return Err(Refused::Full);
    }
    // First, for the same reason.
    count_overflow(1);
    match LIVE_MORE.insert(key, value, u64::from(BPF_NOEXIST)) {
        Ok(()) => Ok(()),
        Err(error) => {
            count_overflow(-1);
            Err(if error == -EEXIST {
                Refused::Taken
            } else {
                Refused::Full
            })
        }
    }
}

#[inline(always)]
fn is_hashed(key: LiveKey) -> bool {
    LIVE.get_ptr(key).is_some() || (is_overflowing() && LIVE_MORE.get_ptr(key).is_some())
}

#[inline(always)]
fn take_hashed(key: LiveKey) -> Option<u64> {
    if let Some(live) = LIVE.get_ptr(key) {
        let stack = unsafe { (*live).stack };
        LIVE.remove(key).ok()?;
        return Some(stack);
    }
    if !is_overflowing() {
        return None;
    }
    let stack = unsafe { (*LIVE_MORE.get_ptr(key)?).stack };
    LIVE_MORE.remove(key).ok()?;
    count_overflow(-1);
    Some(stack)
}

#[inline(always)]
fn is_overflowing() -> bool {
    // Volatile: it changes under this program's feet.
    OVERFLOW
        .get_ptr_mut(0)
        .is_some_and(|overflow| unsafe { overflow.read_volatile() } != 0)
}

#[inline(always)]
fn count_overflow(change: i64) {
    if let Some(overflow) = OVERFLOW.get_ptr_mut(0) {
        unsafe { atomic::add(overflow, change as u64) };
    }
}
