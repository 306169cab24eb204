//! THE contract between the BPF programs and user space: cookies, map keys and values, event records, limits.
//!
//! Everything here is plain data with a fixed layout (`repr(C)`, no padding that is not named), the same on both
//! sides. User space parses it with `zerocopy` and never transmutes. Nothing here knows a tokio version: a
//! [`Cookie`] carries all that a program must know of its probe site.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes whenever a layout below changes; pinned maps of another version are discarded.
pub const ABI_VERSION: u32 = 5;

/// Most frames of a stack. 127 is what the kernel's own stack helpers keep (`PERF_MAX_STACK_DEPTH`).
pub const FRAMES_MAX: usize = 127;

/// Different stacks that can be kept, unless configured otherwise.
pub const STACKS_ENTRIES_MAX: u32 = 1 << 14;
/// Pairs of a target and a stack that can be counted, unless configured otherwise.
pub const COUNTS_ENTRIES_MAX: u32 = 1 << 16;
/// Processes that can be targets at once.
pub const TARGETS_ENTRIES_MAX: u32 = 1 << 12;
/// Processes that can be asked for by number at once, their descendants included.
pub const WATCHED_ENTRIES_MAX: u32 = 1 << 14;
/// Bytes of the event ring, unless configured otherwise.
pub const RING_BYTES: u32 = 1 << 20;

/// A callsite that changes is reported at most once in this time.
pub const REPORT_INTERVAL_NS: u64 = 100_000_000;

/// Hits of a target are counted over this time and compared with the bound on its rate.
pub const RATE_WINDOW_NS: u64 = 1_000_000_000;
/// Hits that a target may have in a second, unless configured otherwise: at 0.7 µs or more each they keep a processor busy.
pub const HITS_PER_SECOND_MAX: u64 = 1_000_000;
/// How long a target that had more hits is paused, unless configured otherwise.
pub const PAUSE_NS: u64 = 10_000_000_000;

/// Key, in place of a stack's, of threads that were there before their process was looked at, its first one included.
pub const EARLIER_THREADS: u64 = 1;

/// Ends of each stack that send a [`RecordKind::Proof`].
pub const PROOFS_PER_STACK: u64 = 4;

/// Flag of a process in `WATCHED`: its descendants are watched too.
pub const FOLLOW: u32 = 1;
/// Flag of a process in `WATCHED`: it stops at its entry point until user space lets it go. Not passed on.
pub const HOLD: u32 = 2;
/// Flag of a process in `WATCHED`: its children, but not theirs, get [`HOLD`].
pub const HOLD_CHILDREN: u32 = 4;
/// Flag of a process in `WATCHED`: it stops at each exec until user space lets it go. Passed on to its descendants.
pub const HOLD_EXEC: u32 = 8;

/// What a hit of a probe site means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "bpf"), derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Role {
    /// A task's memory has been allocated; the register holds its header's address.
    Birth = 0,
    /// A task has completed; the register holds its header's address.
    End = 1,
    /// A task is being released: freed, or in its terminal state; the register holds its header's address. One that was not seen to
    /// complete ends so, and one that was is none of the live ones any more.
    Freed = 2,
}

/// When a hit counts. The sites are often branches, whose condition the program evaluates itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "bpf"), derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Condition {
    /// Every hit counts.
    Always = 0,
    /// The hit counts where the zero flag is set (`jne` after `lock cmpxchg`: this try succeeded).
    ZeroSet = 1,
    /// The hit counts where the zero flag is clear (`je` after the allocation's null check).
    ZeroClear = 2,
}

/// What kind of task a birth site makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "bpf"), derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Kind {
    /// `tokio::spawn` and its like, on either scheduler.
    Task = 0,
    /// `spawn_local`, where a symbol proves it.
    Local = 1,
    /// `spawn_blocking`.
    Blocking = 2,
    /// A thread of the operating system, whoever started it.
    Thread = 3,
}

