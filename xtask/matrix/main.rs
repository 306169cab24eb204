//! The matrix's victim: spawns tasks in every way, prints how many were born, ended and live, and exits with them as they are.
//!
//! In: nothing. Out: one line of JSON. `cargo xtask matrix` copies `tasks.rs` beside it as `first.rs`, and once more for a
//! second tokio in the same program.

mod first;
#[cfg(feature = "second")]
mod second;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of each sort that ends, and of each that doesn't.
const COUNTS: (usize, usize) = (100, 9);

/// What the C program calls where this is a shared library.
#[cfg(feature = "library")]
#[no_mangle]
pub extern "C" fn run_victim() {
    main();
}

fn main() {
    #[allow(unused_mut)]
    let (mut spawned, mut ended) = first::run(COUNTS.0, COUNTS.1);
    #[cfg(feature = "second")]
    {
        let more = second::run(COUNTS.0, COUNTS.1);
        spawned += more.0;
        ended += more.1;
    }
    let live = spawned - ended;
    println!("{{\"spawned\":{spawned},\"ended\":{ended},\"live\":{live}}}");
    // Returns to the C program where this is a library; no destructor ends a task either way.
    #[cfg(not(feature = "library"))]
    std::process::exit(0);
}
