//! Victim (b): the same server as `leaky_registry` with its repair, so every handler ends when its client goes.

mod registry;
mod victim;

fn main() -> std::io::Result<()> {
    registry::serve(true)
}