/// All that a BPF program must know of the site it was attached to, in 64 bits.
///
/// | bits | field |
/// | --- | --- |
/// | 0–4 | register that holds the header's address, by its machine encoding (x86-64: rax 0, rcx 1, rdx 2, rbx 3, rsp 4, rbp 5, rsi 6, rdi 7, r8–r15) |
/// | 5–7 | [`Role`] |
/// | 8–10 | [`Condition`] |
/// | 11–13 | [`Kind`] (births) |
/// | 14 | every process of the image is a target, not just those in `WATCHED` |
/// | 16–39 | site's index in its image's plan |
/// | 40–55 | image number, given by user space |
/// | 56–63 | births: which word of the header points to the vtable, 0 where that is not known |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Site indices are below this.
    pub const SITES_MAX: u32 = 1 << 24;
    /// Image numbers are below this.
    pub const IMAGES_MAX: u32 = 1 << 16;
    const EVERY_PROCESS: u64 = 1 << 14;
    /// Stands in for a birth site where a thread is started, which is no site of an image.
    pub const THREAD: Self = Self::new(
        0,
        Role::Birth,
        Condition::Always,
        Kind::Thread,
        Self::SITES_MAX - 1,
        Self::IMAGES_MAX - 1,
    );
    const VTABLE_WORD_SHIFT: u32 = 56;

    /// Packs the fields; what exceeds its bits is cut off, so callers check `site` and `image` against the bounds.
    #[must_use]
    pub const fn new(register: u8, role: Role, condition: Condition, kind: Kind, site: u32, image: u32) -> Self {
        Self(
            (register as u64 & 0x1f)
                | (role as u64) << 5
                | (condition as u64) << 8
                | (kind as u64) << 11
                | (site as u64 & 0xff_ffff) << 16
                | (image as u64 & 0xffff) << 40,
        )
    }

    /// The same site, for every process of its image.
    #[must_use]
    pub const fn for_every_process(self) -> Self {
        Self(self.0 | Self::EVERY_PROCESS)
    }

    /// Whether processes need not be in `WATCHED`.
    #[must_use]
    pub const fn is_for_every_process(self) -> bool {
        self.0 & Self::EVERY_PROCESS != 0
    }

    /// The same site, with the word of the header that points to the vtable.
    #[must_use]
    pub const fn with_vtable_word(self, word: u8) -> Self {
        Self(self.0 & !(0xff << Self::VTABLE_WORD_SHIFT) | (word as u64) << Self::VTABLE_WORD_SHIFT)
    }

    /// The word of the header that points to the vtable: its offset divided by 8.
    #[must_use]
    pub const fn vtable_word(self) -> u8 {
        (self.0 >> Self::VTABLE_WORD_SHIFT) as u8
    }

    /// Machine encoding of the register that holds the header's address.
    #[must_use]
    pub const fn register(self) -> u8 {
        (self.0 & 0x1f) as u8
    }

    /// Raw [`Role`].
    #[must_use]
    pub const fn role(self) -> u8 {
        (self.0 >> 5 & 7) as u8
    }

    /// Raw [`Condition`].
    #[must_use]
    pub const fn condition(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Raw [`Kind`].
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// Whether what is counted is a thread.
    #[must_use]
    pub const fn is_thread(self) -> bool {
        self.kind() == Kind::Thread as u8
    }

    /// Index of the site in its image's plan.
    #[must_use]
    pub const fn site(self) -> u32 {
        (self.0 >> 16 & 0xff_ffff) as u32
    }

    /// Number of the image.
    #[must_use]
    pub const fn image(self) -> u32 {
        (self.0 >> 40 & 0xffff) as u32
    }
}

/// A target: a process since its last exec. The upper 42 bits are the low bits of the exec's (or the first hit's)
/// `CLOCK_MONOTONIC` time in nanoseconds, the lower 22 the tgid, so neither exec nor PID reuse can mix two up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

impl TargetId {
    /// `PID_MAX_LIMIT` is 2^22 (`include/linux/threads.h`).
    const TGID_BITS: u32 = 22;

