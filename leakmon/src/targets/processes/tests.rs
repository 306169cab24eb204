//! Tests of the parsers on text, and of the readers on this very process and its children.

use super::maps::parse_line;
use super::*;
use proptest::prelude::*;
use std::io::{Cursor, Write};
use std::process::{Child, Command, Stdio};

fn line(text: &str) -> Option<(Mapping, bool)> {
    parse_executable(text.as_bytes())
}

/// A line, and whether it is executable.
fn parse_executable(line: &[u8]) -> Option<(Mapping, bool)> {
    parse_line(line).map(|(mapping, permissions)| (mapping, permissions.execute))
}

/// Start, offset, (major, minor), inode, path, deleted, executable.
type Expected = (u64, u64, (u64, u64), u64, &'static str, bool, bool);

const LINES: &[(&str, Expected)] = &[
    (
        "55d0-66f0 r-xp 00001000 fe:01 1234                       /usr/bin/app",
        (0x55d0, 0x1000, (0xfe, 1), 1234, "/usr/bin/app", false, true),
    ),
    ("1-2 rw-p 00000000 00:00 0 ", (1, 0, (0, 0), 0, "", false, false)),
    (
        "1-2 r-xp 00000000 00:00 0                          [vdso]",
        (1, 0, (0, 0), 0, "[vdso]", false, true),
    ),
    (
        "1-2 r-xp 00000000 103:abcde 7 /a",
        (1, 0, (0x103, 0xabcde), 7, "/a", false, true),
    ),
    (
        "1-2 r-xs 00000000 08:01 7    /a b/c  d (deleted)",
        (1, 0, (8, 1), 7, "/a b/c  d", true, true),
    ),
    (
        "1-2 r-xp 00000000 08:01 7    /x (deleted) (deleted)",
        (1, 0, (8, 1), 7, "/x (deleted)", true, true),
    ),
    (
        "1-2 r-xp 00000000 08:01 7    /usr/bin/evil\\0121-2 r-xp 0 08:01 9 /b",
        (1, 0, (8, 1), 7, "/usr/bin/evil\n1-2 r-xp 0 08:01 9 /b", false, true),
    ),
    (
        "1-2 r-xp 00000000 00:01 9    /memfd:jit (deleted)",
        (1, 0, (0, 1), 9, "/memfd:jit", true, true),
    ),
];

#[test]
fn a_line_of_maps_gives_its_fields() {
    for (text, (start, offset, (major, minor), inode, path, deleted, executable)) in LINES {
        let (mapping, is_executable) = line(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(mapping.start, *start, "{text}");
        assert_eq!(mapping.file_offset, *offset, "{text}");
        assert_eq!(mapping.device, nix::sys::stat::makedev(*major, *minor), "{text}");
        assert_eq!(mapping.inode, *inode, "{text}");
        assert_eq!(mapping.path, Path::new(path), "{text}");
        assert_eq!(mapping.deleted, *deleted, "{text}");
        assert_eq!(is_executable, *executable, "{text}");
    }
}

#[test]
fn lines_of_another_form_are_refused() {
    for text in [
        "",
        " ",
        "1-2",
        "1-2 r-xp 0 08:01",
        "1-2 r-xp 0 08:01 ",
        "1-2 r-xp 0 08:01 x /a",
        "2-1 r-xp 0 08:01 7 /a",
        "1-1 r-xp 0 08:01 7 /a",
        "+1-+2 r-xp 0 08:01 7 /a",
        "1-2 r-xp 0 0801 7 /a",
        "1-2 rw 0 08:01 7 /a",
        "1-10000000000000000 r-xp 0 08:01 7 /a",
    ] {
        assert_eq!(line(text), None, "{text}");
    }
    assert_eq!(parse_executable(b"\xff-2 r-xp 0 08:01 7 /a"), None);
    let (odd, _) = parse_line(b"1-2 r-xp 0 08:01 7 /\xff").expect("paths are bytes");
    assert_eq!(odd.path.as_os_str().len(), 2);
}

#[test]
fn too_long_lines_and_too_many_lines_are_counted() {
    let long = format!("1-2 r-xp 0 08:01 7 /{}\n", "x".repeat(MAPS_LINE_BYTES_MAX));
    let text = format!("{long}1-2 r-xp 0 08:01 7 /kept\nnonsense\n");
    let mappings = read_mappings(Cursor::new(text)).unwrap();
    assert_eq!(mappings.refused, 2);
    assert_eq!(mappings.executable.len(), 1);
    assert_eq!(mappings.executable[0].path, Path::new("/kept"));

    let text = "1-2 r-xp 0 08:01 7 /a\n".repeat(MAPS_LINES_MAX);
    let mappings = read_mappings(Cursor::new(&text)).unwrap();
    assert_eq!((mappings.executable.len(), mappings.refused), (MAPS_LINES_MAX, 0));
    let mappings = read_mappings(Cursor::new(text + "1-2 r-xp 0 08:01 7 /a\n")).unwrap();
    assert_eq!((mappings.executable.len(), mappings.refused), (MAPS_LINES_MAX, 1));
}

#[test]
fn the_start_time_is_field_22_whatever_the_name() {
    let tail = "S 1 2 3 4 -1 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
    for name in ["app", "a b", "x) S 1 2 (", ")", "tokio-runtime-w"] {
        assert_eq!(
            parse_stat(format!("7 ({name}) {tail}").as_bytes()),
            Some(Stat {
                state: b'S',
                flags: 6,
                started_ticks: 987_654
            }),
            "{name}"
        );
    }
    for text in [
        "",
        "7 (app",
        "7 (app)",
        "7 (app) S 1 2",
        "7 (app) S 1 2 3 4 5 x 7 8 9 10 11 12 13 14 15 16 17 18 19",
        "7 (app) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
    ] {
        assert_eq!(parse_stat(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn a_thread_is_ending_before_it_is_a_zombie() {
    let stat = |state, flags| Stat {
        state,
        flags,
        started_ticks: 1,
    };
    // Other bits are other matters: 0x400000 is PF_RANDOMIZE.
    assert!(!stat(b'S', 0x0040_0000).is_ending());
    assert!(stat(b'R', 0x0040_0004).is_ending() && !stat(b'R', 0x0040_0004).has_ended());
    assert!(stat(b'Z', 0).is_ending() && stat(b'Z', 0).has_ended());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let lines = text.split(|byte| *byte == b'\n').count() as u64;
        let mappings = read_mappings(Cursor::new(&text)).unwrap();
        prop_assert!(mappings.executable.len() as u64 + mappings.refused <= lines);
        parse_stat(&text);
    }

    #[test]
    fn what_the_kernel_prints_is_read_back(
        start in 1_u64..1 << 46, len in 1_u64..1 << 30, offset in 0_u64..1 << 40, major in 0_u64..4096,
        minor in 0_u64..1 << 20, inode in 1_u64..u64::MAX, path in "/[ -~\n]{0,80}", gone in any::<bool>(),
    ) {
        prop_assume!(!path.contains("\\012") && !path.ends_with(" (deleted)"));
        let escaped = path.replace('\n', "\\012");
        let suffix = if gone { " (deleted)" } else { "" };
        let range = format!("{start:08x}-{:08x}", start + len);
        let file = format!("{offset:08x} {major:02x}:{minor:02x} {inode}");
        let text = format!("{range} r-xp {file} {:20}{escaped}{suffix}", "");
        let expected = Mapping { start, end: start + len, file_offset: offset,
            device: nix::sys::stat::makedev(major, minor), inode, path: PathBuf::from(path), deleted: gone };
        prop_assert_eq!(parse_executable(text.as_bytes()), Some((expected, true)));
    }
}

/// A child that waits until its standard input is closed.
fn waiting_child() -> Child {
    Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat starts")
}

/// Returns once the child has answered, so it runs its own image by then.
fn shake_hands(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"x\n").unwrap();
    let mut answer = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
}

#[test]
fn this_process_is_listed_and_maps_its_own_code() {
    let tgid = std::process::id();
    assert!(tgids().unwrap().binary_search(&tgid).is_ok());
    let here = this_process_is_listed_and_maps_its_own_code as *const () as u64;
    let mappings = executable_mappings(tgid).unwrap();
    assert_eq!(mappings.refused, 0);
    let mapping = mappings
        .executable
        .iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&here))
        .unwrap();
    assert!(mapping.has_file());
    let image = ProcessImage::open(tgid).unwrap();
    assert_eq!(image.inode, mapping.inode);
    assert_eq!(image.path, std::env::current_exe().unwrap());
    let mapped = open_mapping(tgid, mapping).unwrap().metadata().unwrap();
    assert_eq!((mapped.dev(), mapped.ino()), (image.device, image.inode));
    assert!(
        mappings
            .executable
            .iter()
            .any(|mapping| mapping.path == Path::new("[vdso]") && !mapping.has_file())
    );
}

#[test]
fn start_times_tell_an_older_process_from_a_younger_one() {
    let mut child = waiting_child();
    let own = start_time_ticks(std::process::id()).unwrap();
    let younger = start_time_ticks(child.id()).unwrap();
    assert!(own <= younger && start_time_ticks(1).unwrap() <= own);
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_process_that_ended_is_gone() {
    let mut child = waiting_child();
    shake_hands(&mut child);
    let tgid = child.id();
    let mapping = executable_mappings(tgid).unwrap().executable.remove(0);
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(executable_mappings(tgid).unwrap_err().is_gone());
    assert!(start_time_ticks(tgid).unwrap_err().is_gone());
    assert!(executable_path(tgid).unwrap_err().is_gone());
    assert!(ProcessImage::open(tgid).unwrap_err().is_gone());
    assert!(open_mapping(tgid, &mapping).unwrap_err().is_gone());
    assert_eq!(
        ProcessImage::open(tgid).unwrap_err().to_string(),
        format!("process {tgid} has ended")
    );
}

#[test]
fn the_image_of_a_process_whose_file_was_deleted_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a cat (deleted)");
    std::fs::copy("/bin/cat", &path).unwrap();
    let mut child = Command::new(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shake_hands(&mut child);
    std::fs::remove_file(&path).unwrap();
    let image = ProcessImage::open(child.id()).unwrap();
    assert!(image.path.to_str().unwrap().ends_with("a cat (deleted) (deleted)"));
    let mappings = executable_mappings(child.id()).unwrap();
    let mapping = mappings.executable.iter().find(|mapping| mapping.path == path).unwrap();
    assert!(mapping.deleted);
    let mut bytes = Vec::new();
    open_mapping(child.id(), mapping)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    assert_eq!(bytes, std::fs::read("/bin/cat").unwrap());
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_path_in_a_root_never_leads_outside() {
    let folder = tempfile::tempdir().unwrap();
    let root = File::open(folder.path()).unwrap();
    std::fs::write(folder.path().join("inside"), "yes").unwrap();
    std::os::unix::fs::symlink("/inside", folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink("/proc/self/exe", folder.path().join("escape")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, opens) in [
        ("/inside", true),
        ("inside", true),
        ("/link", true),
        ("/../../inside", true),
        ("/escape", false),
        ("/fifo", false),
        ("/", false),
        ("/bin/cat", false),
    ] {
        assert_eq!(open_in_root(&root, Path::new(path)).is_ok(), opens, "{path}");
    }
}
