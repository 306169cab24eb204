//! The walk by unwind tables: the maps behind [`leakmon_ebpf::step`].
//!
//! In: a probe's registers. Out: a stack in this processor's scratch memory, and why the walk ended. What a frame is
//! and how it is left is decided in `step`; here are only the reads that the verifier has to follow.

use core::ffi::c_void;

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use leakmon_ebpf::abi::FRAMES_MAX;
use leakmon_ebpf::rows::{
    MAPPED_PROCESSES_MAX, MAPPINGS_MAX, Mapping, PAGE_CHUNKS_MAX, PAGES_PER_CHUNK, Page, ProcessMappings,
    ROW_CHUNKS_MAX, ROWS_PER_CHUNK, Row, SIGNAL_CONTEXT_WORDS,
};
use leakmon_ebpf::step::{Source, Walk, step};

/// Words of the stack that one read fetches: 1 KiB, measured best at depth 13 (a call costs 60 to 75 ns).
const WINDOW_WORDS: usize = 128;
/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`): 4 KiB a process, allocated when it comes.
const NO_PREALLOC: u32 = 1;

/// One value of the row map.
#[repr(C)]
pub struct RowChunk([Row; ROWS_PER_CHUNK as usize]);
/// One value of the page map.
#[repr(C)]
pub struct PageChunk([Page; PAGES_PER_CHUNK as usize]);

/// Rows: 8 MiB, allocated at load.
#[map]
static UNWIND_ROWS: Array<RowChunk> = Array::with_max_entries(ROW_CHUNKS_MAX, 0);
/// Page index: 2 MiB, allocated at load.
#[map]
static UNWIND_PAGES: Array<PageChunk> = Array::with_max_entries(PAGE_CHUNKS_MAX, 0);
/// Mappings by tgid; when full, a process's stacks are walked by frame pointers.
#[map]
static UNWIND_PROCESSES: HashMap<u32, ProcessMappings> = HashMap::with_max_entries(MAPPED_PROCESSES_MAX, NO_PREALLOC);

/// What a walk needs besides tables: 2.2 KiB, part of the processor's scratch memory.
#[repr(C)]
pub struct UnwindScratch {
    walk: Walk,
    /// Address of `window[0]` in the target; valid only if `window_is_set`.
    window_base: u64,
    window_is_set: u64,
    words: [u64; SIGNAL_CONTEXT_WORDS + 1],
    window: [u64; WINDOW_WORDS],
    /// Addresses, innermost first.
    pub frames: [u64; FRAMES_MAX + 1],
}

/// `value & MASK`, which the compiler can't see through, so that the mask stays next to the access it makes safe.
#[inline(always)]
fn masked<const MASK: u64>(value: u32) -> usize {
    let mut index = u64::from(value);
    // SAFETY: arithmetic on one register.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) index, const MASK, options(pure, nomem, nostack, preserves_flags));
    }
    index as usize
}

#[inline(always)]
fn read_user(into: *mut u64, bytes: u32, address: u64) -> bool {
    // SAFETY: callers pass memory of at least `bytes` bytes; the helper checks the source address.
    unsafe { bpf_probe_read_user(into.cast(), bytes, address as *const c_void) == 0 }
}

#[derive(Clone, Copy)]
struct Maps {
    scratch: *mut UnwindScratch,
    process: *const ProcessMappings,
}

impl Source for Maps {
    type Rows = *const RowChunk;

    #[inline(always)]
    fn mappings_len(&self) -> u32 {
        // SAFETY: a map value, alive while the program runs. The same holds below.
        unsafe { (*self.process).len }
    }

    #[inline(always)]
    fn mapping_start(&self, index: u32) -> u64 {
        // SAFETY: the index is masked to the array's length.
        unsafe {
            (&raw const (*self.process).mappings)
                .cast::<Mapping>()
                .add(masked::<{ MAPPINGS_MAX as u64 - 1 }>(index))
                .read()
                .start
        }
    }

    #[inline(always)]
    fn mapping(&self, index: u32) -> Mapping {
        // SAFETY: the index is masked to the array's length.
        unsafe {
            (&raw const (*self.process).mappings)
                .cast::<Mapping>()
                .add(masked::<{ MAPPINGS_MAX as u64 - 1 }>(index))
                .read()
        }
    }

    #[inline(always)]
    fn page(&self, chunk: u32, index: u32) -> Option<Page> {
        let pages = UNWIND_PAGES.get_ptr(chunk)?;
        // SAFETY: the index is masked to the array's length.
        Some(unsafe {
            pages
                .cast::<Page>()
                .add(masked::<{ PAGES_PER_CHUNK as u64 - 1 }>(index))
                .read()
        })
    }

    #[inline(always)]
    fn rows(&self, chunk: u32) -> Option<*const RowChunk> {
        UNWIND_ROWS.get_ptr(chunk)
    }

    #[inline(always)]
    fn row_start(&self, rows: *const RowChunk, index: u32) -> u32 {
        self.row(rows, index).pc
    }

    #[inline(always)]
    fn row(&self, rows: *const RowChunk, index: u32) -> Row {
        // SAFETY: the index is masked to the array's length.
        unsafe {
            rows.cast::<Row>()
                .add(masked::<{ ROWS_PER_CHUNK as u64 - 1 }>(index))
                .read()
        }
    }

    #[inline(always)]
    fn pair(&mut self, address: u64) -> Option<(u64, u64)> {
        // SAFETY: as above.
        let scratch = unsafe { &mut *self.scratch };
        let mut word = address.wrapping_sub(scratch.window_base) >> 3;
        if scratch.window_is_set == 0 || word > WINDOW_WORDS as u64 - 2 || address & 7 != scratch.window_base & 7 {
            let window = (&raw mut scratch.window).cast::<u64>();
            scratch.window_is_set = 0;
            if !read_user(window, WINDOW_WORDS as u32 * 8, address) {
                // Less than a window is left above.
                let words = (&raw mut scratch.words).cast::<u64>();
                return read_user(words, 16, address).then(|| (scratch.words[0], scratch.words[1]));
            }
            scratch.window_base = address;
            scratch.window_is_set = 1;
            word = 0;
        }
        let window = (&raw const scratch.window).cast::<u64>();
        // SAFETY: the index is masked to the array's length.
        unsafe {
            Some((
                window.add(masked::<{ WINDOW_WORDS as u64 - 1 }>(word as u32)).read(),
                window
                    .add(masked::<{ WINDOW_WORDS as u64 - 1 }>(word as u32 + 1))
                    .read(),
            ))
        }
    }

    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        // SAFETY: as above.
        let scratch = unsafe { &mut *self.scratch };
        read_user((&raw mut scratch.words).cast(), 8, address).then(|| scratch.words[0])
    }

    #[inline(always)]
    fn signal_context(&mut self, address: u64) -> Option<[u64; SIGNAL_CONTEXT_WORDS]> {
        // SAFETY: as above.
        let scratch = unsafe { &mut *self.scratch };
        if !read_user(
            (&raw mut scratch.words).cast(),
            SIGNAL_CONTEXT_WORDS as u32 * 8,
            address,
        ) {
            return None;
        }
        let words = &scratch.words;
        // Only what the walk uses: rbp, rsp, rip.
        Some([words[0], 0, 0, 0, 0, words[5], words[6]])
    }

    #[inline(always)]
    fn keep(&mut self, index: u32, address: u64) {
        // SAFETY: the index is masked to the array's length, 128.
        unsafe {
            (&raw mut (*self.scratch).frames)
                .cast::<u64>()
                .add(masked::<{ FRAMES_MAX as u64 }>(index))
                .write(address)
        };
    }
}

unsafe extern "C" fn step_once(_index: u64, maps: *mut Maps) -> i64 {
    // SAFETY: `bpf_loop` hands over the pointer that `walk` gave it.
    let mut maps = unsafe { *maps };
    // SAFETY: the walk is a part of the scratch memory that `step` does not reach through `maps`.
    i64::from(!step(unsafe { &mut (*maps.scratch).walk }, &mut maps))
}

/// Walks the current thread's stack from a probe's registers into `scratch`. Returns frames kept and
/// [`leakmon_ebpf::abi::WalkEnd`]; `None` for a process whose mappings are not known.
#[inline(always)]
pub fn walk(registers: *const pt_regs, scratch: *mut UnwindScratch) -> Option<(u32, u32)> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let process = UNWIND_PROCESSES.get_ptr(&tgid)?;
    // SAFETY: the probe's registers and a map value.
    unsafe {
        (*scratch).walk = Walk::new((*registers).rip, (*registers).rsp, (*registers).rbp);
        (*scratch).window_is_set = 0;
    }
    let mut maps = Maps { scratch, process };
    // SAFETY: the callback has the helper's signature, and `maps` outlives the call.
    unsafe {
        bpf_loop(
            FRAMES_MAX as u32 + 1,
            step_once as *mut c_void,
            (&raw mut maps).cast(),
            0,
        );
        Some(((*scratch).walk.frames_len, (*scratch).walk.end))
    }
}
