//! What the BPF programs are loaded with.
//!
//! In: bounds and switches that a person may set. Out: plain data. They are fixed once the programs are loaded.

use leakmon_ebpf::abi::{
    COUNTS_ENTRIES_MAX, HITS_PER_SECOND_MAX, LIVE_ENTRIES_MAX, LIVE_FIRST_ENTRIES_MAX, LIVE_SLOTS_MAX, PAUSE_NS,
    RING_BYTES, STACKS_ENTRIES_MAX, TARGETS_ENTRIES_MAX,
};

/// What the programs are loaded with. Entry counts are bounds of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Tasks that can be followed at once at least; those in places come on top of a bound of 81,920 or more.
    pub live_entries_max: u32,
    /// Stacks that can be kept.
    pub stacks_entries_max: u32,
    /// Pairs of target and stack that can be counted.
    pub counts_entries_max: u32,
    /// Processes that can be targets at once.
    pub targets_entries_max: u32,
    /// Hits that a target may have in a second before it is paused; 0: any number.
    pub hits_per_second_max: u64,
    /// How long it is paused, in nanoseconds.
    pub pause_ns: u64,
    /// Bytes of the event ring, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Whether stacks are walked.
    pub walk_stacks: bool,
    /// Whether a walk that would give the same stack as the last one is left out.
    pub remember_walks: bool,
    /// Whether every birth and end is sent.
    pub trace: bool,
    /// Whether the programs log.
    pub debug: bool,
    /// Whether sites get programs that do nothing: the floor that benchmarks compare with.
    pub empty_programs: bool,
}

impl Settings {
    /// Places of tasks that need no hash. Which of them will be taken is chance, so they come on top of what was asked for, and a
    /// small bound has none.
    pub(super) const fn live_slots(&self) -> u32 {
        if self.live_entries_max >= LIVE_FIRST_ENTRIES_MAX + LIVE_SLOTS_MAX {
            LIVE_SLOTS_MAX
        } else {
            0
        }
    }

    /// Tasks that can be followed at once at most.
    pub(super) const fn live_capacity(&self) -> u32 {
        self.live_entries_max.saturating_add(self.live_slots())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            live_entries_max: LIVE_ENTRIES_MAX,
            stacks_entries_max: STACKS_ENTRIES_MAX,
            counts_entries_max: COUNTS_ENTRIES_MAX,
            targets_entries_max: TARGETS_ENTRIES_MAX,
            hits_per_second_max: HITS_PER_SECOND_MAX,
            pause_ns: PAUSE_NS,
            ring_bytes: RING_BYTES,
            walk_stacks: true,
            remember_walks: true,
            trace: false,
            debug: false,
            empty_programs: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_on_top_of_a_bound_that_has_room_for_as_many_beside_the_first_hash() {
        let of = |live_entries_max| {
            let settings = Settings {
                live_entries_max,
                ..Settings::default()
            };
            (settings.live_slots(), settings.live_capacity())
        };
        assert_eq!(of(81_919), (0, 81_919));
        assert_eq!(of(81_920), (16_384, 98_304));
        assert_eq!(of(u32::MAX), (16_384, u32::MAX));
    }
}
