//! The table of live tasks and threads, which is two maps: a pass over a hash visits every bucket it has, so the first one is small, and
//! the second, which has room for a million, is looked at only while there is something in it.
//!
//! In: keys and values. Out: what the tables had. `OVERFLOW` is never less than what the second one holds. A key is in one of the two at
//! most, where no two processors put it in at the same moment: a task is born once at an address. Of a thread two may tell at once; both
//! would count if just then the first table were full for one and not for the other.

use crate::{
    atomic,
    maps::{LIVE, LIVE_MORE, OVERFLOW, live_more_entries},
};
use aya_ebpf::{
    bindings::{BPF_EXIST, BPF_NOEXIST},
    helpers::generated::bpf_for_each_map_elem,
};
use core::ffi::c_void;
use leakmon_ebpf::abi::{LiveKey, LiveValue};

/// Why a task can't be put into the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is one at this address.
    Taken,
    Full,
}

/// What the kernel says of a key that is there already (`include/uapi/asm-generic/errno-base.h`).
const EEXIST: i32 = 17;

/// Puts in what is not there yet.
#[inline(always)]
pub fn insert(key: LiveKey, value: LiveValue) -> Result<(), Refused> {
    if is_overflowing() && LIVE_MORE.get_ptr(key).is_some() {
        return Err(Refused::Taken);
    }
    match LIVE.insert(key, value, u64::from(BPF_NOEXIST)) {
        Ok(()) => Ok(()),
        Err(error) if error == -EEXIST => Err(Refused::Taken),
        Err(_) => insert_more(key, value),
    }
}

#[inline(always)]
fn insert_more(key: LiveKey, value: LiveValue) -> Result<(), Refused> {
    if live_more_entries() == 0 {
        return Err(Refused::Full);
    }
    // First, so that whoever looks for the task finds the table not empty.
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

/// Puts a task in the place of the one at its address: the stack of that one; `None` where there was none.
#[inline(always)]
pub fn replace(key: LiveKey, value: LiveValue) -> Option<u64> {
    if let Some(old) = LIVE.get_ptr(key) {
        let stack = unsafe { (*old).stack };
        return LIVE.insert(key, value, u64::from(BPF_EXIST)).ok().map(|()| stack);
    }
    let stack = unsafe { (*LIVE_MORE.get_ptr(key)?).stack };
    LIVE_MORE.insert(key, value, u64::from(BPF_EXIST)).ok().map(|()| stack)
}

/// Takes a task out: its stack; `None` where there is none, or another processor has taken it just now.
#[inline(always)]
pub fn take(key: LiveKey) -> Option<u64> {
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

/// Calls back for each task; the callback may [`take`] the one it is called for.
#[inline(always)]
pub unsafe fn for_each(
    visit: unsafe extern "C" fn(*mut c_void, *const LiveKey, *const LiveValue, *const c_void) -> i64,
    context: *mut c_void,
) {
    unsafe {
        let first = (&raw const LIVE).cast_mut().cast();
        bpf_for_each_map_elem(first, visit as *mut c_void, context, 0);
        if is_overflowing() {
            let more = (&raw const LIVE_MORE).cast_mut().cast();
            bpf_for_each_map_elem(more, visit as *mut c_void, context, 0);
        }
    }
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
