//! Every map: its capacity, its memory, and what happens when it is full.
//!
//! Capacities are the defaults of `abi`; user space may set others before loading.

use crate::memo::Memo;
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use leakmon_ebpf::abi::{
    Ages, COUNTS_ENTRIES_MAX, CountKey, CountValue, IMAGES_ENTRIES_MAX, LIVE_ENTRIES_MAX, LIVE_FIRST_ENTRIES_MAX,
    LIVE_SLOTS_MAX, LiveKey, LiveSlot, LiveValue, Loss, Meta, PinnedImage, RING_BYTES, STACKS_ENTRIES_MAX, Stack,
    TARGETS_ENTRIES_MAX, TargetEntry, Totals, WATCHED_ENTRIES_MAX,
};
use leakmon_ebpf::{
    rows::{
        MAPPED_PROCESSES_MAX, PAGE_CHUNKS_MAX, PAGES_PER_CHUNK, Page, ProcessMappings, ROW_CHUNKS_MAX, ROWS_PER_CHUNK,
        Row, SIGNAL_CONTEXT_WORDS,
    },
    step::Walk,
};

/// Live tasks, those whose place is free; see [`crate::slots`]. 64 bytes each, 1 MiB. Taken: [`LIVE`] is used.
#[map]
pub static LIVE_SLOTS: Array<LiveSlot> = Array::with_max_entries(LIVE_SLOTS_MAX, 0);

/// Live tasks that found their place taken, and threads; see [`crate::live`]. 96 bytes an entry of capacity, 6 MiB by default,
/// all of them taken at the start: allocating and freeing an entry at each birth and end costs more than all else that the two
/// programs do. Full: [`LIVE_MORE`] is used.
#[map]
pub static LIVE: HashMap<LiveKey, LiveValue> = HashMap::with_max_entries(LIVE_FIRST_ENTRIES_MAX, 0);

/// The live tasks and threads that found no room in [`LIVE`]. 96 bytes an entry of capacity, 90 MiB by default, all of them taken
/// at the start. Full: the birth is not counted (`untracked`), and nothing that is already counted becomes wrong.
#[map]
pub static LIVE_MORE: HashMap<LiveKey, LiveValue> =
    HashMap::with_max_entries(LIVE_ENTRIES_MAX - LIVE_FIRST_ENTRIES_MAX, 0);

/// How many are in [`LIVE_MORE`], or about to be. In a map of its own since it outlives the daemon as that one does.
#[map]
pub static OVERFLOW: Array<u64> = Array::with_max_entries(1, 0);

