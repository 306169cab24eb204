//! What a census says where none can be taken: a sentence, and no number.

use super::{
    crowd::Crowd,
    host::{self, Build},
    observer::leakmon,
};
use leakmon::{
    analysis::Analyst,
    memory::{
        census::{self, Limits, Memories},
        program::Program,
    },
    symbols::image::Image,
    targets::{self, processes::ProcessImage},
};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// The sentence of a census that is refused.
fn refusal(tgid: u32) -> String {
    let output = leakmon(&["census", "--format", "json", "-p", &tgid.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert_eq!((said.lines().count(), output.stdout.as_slice()), (1, &[][..]), "{said}");
    said
}

#[test]
fn a_process_without_tasks_that_can_be_read_is_refused_with_a_sentence() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let said = refusal(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("no async runtime"), "{said}");
    let said = refusal(child.id());
    assert!(said.contains("has ended"), "{said}");
}

#[test]
fn tokio_older_than_any_that_can_be_read_is_refused_by_its_version() {
    let test = "tokio_older_than_any_that_can_be_read_is_refused_by_its_version";
    let Some(path) = host::program_built(test, Build::OlderTokio, "crowd") else {
        return;
    };
    let mut child = Command::new(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    let said = refusal(child.id());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(said.contains("tokio 1.22.0 can't be found in memory"), "{said}");
}

/// An i386 program that does nothing but wait: a header of 52 bytes, one segment (System V ABI, i386), and code.
fn narrow_program() -> Vec<u8> {
    const LOADED_AT: u32 = 0x0804_8000;
    // mov eax, 29 (pause); int 0x80; jmp to the start.
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let bytes = 52 + 32 + code.len() as u32;
    let halves = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut program = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for i386, which begins behind the headers.
    program.extend(halves(&[2, 3]));
    program.extend(words(&[1, LOADED_AT + 84, 52, 0, 0]));
    program.extend(halves(&[52, 32, 1, 0, 0, 0]));
    program.extend(words(&[1, 0, LOADED_AT, LOADED_AT, bytes, bytes, 5, 0x1000]));
    program.extend(code);
    program
}

#[test]
fn a_32_bit_process_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("narrow");
    fs::write(&path, narrow_program()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = match Command::new(&path).spawn() {
        Ok(child) => child,
        // ENOEXEC: this kernel runs no 32-bit programs, so there are none to be asked about.
        Err(error) if error.raw_os_error() == Some(8) => {
            host::skip("a_32_bit_process_is_refused_with_a_sentence", &error.to_string());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let said = refusal(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("is a 32-bit binary"), "{said}");
}

/// Takes a census of a crowd to whom something happens once a part of its memory has been scanned.
fn interrupted(path: &Path, happens: impl Fn(&mut Crowd)) -> String {
    let mut crowd = Crowd::start(path, 1_000);
    let analyst = Analyst::start(Path::new(env!("CARGO_BIN_EXE_leakmon"))).unwrap();
    let image = ProcessImage::open(crowd.tgid()).unwrap();
    let plan = targets::analyse(&analyst, &image.file, &image.path).unwrap();
    let entry = Image::read(&image.file, &image.path).unwrap();
    let entry = entry.address_of(plan.entry_file_offset.unwrap()).unwrap();
    let (mut memory, layouts) = Program::new(&plan, entry).unwrap().open(crowd.tgid()).unwrap();
    let limits = Limits {
        bytes_max: u64::MAX,
        time_max: Duration::from_secs(600),
        confirm: Duration::ZERO,
    };
    let mut happened = false;
    let taken = census::take(&mut memory, &layouts, limits, &mut Memories::default(), |done, all| {
        if done > all / 2 && !happened {
            happened = true;
            happens(&mut crowd);
        }
    });
    assert!(happened);
    let error = taken.unwrap_err();
    assert!(error.is_gone(), "{error}");
    error.to_string()
}

#[test]
fn a_process_that_ends_or_calls_exec_in_the_middle_of_a_census_has_no_numbers() {
    let test = "a_process_that_ends_or_calls_exec_in_the_middle_of_a_census_has_no_numbers";
    let Some(path) = host::program_built(test, Build::Release, "crowd") else {
        return;
    };
    let ended = interrupted(&path, Crowd::kill);
    assert!(ended.contains("ended or called exec"), "{ended}");
    // The same program again, in the same process: what it has now is another crowd.
    let replaced = interrupted(&path, |crowd| crowd.tell("exec"));
    assert!(replaced.contains("ended or called exec"), "{replaced}");
}
