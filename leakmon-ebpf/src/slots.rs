//! Places of live tasks that need no hash: while there are far fewer tasks than places, most are born and end in one.
//!
//! In: keys and values. Out: what a place held. Each key has one place, and where that is taken by another task the key goes to the
//! hashes ([`crate::live`]), which the place counts, so that nobody looks there in vain. Threads are not kept here: two may tell
//! of one at the same moment, and only a hash lets just the first of them in.
//!
//! A place is taken and freed by compare-and-swap of its state, whose number never comes back: whoever has read a full place and
//! swaps its state has taken what was read. That rests on x86-64 not reordering loads; elsewhere the state would have to be read
//! with acquire order.

use crate::{atomic, maps::LIVE_SLOTS, maps::live_slots};
use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use core::ffi::c_void;
use leakmon_ebpf::abi::{LiveKey, LiveSlot, LiveValue};

/// The place of one key.
#[derive(Clone, Copy)]
pub struct Place(*mut LiveSlot);

impl Place {
    /// `None` only for the verifier's sake: every index is within the map.
    #[inline(always)]
    pub fn of(key: LiveKey) -> Option<Self> {
        LIVE_SLOTS.get_ptr_mut(key.slot()).map(Self)
    }

    /// The state where this very key is here.
    #[inline(always)]
    fn state_of(self, key: LiveKey) -> Option<u64> {
        let slot = self.0;
        unsafe {
            let state = (&raw const (*slot).state).read_volatile();
            let held = (&raw const (*slot).key).read_volatile();
            let holds =
                state & LiveSlot::PHASES == LiveSlot::FULL && held.header == key.header && held.target == key.target;
            holds.then_some(state)
        }
    }

    /// Whether the task is here.
    #[inline(always)]
    pub fn holds(self, key: LiveKey) -> bool {
        self.state_of(key).is_some()
    }

    /// Whether nothing is here; never where no place may be used.
    #[inline(always)]
    pub fn is_free(self) -> bool {
        let state = unsafe { (&raw const (*self.0).state).read_volatile() };
        live_slots() != 0 && state & LiveSlot::PHASES == LiveSlot::FREE
    }

    /// Puts a task here where the place is free; false where another was quicker.
    #[inline(always)]
    pub fn put(self, key: LiveKey, value: LiveValue) -> bool {
        let slot = self.0;
        unsafe {
            let state = (&raw const (*slot).state).read_volatile();
            if state & LiveSlot::PHASES != LiveSlot::FREE {
                return false;
            }
            let filling = state + LiveSlot::FILLING;
            if atomic::compare_exchange(&raw mut (*slot).state, state, filling) != state {
                return false;
            }
            (*slot).key = key;
            (*slot).value = value;
            // An exchange, since a pass on another processor must see the fields before the state.
            atomic::exchange(&raw mut (*slot).state, state + LiveSlot::FULL);
        }
        true
    }

    /// Takes the task out: its stack; `None` where it is not here, or was taken just now.
    #[inline(always)]
    pub fn take(self, key: LiveKey) -> Option<u64> {
        let state = self.state_of(key)?;
        let slot = self.0;
        unsafe {
            // Volatile, so that it is read before the state is swapped, and after it was read.
            let stack = (&raw const (*slot).value.stack).read_volatile();
            let free = state + (LiveSlot::PHASES + 1 - LiveSlot::FULL);
            (atomic::compare_exchange(&raw mut (*slot).state, state, free) == state).then_some(stack)
        }
    }

    /// Whether a key of this place may be in the hashes.
    #[inline(always)]
    pub fn has_spilled(self) -> bool {
        unsafe { (&raw const (*self.0).spilled).read_volatile() != 0 }
    }

    /// Counts keys of this place that are in the hashes, or about to be.
    #[inline(always)]
    pub fn count_spilled(self, change: i64) {
        unsafe { atomic::add(&raw mut (*self.0).spilled, change as u64) };
    }
}

/// Calls back for each place, with its index and its [`LiveSlot`].
#[inline(always)]
pub unsafe fn for_each(
    visit: unsafe extern "C" fn(*mut c_void, *const u32, *const LiveSlot, *mut c_void) -> i64,
    context: *mut c_void,
) {
    if live_slots() != 0 {
        let slots = (&raw const LIVE_SLOTS).cast_mut().cast();
        unsafe { bpf_for_each_map_elem(slots, visit as *mut c_void, context, 0) };
    }
}

/// What a place holds; `None` where it holds nothing, or changed while it was read.
#[inline(always)]
pub unsafe fn read(slot: *const LiveSlot) -> Option<(LiveKey, LiveValue)> {
    unsafe {
        let state = (&raw const (*slot).state).read_volatile();
        if state & LiveSlot::PHASES != LiveSlot::FULL {
            return None;
        }
        let held = (
            (&raw const (*slot).key).read_volatile(),
            (&raw const (*slot).value).read_volatile(),
        );
        ((&raw const (*slot).state).read_volatile() == state).then_some(held)
    }
}
