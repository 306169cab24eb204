//! Programs without tokio: leakmon must find none in them, and soon.
//!
//! In: what this machine has in `/usr/bin`, and cargo itself. Out: how many were looked at, how large they are, and the slowest; an
//! error where a task type was found in one, or where there are too few to prove anything. Which they are is found out at run time.

use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

/// Where programs are.
const FOLDER: &str = "/usr/bin";
/// The largest are taken, so many of them.
const PROGRAMS_MAX: usize = 40;
/// Fewer would prove nothing.
const PROGRAMS_MIN: usize = 20;
/// Smaller programs have hardly any tables.
const PROGRAM_BYTES_MIN: u64 = 100 << 10;
/// Larger ones are not looked at.
const PROGRAM_BYTES_MAX: u64 = 64 << 20;
/// Of each program; 24 MB should take less than a second, and this is ten times as much.
const SECONDS_MAX: f64 = 10.0;
/// In paths of panic messages of every program with tokio: those are no strangers.
const TOKIO: &[u8] = b"/tokio-1.";
/// leakmon's exit code and sentence where there is no runtime.
const REFUSED: i32 = 4;
const SENTENCE: &str = "no async runtime that leakmon knows";

/// Looks at all of them.
pub(super) fn check(workspace: &Workspace, leakmon: &Path) -> Result<()> {
    let mut programs = programs(Path::new(FOLDER))?;
    programs.truncate(PROGRAMS_MAX);
    programs.push(cargo(workspace)?);
    let (mut looked_at, mut bytes) = (0, 0);
    let mut seconds_max = 0.0_f64;
    for program in programs {
        if mentions_tokio(&program)? {
            continue;
        }
        let seconds = look(workspace, leakmon, &program)?;
        let size = fs::metadata(&program).map_or(0, |metadata| metadata.len());
        if seconds > SECONDS_MAX {
            bail!("{}: {size} bytes took {seconds:.2} s", program.display());
        }
        looked_at += 1;
        bytes += size;
        seconds_max = seconds_max.max(seconds);
        if program.ends_with("bin/cargo") {
            println!("cargo: {size} bytes without tokio took {seconds:.2} s");
        }
    }
    println!(
        "{looked_at} programs without tokio, {} MB: no task type; at most {seconds_max:.2} s each",
        bytes >> 20
    );
    if looked_at < PROGRAMS_MIN {
        bail!("only {looked_at} programs without tokio are in {FOLDER}: too few to prove anything");
    }
    Ok(())
}

/// The ELF files of a folder, the largest first.
fn programs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))? {
        let path = entry?.path();
        // Links lead to files that are listed themselves.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let size = metadata.len();
        if metadata.is_file() && (PROGRAM_BYTES_MIN..=PROGRAM_BYTES_MAX).contains(&size) && is_elf(&path) {
            found.push((size, path));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// An ELF file of 64 bits for x86-64 (`e_ident`, `e_machine`).
fn is_elf(path: &Path) -> bool {
    let mut header = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.starts_with(b"\x7fELF\x02\x01") && header[18..20] == [62, 0]
}

/// cargo as the toolchain has it: what rustup puts into `PATH` starts that.
fn cargo(workspace: &Workspace) -> Result<PathBuf> {
    let sysroot = workspace::output(workspace.command("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("bin/cargo"))
}

fn mentions_tokio(program: &Path) -> Result<bool> {
    let bytes = fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    Ok(bytes.windows(TOKIO.len()).any(|window| window == TOKIO))
}

/// Seconds of one scan.
fn look(workspace: &Workspace, leakmon: &Path, program: &Path) -> Result<f64> {
    let mut command = workspace.command(leakmon);
    command.arg("probes").arg(program).stdout(Stdio::null());
    let began = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("can't start {}", workspace::shown(&command)))?;
    let seconds = began.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(REFUSED) || !said.contains(SENTENCE) {
        bail!(
            "{} has no tokio, but leakmon says: {} {said}",
            program.display(),
            output.status
        );
    }
    Ok(seconds)
}