/// The truth: born and ended, per target and stack. About 100 bytes an entry. Full: births with a new stack are not counted.
#[map]
pub static COUNTS: HashMap<CountKey, CountValue> = HashMap::with_max_entries(COUNTS_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// How old live tasks are, per target and stack; written by the sweep alone. About 100 bytes an entry. As large as [`COUNTS`];
/// full: the ages of a stack are not known.
#[map]
pub static AGES: HashMap<CountKey, Ages> = HashMap::with_max_entries(COUNTS_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// Stacks by their hash. About 1.1 KiB an entry in use. Full: the birth is counted under a stack that has the site alone.
#[map]
pub static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(STACKS_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// Who a process is now, by tgid. Full: its hits are not counted.
#[map]
pub static TARGETS: HashMap<u32, TargetEntry> = HashMap::with_max_entries(TARGETS_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// What is counted per target, by target id; user space removes it with the target.
#[map]
pub static TOTALS: HashMap<u64, Totals> = HashMap::with_max_entries(TARGETS_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// Processes that are asked for by number, and their descendants where the value says so ([`FOLLOW`](leakmon_ebpf::abi::FOLLOW)).
/// Full: a descendant is not followed.
#[map]
pub static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(WATCHED_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// Targets whose tasks the next sweep drops; filled and emptied by user space.
#[map]
pub static PURGED: HashMap<u64, u32> = HashMap::with_max_entries(TARGETS_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// Events to user space. Full: the event is counted as dropped; the counters it reports are not affected.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What went wrong, by [`Loss`].
#[map]
pub static LOSS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

/// Who made these maps, where they are pinned; user space's own.
#[map]
pub static META: Array<Meta> = Array::with_max_entries(1, 0);

/// What image numbers stand for, where they are pinned; user space's own. About 1 KiB an entry in use. Full: the image is not
/// watched.
#[map]
pub static IMAGES: HashMap<u32, PinnedImage> = HashMap::with_max_entries(IMAGES_ENTRIES_MAX, BPF_F_NO_PREALLOC);

/// Rows of unwind tables, 64 KiB a value, 8 MiB in all. Full: images that come later are walked by frame pointer.
#[map]
pub static ROWS: Array<RowChunk> = Array::with_max_entries(ROW_CHUNKS_MAX, 0);

/// Page index of the rows, 16 KiB a value, 2 MiB in all. Full: as for [`ROWS`].
#[map]
pub static PAGES: Array<PageChunk> = Array::with_max_entries(PAGE_CHUNKS_MAX, 0);

/// Executable mappings of a target, by tgid; 4 KiB an entry in use. Full: stacks of later targets are walked by frame pointer.
#[map]
pub static MAPPINGS: HashMap<u32, ProcessMappings> = HashMap::with_max_entries(MAPPED_PROCESSES_MAX, BPF_F_NO_PREALLOC);

/// Remembered walks, found by site and stack pointer, each processor its own: 164 KiB a processor. Taken: the walk is done again.
#[map]
pub static MEMOS: PerCpuArray<Memo> = PerCpuArray::with_max_entries(MEMO_SLOTS, 0);

/// Slots of [`MEMOS`], a power of two. A busy server spawns from a handful of depths.
pub const MEMO_SLOTS: u32 = 64;
/// Words that one remembered walk may depend on, a power of two: two a frame, and 127 frames.
pub const MEMO_WORDS: usize = 256;
/// Bytes above the stack pointer that they may lie in, a power of two. Stacks of 20 to 40 frames of async Rust take 4 KiB in an
/// optimised build; those of dev builds took more, and each of their births was walked anew while this was 4 KiB.
pub const MEMO_BYTES: usize = 16384;

/// Walk scratch: more than one a processor, since a uprobe program can be preempted by another. All taken: the stack
/// has the site alone.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SCRATCH_SLOTS, 0);

/// Scratch slots a processor.
pub const SCRATCH_SLOTS: u32 = 4;

/// A value of [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// Not zero while somebody uses the slot.
    pub busy: u64,
    /// Where the walk is.
    pub walk: Walk,
    /// Address of the first word of `window`.
    pub window_base: u64,
    /// A piece of the target's stack, so that a frame costs no read of its own.
    pub window: [u64; WINDOW_WORDS],
    /// The stack as it is when a remembered walk is checked.
    pub memory: [u64; MEMO_BYTES / 8],
    /// Words that are read singly.
    pub words: [u64; SIGNAL_CONTEXT_WORDS],
    /// The stack that is being walked.
    pub stack: Stack,
}

/// Words of [`Scratch::window`]: 1 KiB, which held eight to ten frames of async Rust where it was measured.
pub const WINDOW_WORDS: usize = 128;

/// A value of [`ROWS`].
#[repr(C)]
pub struct RowChunk(pub [Row; ROWS_PER_CHUNK as usize]);

/// A value of [`PAGES`].
#[repr(C)]
pub struct PageChunk(pub [Page; PAGES_PER_CHUNK as usize]);

/// No program, for a tail call that is never made; see [`crate::private_stack`].
#[map]
pub static NOWHERE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Always 0, which the compiler does not know.
#[unsafe(no_mangle)]
static NEVER: u32 = 0;

/// Whether stacks are walked; set before loading.
#[unsafe(no_mangle)]
static WALK_STACKS: u32 = 1;

/// Whether a walk that would give the same stack as the last one is left out; set before loading.
#[unsafe(no_mangle)]
static REMEMBER_WALKS: u32 = 1;

/// Whether every birth and end is sent; set before loading.
#[unsafe(no_mangle)]
static TRACE: u32 = 0;

/// Whether the programs log; set before loading.
#[unsafe(no_mangle)]
static DEBUG: u32 = 0;

/// Entries of [`LIVE_MORE`] that may be used; set before loading. A map can't have none.
#[unsafe(no_mangle)]
static LIVE_MORE_ENTRIES: u32 = LIVE_ENTRIES_MAX - LIVE_FIRST_ENTRIES_MAX;

/// Whether [`LIVE_SLOTS`] are used; set before loading.
#[unsafe(no_mangle)]
static LIVE_SLOTS_USED: u32 = 1;

/// Hits that a target may have in a second before it is paused, and for how long; 0 pauses nobody. Set before loading.
#[unsafe(no_mangle)]
static HITS_PER_SECOND_MAX: u64 = leakmon_ebpf::abi::HITS_PER_SECOND_MAX;
#[unsafe(no_mangle)]
static PAUSE_NS: u64 = leakmon_ebpf::abi::PAUSE_NS;

/// Offsets in the running kernel's structures, from its BTF; set before loading.
#[unsafe(no_mangle)]
static TASK_TGID_OFFSET: u64 = 0;
#[unsafe(no_mangle)]
static TASK_PID_OFFSET: u64 = 0;
#[unsafe(no_mangle)]
static TASK_SIGNAL_OFFSET: u64 = 0;
#[unsafe(no_mangle)]
static SIGNAL_LIVE_OFFSET: u64 = 0;
#[unsafe(no_mangle)]
static SIGNAL_FLAGS_OFFSET: u64 = 0;
#[unsafe(no_mangle)]
static SIGNAL_EXEC_OFFSET: u64 = 0;

macro_rules! setting {
    ($(#[$doc:meta])* $name:ident: $type:ty = $global:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> $type {
            // Volatile: user space gives the value after compilation.
            unsafe { core::ptr::read_volatile(&raw const $global) }
        }
    };
}
setting!(never: u32 = NEVER);
setting!(walk_stacks: u32 = WALK_STACKS);
setting!(remember_walks: u32 = REMEMBER_WALKS);
setting!(trace: u32 = TRACE);
setting!(debug: u32 = DEBUG);
setting!(live_more_entries: u32 = LIVE_MORE_ENTRIES);
setting!(live_slots: u32 = LIVE_SLOTS_USED);
setting!(hits_per_second_max: u64 = HITS_PER_SECOND_MAX);
setting!(pause_ns: u64 = PAUSE_NS);
setting!(task_tgid_offset: u64 = TASK_TGID_OFFSET);
setting!(task_pid_offset: u64 = TASK_PID_OFFSET);
setting!(task_signal_offset: u64 = TASK_SIGNAL_OFFSET);
setting!(signal_live_offset: u64 = SIGNAL_LIVE_OFFSET);
setting!(signal_flags_offset: u64 = SIGNAL_FLAGS_OFFSET);
setting!(signal_exec_offset: u64 = SIGNAL_EXEC_OFFSET);
