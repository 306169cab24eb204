//! `leakmon probes IMAGE`: prints where a binary would be probed. Needs no root and touches no kernel.

use super::{Exit, analyst, print, progress::Spinner};
use crate::{cli::ProbesArgs, export, targets};

pub(super) fn execute(args: &ProbesArgs) -> anyhow::Result<Exit> {
    let (plan, _file) = {
        let _scanning = Spinner::new("looking for probe sites");
        targets::analyse_path(&analyst()?, &args.image)?
    };
    print(export::plan::render(&plan).as_bytes())?;
    Ok(Exit::Done)
}