    /// The identity of process `tgid` that began (or was first seen) at `since_ns`.
    #[must_use]
    pub const fn new(tgid: u32, since_ns: u64) -> Self {
        Self(since_ns << Self::TGID_BITS | (tgid as u64 & ((1 << Self::TGID_BITS) - 1)))
    }

    /// The process.
    #[must_use]
    pub const fn tgid(self) -> u32 {
        (self.0 & ((1 << Self::TGID_BITS) - 1)) as u32
    }
}

/// Derives what user space needs to parse and write a layout; the BPF side needs only `Clone` and `Copy`.
macro_rules! layout {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, IntoBytes, Immutable, KnownLayout, PartialEq, Eq))]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
    };
}

mod live;
pub use live::{LIVE_ENTRIES_MAX, LIVE_FIRST_ENTRIES_MAX, LIVE_SLOTS_MAX, LiveKey, LiveSlot, LiveValue};

layout! {
    /// Key of `COUNTS`: one stack in one target.
    pub struct CountKey {
        /// [`TargetId`].
        pub target: u64,
        /// Key in `STACKS`.
        pub stack: u64,
    }
}

layout! {
    /// Value of `COUNTS`. The two counters only rise; live is their difference.
    pub struct CountValue {
        /// Tasks born with this stack.
        pub born: u64,
        /// Of them, those that have ended.
        pub ended: u64,
        /// When the last event about this entry was sent.
        pub reported_ns: u64,
        /// [`Cookie`] of the birth site.
        pub cookie: u64,
        /// Birth of the oldest live task, as of the sweep `swept`.
        pub oldest_born_ns: u64,
        /// Number of the last sweep that found a live task here.
        pub swept: u64,
    }
}

/// Classes of age that a sweep tells live tasks apart by; [`age_class`] has their bounds.
pub const AGE_CLASSES: usize = 8;

/// The class of an age: how many of the bounds 1, 4, 16, 64, 256, 1024 and 4096 seconds it has reached.
#[inline(always)]
#[must_use]
pub const fn age_class(age_ns: u64) -> u32 {
    const SECOND: u64 = 1_000_000_000;
    (age_ns >= SECOND) as u32
        + (age_ns >= 4 * SECOND) as u32
        + (age_ns >= 16 * SECOND) as u32
        + (age_ns >= 64 * SECOND) as u32
        + (age_ns >= 256 * SECOND) as u32
        + (age_ns >= 1024 * SECOND) as u32
        + (age_ns >= 4096 * SECOND) as u32
}

layout! {
    /// Value of `AGES` (key: [`CountKey`]): how old the live tasks of a stack were at a sweep.
    pub struct Ages {
        /// Number of the last sweep that found a live task here.
        pub swept: u64,
        /// Live tasks by [`age_class`].
        pub classes: [u32; AGE_CLASSES],
    }
}

mod samples;

pub use samples::{SAMPLE_CHUNKS_MAX, SAMPLES_PER_CHUNK, Sample, WANTED_ENTRIES_MAX, Wanted};

/// Why a stack walk stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum WalkEnd {
    /// The thread's start was reached: complete.
    Root = 0,
    /// A frame pointer led out of the stack: what is above is not known.
    FramePointer = 1,
    /// The stack could not be read.
    BadRead = 2,
    /// More than [`FRAMES_MAX`] frames.
    TooDeep = 3,
    /// No stack was wanted.
    NotWalked = 4,
    /// No unwind table covers an address.
    NoTable = 5,
    /// A table's rule can't be expressed.
    Unsupported = 6,
}

layout! {
    /// Value of `STACKS`.
    pub struct Stack {
        /// [`Cookie`] of the birth site.
        pub cookie: u64,
        /// How many of `frames` are set.
        pub frames_len: u32,
        /// [`WalkEnd`].
        pub walk_end: u32,
        /// Addresses in the target: the site's own first, then return addresses, innermost first.
        pub frames: [u64; FRAMES_MAX],
    }
}

