//! The table of live tasks and threads: keys, values, and the places of tasks that need no hash.
//!
//! In: nothing, it is data. Out: what the three maps `LIVE_SLOTS`, `LIVE` and `LIVE_MORE` hold.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Tasks and threads that can be followed at once at least, unless configured otherwise; those in places come on top.
pub const LIVE_ENTRIES_MAX: u32 = 1 << 20;
/// Of them, those in the first of two hashes: a pass takes some 12 ns a bucket, be it empty, which is 12 ms over a million.
pub const LIVE_FIRST_ENTRIES_MAX: u32 = 1 << 16;
/// Tasks that have a place and need no hash, a power of two. A pass visits each of them, a quarter as many as the first hash has
/// buckets.
pub const LIVE_SLOTS_MAX: u32 = 1 << LIVE_SLOTS_BITS;
const LIVE_SLOTS_BITS: u32 = 14;

layout! {
    /// Key of `LIVE` and `LIVE_MORE`: one task or thread.
    pub struct LiveKey {
        /// [`TargetId`](super::TargetId).
        pub target: u64,
        /// Address of the task's header in the target; of a thread its tid with the highest bit set, which no address of
        /// a process has.
        pub header: u64,
    }
}

impl LiveKey {
    const THREAD: u64 = 1 << 63;
    /// The golden ratio's bits, odd: the upper bits of a product with it are spread (Knuth, The Art of Computer Programming, 6.4).
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

    /// The key of a thread.
    #[must_use]
    pub const fn thread(target: u64, tid: u32) -> Self {
        Self {
            target,
            header: Self::THREAD | tid as u64,
        }
    }

    /// Whether it is a thread's.
    #[must_use]
    pub const fn is_thread(&self) -> bool {
        self.header & Self::THREAD != 0
    }

    /// Index of its place in `LIVE_SLOTS`, below [`LIVE_SLOTS_MAX`].
    #[inline(always)]
    #[must_use]
    pub const fn slot(&self) -> u32 {
        let mixed = (self.header ^ self.target.rotate_left(32)).wrapping_mul(Self::SPREAD);
        (mixed >> (u64::BITS - LIVE_SLOTS_BITS)) as u32
    }
}

layout! {
    /// Value of `LIVE` and `LIVE_MORE`.
    pub struct LiveValue {
        /// Stack at birth.
        pub stack: u64,
        /// `CLOCK_MONOTONIC` at birth.
        pub born_ns: u64,
    }
}

layout! {
    /// Value of `LIVE_SLOTS`: a place, and the task that is in it while it is full.
    pub struct LiveSlot {
        /// The phase in the two lowest bits; above it, how many tasks have been taken out of it.
        pub state: u64,
        /// Keys that belong here and are in `LIVE` or `LIVE_MORE`, those just being put there or taken from there included.
        pub spilled: u64,
        /// The task.
        pub key: LiveKey,
        /// What is known of it.
        pub value: LiveValue,
        /// Fills the place up to a cache line.
        pub unused: [u64; 2],
    }
}

impl LiveSlot {
    /// Where a state has its phase.
    pub const PHASES: u64 = 3;
    /// Phase: nothing is here.
    pub const FREE: u64 = 0;
    /// Phase: a task is being written.
    pub const FILLING: u64 = 1;
    /// Phase: the task is live.
    pub const FULL: u64 = 2;
}
