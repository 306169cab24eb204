//! Leaks threads: `accept` starts some that never end, `compute` some that do. There is no async runtime in it.
//!
//! It works in phases, one for each line of its input, and prints `ready` after each.

use std::{
    io::{self, BufRead as _, Write as _},
    thread,
};

const LEAKED: usize = 5;
const ENDED: usize = 4;

fn main() -> io::Result<()> {
    let mut input = io::stdin().lock();
    loop {
        accept();
        compute();
        let mut out = io::stdout().lock();
        writeln!(out, "ready")?;
        out.flush()?;
        if input.read_line(&mut String::new())? == 0 {
            return Ok(());
        }
    }
}

/// Threads that wait for ever.
#[inline(never)]
fn accept() {
    for _ in 0..LEAKED {
        // Dropping the handle lets the thread go on.
        drop(thread::spawn(|| {
            loop {
                thread::park();
            }
        }));
    }
}

/// Threads that end at once and are waited for.
#[inline(never)]
fn compute() {
    let threads: Vec<_> = (0..ENDED).map(|_| thread::spawn(|| {})).collect();
    for thread in threads {
        // A closure that does nothing does not panic.
        let _done = thread.join();
    }
}
