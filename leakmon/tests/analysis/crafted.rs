//! Files that no fuzzer finds, each made to cost the daemon gigabytes or minutes: they cost a child.

use super::{analyst, memory::Peak};
use leakmon::{
    analysis::{Analyst, Outcome},
    symbols::{
        address_space::Place,
        image::{Image, ImageFile},
        resolver::{Limits, RawFrame, Resolver, ResolverCounts},
    },
    targets::{AnalyseError, analyse, unwind_table},
};
use std::{fs::File, io::Write, path::Path, process::Command, sync::Arc};

/// What all children of these tests stay below, and the daemon beside them.
const CHILD_BYTES_MAX: u64 = 512 << 20;
const DAEMON_BYTES_MAX: u64 = 256 << 20;

/// A header and one executable segment of so many bytes, which the file has as a hole.
fn sparse(segment_bytes: u64) -> File {
    let mut header = [0_u8; 0x78];
    header[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    // ET_DYN, EM_X86_64, one program header behind this one, no sections.
    header[16..24].copy_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
    header[32] = 64;
    header[52..64].copy_from_slice(&[64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable, from the file's beginning to address 0.
    header[64..72].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for at in [96, 104] {
        header[at..at + 8].copy_from_slice(&segment_bytes.to_le_bytes());
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&header).unwrap();
    file.set_len(segment_bytes).unwrap();
    file
}

#[test]
fn a_segment_of_two_gigabytes_is_not_watched() {
    let (analyst, file, peak) = (analyst(), sparse(2 << 30), Peak::begin());
    let path = Path::new("/srv/sparse");
    for _ in 0..3 {
        let error = analyse(&analyst, &file, path).unwrap_err();
        assert!(matches!(error, AnalyseError::Failed { .. }));
        assert_eq!(
            error.to_string(),
            "/srv/sparse: its analysis needed more than 448 MB of memory: it is not watched"
        );
    }
    let counts = analyst.counts();
    assert_eq!((counts.of(Outcome::Memory), counts.remembered), (1, 2));
    assert!(counts.peak_bytes < CHILD_BYTES_MAX, "{} MiB", counts.peak_bytes >> 20);
    let daemon = peak.bytes();
    println!("child {} MiB, daemon {} MiB", counts.peak_bytes >> 20, daemon >> 20);
    assert!(daemon < DAEMON_BYTES_MAX);
    // A table needs its headers only.
    let error = unwind_table(&analyst, &file).unwrap_err();
    assert!(error.to_string().contains("bytes of code"), "{error}");
    assert_eq!(analyst.counts().of(Outcome::Done), 1);
}

/// Assembly of one function whose line table has so many files, each in a directory below a compilation directory with a name
/// of so many bytes: blazesym writes the whole name down for each.
fn line_program(files: usize, directory_bytes: usize) -> String {
    format!(
        ".text\n.globl main\n.type main,@function\nmain:\nxor %eax,%eax\nret\n.Le:\n.size main, .Le-main\n\
         .section .debug_abbrev,\"\",@progbits\n\
         .byte 1,0x11,1,0x11,1,0x12,7,0x10,0x17,0x1b,8,0,0\n.byte 2,0x2e,0,0x11,1,0x12,7,0x03,8,0,0\n.byte 0\n\
         .section .debug_info,\"\",@progbits\n.long .Lie-.Lis\n.Lis: .short 4\n.long 0\n.byte 8\n\
         .byte 1\n.quad main\n.quad .Le-main\n.long 0\n.fill {directory_bytes},1,'d'\n.byte 0\n\
         .byte 2\n.quad main\n.quad .Le-main\n.asciz \"by_debug_information\"\n.byte 0\n.Lie:\n\
         .section .debug_line,\"\",@progbits\n.long .Lle-.Lls\n.Lls: .short 4\n.long .Lhe-.Lhs\n\
         .Lhs: .byte 1,1,1,0xfb,14,13,0,1,1,1,1,0,0,0,1,0,0,1\n.asciz \"b\"\n.byte 0\n\
         .rept {files}\n.asciz \"f\"\n.byte 1,0,0\n.endr\n.byte 0\n.Lhe:\n\
         .byte 0,9,2\n.quad main\n.byte 1,2,3,0,1,1\n.Lle:\n"
    )
}

/// What `main` of a program is called, its line, and what was counted.
fn named(analyst: &Analyst, assembly: &str) -> (Option<String>, Option<u32>, ResolverCounts) {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("a.s"), folder.path().join("a"));
    std::fs::write(&source, assembly).unwrap();
    let linked = Command::new("cc")
        .arg("-w")
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .output();
    assert!(linked.as_ref().unwrap().status.success(), "{linked:?}");
    let offset = super::symbols::functions(&program, Some("main"))[0];
    let file = File::open(&program).unwrap();
    let image = Arc::new(Image::read(&file, &program).unwrap());
    let held = ImageFile {
        image: Arc::clone(&image),
        file,
        debug: None,
    };
    let place = Place::Image {
        image,
        file: Some(Arc::new(held)),
        offset,
    };
    let mut resolver = Resolver::new(Limits::default(), analyst.clone());
    let frame = resolver.resolve(&[RawFrame { place, exact: true }]).pop().unwrap();
    (frame.function, frame.line, resolver.counts())
}

#[test]
fn a_line_table_of_a_gigabyte_costs_the_lines() {
    let (analyst, peak) = (analyst(), Peak::begin());
    let (function, line, counts) = named(&analyst, &line_program(3, 10));
    assert_eq!(function.as_deref(), Some("by_debug_information"));
    assert!(line.is_some());
    assert_eq!((counts.without_debug, counts.unreadable), (0, 0));

    // 160 KB of names, and 60 KB that they share: 1.9 GB when written down.
    let (function, line, counts) = named(&analyst, &line_program(32_000, 60_000));
    assert_eq!((function.as_deref(), line), (Some("main"), None), "by the symbol table");
    assert_eq!((counts.without_debug, counts.unreadable), (1, 0));
    let counts = analyst.counts();
    assert_eq!(counts.of(Outcome::Memory), 1);
    let daemon = peak.bytes();
    println!("child {} MiB, daemon {} MiB", counts.peak_bytes >> 20, daemon >> 20);
    assert!(counts.peak_bytes < CHILD_BYTES_MAX);
    assert!(daemon < DAEMON_BYTES_MAX);
}
