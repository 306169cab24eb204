//! `leakmon census -p PID`: the tasks that a process holds, from its memory alone. No probe, no BPF, no root beyond the
//! permission to read the process's memory.

use super::{Destination, Exit, Unprobeable, analyst};
use crate::{
    cli::{CensusArgs, CensusFormat},
    daemon::plan_of_process,
    export::census::{CensusReport, ProcessCensus},
    memory::{
        census::{self, Limits, Memories},
        program::Program,
    },
    symbols::image::Image,
};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How long the scan may take, unless asked otherwise: 4 GiB take about one second.
const TIME_MAX: Duration = Duration::from_secs(60);

pub(super) fn execute(args: &CensusArgs) -> anyhow::Result<Exit> {
    let tgid = args.pid;
    let (plan, image) = plan_of_process(&analyst()?, tgid)?;
    let entry =
        Image::read(&image.file, &image.path).with_context(|| format!("{}: can't be read", image.path.display()))?;
    let entry = plan.entry_file_offset.and_then(|offset| entry.address_of(offset));
    let entry = entry.ok_or_else(|| Unprobeable(format!("{}: has no entry point", image.path.display())))?;
    let program = Program::new(&plan, entry)?;
    let (mut memory, layouts) = program.open(tgid)?;
    let limits = Limits {
        bytes_max: u64::MAX,
        time_max: args.time_max.unwrap_or(TIME_MAX),
        confirm: args.confirm_interval,
    };
    // Draws on stderr, and only where that is a terminal.
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("reading memory {wide_bar} {bytes}/{total_bytes}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let taken = census::take(&mut memory, &layouts, limits, &mut Memories::default(), |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let taken = taken?;
    let report = CensusReport::new(&taken, &layouts, &plan);
    let found = ProcessCensus::new(
        tgid,
        image.path.display().to_string(),
        plan.runtime,
        plan.runtime_version.clone(),
        report,
    );
    let destination = args.output.as_deref().map_or(Destination::Stdout, Destination::File);
    let bytes = match args.format {
        CensusFormat::Json => found.json(),
        CensusFormat::Table => found.table(&destination.options()).into_bytes(),
    };
    destination.write(&bytes)?;
    Ok(Exit::Done)
}
