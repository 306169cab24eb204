//! The live tasks that user space asks for.
//!
//! In: nothing, it is data. Out: what is asked ([`Wanted`]) and what is answered ([`Sample`]).

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Samples in a value of `SAMPLES`, a power of two.
pub const SAMPLES_PER_CHUNK: u32 = 2048;
/// Values of `SAMPLES`: 262,144 tasks in one pass.
pub const SAMPLE_CHUNKS_MAX: u32 = 128;
/// Stacks whose tasks can be asked for in one pass.
pub const WANTED_ENTRIES_MAX: u32 = 1 << 12;

layout! {
    /// One live task that was asked for.
    pub struct Sample {
        /// Address of its header in its target.
        pub header: u64,
        /// The [`Wanted::group`] of its stack; its stack where a target was asked for.
        pub group: u64,
        /// `CLOCK_MONOTONIC` at birth.
        pub born_ns: u64,
    }
}

layout! {
    /// Value of `WANTED` (key: [`super::CountKey`]): which tasks of a stack are asked for.
    pub struct Wanted {
        /// Those born until then.
        pub born_until_ns: u64,
        /// So many at most; the pass counts it down.
        pub room: u64,
        /// A number of user space's own, to know the stack and its target by.
        pub group: u64,
    }
}
