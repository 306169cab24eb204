//! Spawns at the end of deep call chains: async functions in async functions, and a function that calls itself.
//!
//! Each spawn leaves one task that never ends. `--async-depth N` (60), `--recursion N` (200): one spawn at each depth from 1.

mod victim;

use serde_json::json;
use std::{
    future::{Future, pending},
    hint::black_box,
    io,
    pin::Pin,
};
use victim::{Arguments, Presence, Site};

static INNERMOST: Site = Site::new("innermost", "task", "call_inwards");
static NESTED: Site = Site::new("nested", "task", "main");
static BOTTOM: Site = Site::new("bottom", "task", "descend");
static SITES: [&Site; 3] = [&INNERMOST, &NESTED, &BOTTOM];

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["async-depth", "recursion"])?;
    let async_depth = arguments.number("async-depth", 60);
    let recursion = arguments.number("recursion", 200);
    let runtime = victim::runtime(1)?;
    victim::first_phase(&arguments)?;
    victim::second_phase(&arguments, &SITES)?;
    runtime.block_on(async {
        // One task whose stack holds all of the chain when it spawns.
        let nested = tokio::spawn(nest(async_depth, NESTED.enter()));
        let _ = nested.await;
        for depth in 1..=recursion {
            descend(depth);
        }
        victim::settle(1 + recursion).await;
    });
    victim::leave(&arguments, &SITES, json!({}))
}

async fn nest(depth: usize, _presence: Presence) {
    call_inwards(depth).await;
}

/// An async function that calls itself must box its future.
fn call_inwards(depth: usize) -> Pin<Box<dyn Future<Output = usize> + Send>> {
    Box::pin(async move {
        if depth <= 1 {
            tokio::spawn(innermost(INNERMOST.enter()));
            return 1;
        }
        1 + call_inwards(depth - 1).await
    })
}

async fn innermost(_presence: Presence) {
    pending::<()>().await;
}

/// Needs its frame after the call, so that the compiler makes no loop of it.
#[inline(never)]
fn descend(depth: usize) -> usize {
    if depth <= 1 {
        tokio::spawn(bottom(BOTTOM.enter()));
        return 1;
    }
    1 + black_box(descend(black_box(depth - 1)))
}

async fn bottom(_presence: Presence) {
    pending::<()>().await;
}