layout! {
    /// Value of `TARGETS` (key: tgid): who the process is now.
    pub struct TargetEntry {
        /// [`TargetId`].
        pub target: u64,
        /// `CLOCK_MONOTONIC` of its exec, or of the first hit where the exec was not seen.
        pub since_ns: u64,
        /// When user space was last asked to look at its mappings.
        pub asked_ns: u64,
        /// When `hits` began to be counted.
        pub window_ns: u64,
        /// Hits since then; several processors may lose a few.
        pub hits: u64,
        /// Births before this time are not tracked, since there were too many hits.
        pub paused_until_ns: u64,
        /// 1 where the process was seen at its entry point: no task of it is older than what is counted.
        pub whole: u64,
        /// 1 where the process is not wanted: its hits count nothing until it calls exec or ends.
        pub excluded: u64,
    }
}

impl TargetEntry {
    /// An entry of a target that has not been hit.
    #[must_use]
    pub const fn new(target: TargetId, since_ns: u64) -> Self {
        Self {
            target: target.0,
            since_ns,
            asked_ns: 0,
            window_ns: since_ns,
            hits: 0,
            paused_until_ns: 0,
            whole: 0,
            excluded: 0,
        }
    }
}

layout! {
    /// Value of `TOTALS` (key: [`TargetId`]): what is counted per target and not per stack.
    pub struct Totals {
        /// Ends of tasks whose birth was not seen: older than the attach, as far as can be known.
        pub unmatched_ends: u64,
        /// Births at an address whose task had not ended; the older task counts as ended.
        pub replaced: u64,
        /// Births that were seen but not counted: a table was full, or the target was paused.
        pub untracked: u64,
        /// Ends of such tasks, where they can't be taken for others: in a target that was seen at its entry point.
        pub untracked_ends: u64,
    }
}

impl Totals {
    /// Nothing counted.
    pub const NONE: Self = Self {
        unmatched_ends: 0,
        replaced: 0,
        untracked: 0,
        untracked_ends: 0,
    };
}

/// What a [`Record`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum RecordKind {
    /// A stack was counted for the first time in a target: `stack`, `first` the site's [`Cookie`].
    Stack = 0,
    /// A callsite changed: `stack`, `first` born so far, `second` ended so far.
    Changed = 1,
    /// A process became a target, by its first hit: `target`.
    Target = 2,
    /// A watched process called exec: `target` is the new one (0 if there was no room), `first` the [`TargetId`] before
    /// (0 if there was none), `second` the tgid.
    Exec = 3,
    /// The last thread of a target's process has gone: `target`.
    Exit = 4,
    /// A watched process forked: `first` is the child's tgid.
    Fork = 5,
    /// With `--trace`: a task was born: `stack`, `first` its header.
    Birth = 6,
    /// With `--trace`: a task ended: `stack`, `first` its header.
    End = 7,
    /// A walk met code without a table: its `target` may have new mappings. At most one in [`REPORT_INTERVAL_NS`].
    Miss = 8,
    /// A command stands, stopped: `target`. At its entry point until its tables are loaded, or, where `first` is 1, at its
    /// exec until what it runs is known.
    Held = 9,
    /// A target had too many hits: `target`, `first` the time until which its births are not tracked.
    Paused = 10,
    /// What the header of one of a stack's first tasks showed at its end: `stack` is the birth's [`Cookie`]; `first` the pointer to
    /// the vtable, less the address of the end site; `second` the end's [`Cookie`] with the state word's low byte in bits 56–63.
    Proof = 11,
}

layout! {
    /// One record of the event ring.
    pub struct Record {
        /// [`RecordKind`].
        pub kind: u32,
        /// Thread that caused it.
        pub tid: u32,
        /// `CLOCK_MONOTONIC`.
        pub time_ns: u64,
        /// [`TargetId`].
        pub target: u64,
        /// Key in `STACKS`, or 0.
        pub stack: u64,
        /// Meaning depends on the kind.
        pub first: u64,
        /// Meaning depends on the kind.
        pub second: u64,
    }
}

mod loss;
pub use loss::Loss;

mod pins;
pub use pins::{IMAGES_ENTRIES_MAX, Meta, PATH_BYTES_MAX, PinnedImage};

#[cfg(test)]
mod tests;
