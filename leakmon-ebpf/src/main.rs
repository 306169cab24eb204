//! leakmon's BPF programs: the entry points, one line each.
//!
//! In: hits of probe sites and three kernel tracepoints. Out: the maps of [`maps`] and the events of [`emit`]. The
//! programs know no runtime and no version: what a hit means is in its cookie. Compiled for `bpfel-unknown-none` by
//! `cargo xtask build-ebpf`; on the host this file is an empty program, so that the workspace builds without a BPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::undocumented_unsafe_blocks,
        unreachable_pub,
        reason = "every access to a map or a register is unsafe here; the verifier proves it"
    )
)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod live;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod memo;
#[cfg(target_arch = "bpf")]
mod private_stack;
#[cfg(target_arch = "bpf")]
mod process;
#[cfg(target_arch = "bpf")]
mod registers;
#[cfg(target_arch = "bpf")]
mod sample;
#[cfg(target_arch = "bpf")]
mod slots;
#[cfg(target_arch = "bpf")]
mod sweep;
#[cfg(target_arch = "bpf")]
mod target;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod thread;
#[cfg(target_arch = "bpf")]
mod unwind;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{raw_tracepoint, uprobe},
        programs::{ProbeContext, RawTracePointContext},
    };

    /// A task has been born.
    #[uprobe]
    pub fn task_birth(ctx: ProbeContext) -> u32 {
        crate::private_stack::refuse(&ctx);
        crate::task::birth(&ctx)
    }

    /// A task has ended.
    #[uprobe]
    pub fn task_end(ctx: ProbeContext) -> u32 {
        crate::private_stack::refuse(&ctx);
        crate::task::end(&ctx)
    }

    /// A process stands at its entry point.
    #[uprobe]
    pub fn process_entry(ctx: ProbeContext) -> u32 {
        crate::private_stack::refuse(&ctx);
        crate::process::entry(&ctx)
    }

    /// Does nothing: the floor of what a probe costs, for the benchmarks.
    #[uprobe]
    pub fn empty(_ctx: ProbeContext) -> u32 {
        0
    }

    /// `task_newtask(struct task_struct *task, u64 clone_flags)`.
    #[raw_tracepoint]
    pub fn process_fork(ctx: RawTracePointContext) -> i32 {
        crate::process::fork(&ctx)
    }

    /// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`.
    #[raw_tracepoint]
    pub fn process_exec(ctx: RawTracePointContext) -> i32 {
        crate::process::exec(&ctx)
    }

    /// `sched_process_exit(struct task_struct *p, …)`.
    #[raw_tracepoint]
    pub fn process_exit(ctx: RawTracePointContext) -> i32 {
        crate::process::exit(&ctx)
    }

    /// Run by user space, attached to nothing: a thread that was there before its process was a target, or that has gone.
    #[raw_tracepoint]
    pub fn thread_found(ctx: RawTracePointContext) -> i32 {
        crate::thread::found(&ctx)
    }

    /// Run by user space, attached to nothing: a target is not wanted.
    #[raw_tracepoint]
    pub fn exclude_target(ctx: RawTracePointContext) -> i32 {
        crate::target::exclude(&ctx)
    }

    /// Run by user space, attached to nothing: finds the oldest task of every stack and drops the tasks of dead targets.
    #[raw_tracepoint]
    pub fn sweep_live(ctx: RawTracePointContext) -> i32 {
        crate::sweep::sweep(&ctx)
    }

    /// Run by user space, attached to nothing: collects the headers of live tasks.
    #[raw_tracepoint]
    pub fn sample_live(ctx: RawTracePointContext) -> i32 {
        crate::sample::sample(&ctx)
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // An endless loop: the verifier rejects a program from which this can be reached.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
