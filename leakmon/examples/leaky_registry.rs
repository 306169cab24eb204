//! Victim (a), the classic leak: callbacks that are never taken out of a registry keep channel senders alive, so the
//! handlers of clients that have long gone wait for ever.
//!
//! By default 60 tasks run `handle_conn`, 17 end, 43 stay. `--connections N` and `--pings N` change the second phase,
//! `--pace-ms N` stretches it.

mod registry;
mod victim;

fn main() -> std::io::Result<()> {
    registry::serve(false)
}
