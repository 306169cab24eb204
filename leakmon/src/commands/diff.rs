//! `leakmon diff OLD NEW`: compares two JSON reports. Needs no root and touches no kernel.

use super::{Destination, Exit};
use crate::{
    cli::{DiffArgs, DiffFormat},
    export::{
        comparison::{self, Change, Comparison},
        report::Report,
    },
};
use anyhow::{Context, bail};
use std::{fs::File, io::Read, path::Path};

/// Bytes of a report that are read. Ten thousand callsites with all their stacks fit.
const REPORT_BYTES_MAX: u64 = 128 << 20;

pub(super) fn execute(args: &DiffArgs) -> anyhow::Result<Exit> {
    let comparison = Comparison::new(read(&args.old)?, read(&args.new)?, args.tolerance);
    let destination = args.output.as_deref().map_or(Destination::Stdout, Destination::File);
    let bytes = match args.format {
        DiffFormat::Table => comparison::table(&comparison, &destination.options()),
        DiffFormat::Json => comparison::json(&comparison),
        DiffFormat::Svg => comparison::svg(&comparison),
    };
    destination.write(&bytes)?;
    Ok(if comparison.count(Change::Grew) > 0 {
        Exit::Leak
    } else {
        Exit::Done
    })
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let bytes = read_bounded(path, REPORT_BYTES_MAX)?;
    comparison::parse(&bytes).with_context(|| path.display().to_string())
}

/// Reads a file, or a pipe, as far as the bound.
fn read_bounded(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let shown = || format!("{}: can't be read", path.display());
    let file = File::open(path).with_context(shown)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).with_context(shown)?;
    if bytes.len() as u64 > bytes_max {
        bail!(
            "{}: larger than {} MiB, which no report is: give a file made with --format json",
            path.display(),
            bytes_max >> 20
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        std::fs::write(&path, vec![b' '; 100]).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap().len(), 100);
        assert!(read_bounded(&path, 99).unwrap_err().to_string().contains("larger"));
        assert!(read_bounded(Path::new("/dev/zero"), 1 << 16).is_err());
    }
}
