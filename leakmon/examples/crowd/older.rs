//! A few tasks that wait until the end of the input, under any tokio. It says one line once they are there.

use std::{
    future::pending,
    io::{self, Read as _},
};
use tokio::runtime::Builder;

pub(crate) fn main() -> io::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(1).build()?;
    for _ in 0..10 {
        runtime.spawn(pending::<()>());
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    // A plain return would end every task first.
    std::process::exit(0)
}
