//! `leakmon probes IMAGE`: prints where a binary would be probed. Needs no root and touches no kernel.

use super::{Exit, print};
use crate::{cli::ProbesArgs, export, targets};

pub(super) fn execute(args: &ProbesArgs) -> anyhow::Result<Exit> {
    let plan = targets::analyse(&args.image)?;
    print(export::plan::render(&plan).as_bytes())?;
    Ok(Exit::Done)
}
