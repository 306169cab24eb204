//! Walks of this process, compared with the unwinder that the standard library uses for panics.

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use leakmon_ebpf::abi::{FRAMES_MAX, WalkEnd};
use leakmon_ebpf::rows::ProcessMappings;

use super::super::arena::Arena;
use super::super::walk::{Registers, WalkedStack, walk};
use super::{own_memory, own_tables};

unsafe extern "C" {
    fn _Unwind_Backtrace(each: extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn keep_address(context: *mut c_void, argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the vector that `stacks_here` passes, alive and not otherwise used during the call;
    // `context` is the unwinder's own.
    unsafe { (*argument.cast::<Vec<u64>>()).push(_Unwind_GetIP(context) as u64) };
    0
}

/// The stack from here as the walk sees it and as the platform's unwinder does, each without this function's frame.
#[inline(never)]
fn stacks_here(tables: &(Arena, ProcessMappings)) -> (WalkedStack, Vec<u64>) {
    let (pc, sp, bp): (u64, u64, u64);
    // SAFETY: reads registers only.
    unsafe {
        asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) pc, out(reg) sp, out(reg) bp,
            options(nomem, nostack, preserves_flags));
    }
    let memory = own_memory();
    let mut walked = walk(&tables.0, &tables.1, Registers { pc, sp, bp }, |address| {
        let mut word = [0; 8];
        memory
            .read_exact_at(&mut word, address)
            .ok()
            .map(|()| u64::from_le_bytes(word))
    });
    let mut truth: Vec<u64> = Vec::new();
    // SAFETY: the callback gets the vector back as the type it is.
    unsafe { _Unwind_Backtrace(keep_address, (&raw mut truth).cast()) };
    walked.frames.remove(0);
    truth.remove(0);
    // libgcc gives the address 0 for what is above an undefined return address.
    truth.pop_if(|address| *address == 0);
    (walked, truth)
}

#[inline(never)]
fn assert_complete(tables: &(Arena, ProcessMappings)) -> usize {
    let (walked, truth) = stacks_here(tables);
    assert_eq!(walked.frames, truth);
    assert_eq!((walked.end, walked.by_frame_pointer), (WalkEnd::Root, 0));
    std::hint::black_box(truth.len())
}

#[inline(never)]
fn recursion(depth: usize, tables: &(Arena, ProcessMappings), leaf: &dyn Fn(&(Arena, ProcessMappings))) -> u64 {
    // Frames of different sizes, so that one wrong offset shows.
    let pad = [depth as u64; 5];
    let pad = std::hint::black_box(pad);
    if depth == 0 {
        leaf(tables);
    } else if depth.is_multiple_of(3) {
        let large = std::hint::black_box([0u8; 900]);
        recursion(depth - 1, tables, leaf);
        return u64::from(large[depth]);
    } else {
        recursion(depth - 1, tables, leaf);
    }
    pad[depth % 5]
}

#[test]
fn recursive_stacks_are_walked_to_the_root() {
    let tables = own_tables();
    for depth in [0, 1, 2, 3, 10, 60] {
        recursion(depth, &tables, &|tables| {
            assert!(assert_complete(tables) > depth);
        });
    }
}

#[test]
fn a_stack_that_is_too_deep_keeps_its_innermost_frames() {
    let tables = own_tables();
    recursion(200, &tables, &|tables| {
        let (walked, truth) = stacks_here(tables);
        assert_eq!(walked.end, WalkEnd::TooDeep);
        assert_eq!(walked.frames.len(), FRAMES_MAX - 1, "one frame is this function's own");
        assert_eq!(walked.frames, truth[..FRAMES_MAX - 1]);
    });
}

#[test]
fn calls_through_closures_std_and_libc_are_walked() {
    let tables = own_tables();
    let nested = |inner: &dyn Fn()| {
        let twice = || {
            let mut numbers = [3, 1, 2];
            numbers.sort_by_key(|number| {
                if *number == 1 {
                    inner();
                }
                std::hint::black_box(*number)
            });
        };
        twice();
    };
    nested(&|| {
        nested(&|| {
            assert_complete(&tables);
        });
    });
    std::thread::scope(|scope| {
        scope.spawn(|| assert_complete(&tables)).join().unwrap();
    });
    assert!(std::panic::catch_unwind(|| assert_complete(&tables)).is_ok());
}

static FOR_HANDLERS: Mutex<Option<(Arena, ProcessMappings)>> = Mutex::new(None);
static HANDLED: Mutex<Vec<(WalkedStack, Vec<u64>)>> = Mutex::new(Vec::new());

extern "C" fn on_compare(_: *const c_void, _: *const c_void) -> c_int {
    record();
    0
}

extern "C" fn on_signal(_: c_int) {
    record();
}

fn record() {
    let tables = FOR_HANDLERS.lock().unwrap();
    HANDLED.lock().unwrap().push(stacks_here(tables.as_ref().unwrap()));
}

#[test]
fn frames_of_libc_and_of_a_signal_are_walked() {
    *FOR_HANDLERS.lock().unwrap() = Some(own_tables());
    let mut numbers = [2u64, 1];
    // SAFETY: two elements of eight bytes, and a comparison that reads neither; the handler is a function of the
    // right type for a signal that nothing else here uses, raised on this thread with no lock held.
    unsafe {
        libc::qsort(numbers.as_mut_ptr().cast(), 2, 8, Some(on_compare));
        libc::signal(libc::SIGUSR1, on_signal as *const () as libc::sighandler_t);
        libc::raise(libc::SIGUSR1);
        libc::signal(libc::SIGUSR1, libc::SIG_DFL);
    }
    let handled = HANDLED.lock().unwrap();
    assert_eq!(handled.len(), 2, "one comparison, one signal");
    for (walked, truth) in handled.iter() {
        assert_eq!(&walked.frames, truth);
        assert_eq!(walked.end, WalkEnd::Root);
    }
}
