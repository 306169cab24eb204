//! A small image made by hand, files that are none, this program itself, and changed bytes.

use super::*;
use crate::analysis::Analyst;
use leakmon_ebpf::abi::{Condition, Kind, Role};
use nix::{sys::stat::Mode, unistd::mkfifo};
use proptest::prelude::*;
use std::{collections::BTreeSet, fs, os::unix::net::UnixListener};

fn analyse(path: &Path) -> Result<ProbePlan, AnalyseError> {
    super::super::analyse_path(&Analyst::in_this_process(), path).map(|(plan, _)| plan)
}

const TEXT: u64 = 0x1000;
const VTABLE: u64 = 0x2000;
const ALLOCATION_BRANCH: u64 = TEXT + 30;
/// The completing function begins here.
const COMPLETE: u64 = TEXT + 0x30;

/// A small image with one task type, as a linker would make it: code, `.eh_frame`, a vtable and its relocations.
fn image() -> Vec<u8> {
    // lea rax, [vtable] · mov [rsp+16], rax · mov edi, 128 · mov esi, 128 · call +0 · test rax, rax · je +1 · ret · ret
    let mut text = vec![0x48, 0x8d, 0x05];
    text.extend(((VTABLE - TEXT - 7) as u32).to_le_bytes());
    text.extend(
        b"\x48\x89\x44\x24\x10\xbf\x80\x00\x00\x00\xbe\x80\x00\x00\x00\xe8\x00\x00\x00\x00\x48\x85\xc0\x74\x01\xc3\xc3",
    );
    text.resize(0x30, 0xcc);
    // mov rcx, rax · xor rcx, 3 · lock cmpxchg [rdi], rcx · jne back · ret
    text.extend(b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x48\x0f\xb1\x0f\x75\xf2\xc3");
    let mut data = vec![0; 56];
    for integer in [0x50_u64, 0x20, 0x28] {
        data.extend(integer.to_le_bytes());
    }
    let version = b"/r/tokio-1.54.1/src/runtime/task/core.rs\0";
    data.extend(version);
    let rela: Vec<u8> = (0..7)
        .flat_map(|slot| [VTABLE + 8 * slot, u64::from(elf::R_X86_64_RELATIVE), COMPLETE])
        .flat_map(u64::to_le_bytes)
        .collect();
    let parts = [
        (&b".text"[..], elf::SHT_PROGBITS, TEXT, text),
        (b".data.rel.ro", elf::SHT_PROGBITS, VTABLE, data),
        (b".eh_frame", elf::SHT_PROGBITS, 0x3000, eh_frame()),
        (b".rela.dyn", elf::SHT_RELA, 0x4000, rela),
    ];
    link(&parts)
}

/// A CIE with absolute addresses, and the two functions.
fn eh_frame() -> Vec<u8> {
    // Version 1, no augmentation, code alignment 1, data alignment -8, return address in 16: addresses are absolute words.
    let mut out = Vec::new();
    let cie = b"\x00\x00\x00\x00\x01\x00\x01\x78\x10\x00\x00\x00";
    out.extend((cie.len() as u32).to_le_bytes());
    out.extend(cie);
    for (start, length) in [(TEXT, 0x30_u64), (COMPLETE, 15)] {
        out.extend(20_u32.to_le_bytes());
        out.extend((out.len() as u32).to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend(length.to_le_bytes());
    }
    out.extend([0; 4]);
    out
}

/// Puts each part at the file offset that equals its address.
fn link(parts: &[(&[u8], u32, u64, Vec<u8>)]) -> Vec<u8> {
    let mut file = vec![0; 0x40];
    let mut names = vec![0];
    let mut sections = vec![0; 64];
    let mut programs = Vec::new();
    for (name, kind, address, data) in parts {
        let flags = if *address == TEXT {
            elf::PF_R | elf::PF_X
        } else {
            elf::PF_R
        };
        programs.extend([elf::PT_LOAD, flags].iter().flat_map(|word| word.to_le_bytes()));
        let length = data.len() as u64;
        programs.extend(
            [*address, *address, *address, length, length, 0x1000]
                .iter()
                .flat_map(|word| word.to_le_bytes()),
        );
        sections.extend([names.len() as u32, *kind].iter().flat_map(|word| word.to_le_bytes()));
        sections.extend(
            [2, *address, *address, length]
                .iter()
                .flat_map(|word: &u64| word.to_le_bytes()),
        );
        sections.extend([0_u32; 2].iter().flat_map(|word| word.to_le_bytes()));
        sections.extend([8_u64, 24].iter().flat_map(|word| word.to_le_bytes()));
        names.extend(*name);
        names.push(0);
    }
    let strings = names.len() as u32;
    names.extend(b".shstrtab\0");
    file.extend(&programs);
    for (_, _, address, data) in parts {
        file.resize(*address as usize, 0);
        file.extend(data);
    }
    let names_at = file.len() as u64;
    file.extend(&names);
    sections.extend([strings, elf::SHT_STRTAB].iter().flat_map(|word| word.to_le_bytes()));
    sections.extend(
        [0, 0, names_at, names.len() as u64]
            .iter()
            .flat_map(|word: &u64| word.to_le_bytes()),
    );
    sections.extend([0_u64, 1, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.resize(file.len().next_multiple_of(8), 0);
    let sections_at = file.len() as u64;
    file.extend(&sections);
    let mut header = b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
    header.extend([elf::ET_DYN, elf::EM_X86_64].iter().flat_map(|half| half.to_le_bytes()));
    header.extend(1_u32.to_le_bytes());
    header.extend([TEXT, 0x40, sections_at].iter().flat_map(|word| word.to_le_bytes()));
    header.extend(0_u32.to_le_bytes());
    let counts = [
        64,
        56,
        parts.len() as u16,
        64,
        parts.len() as u16 + 2,
        parts.len() as u16 + 1,
    ];
    header.extend(counts.iter().flat_map(|half| half.to_le_bytes()));
    file[..0x40].copy_from_slice(&header);
    file
}

fn analyse_small(bytes: &[u8]) -> Result<ProbePlan, AnalyseError> {
    let id = ImageId {
        device: 1,
        inode: 2,
        build_id: String::new(),
    };
    analyse_bytes(bytes, Path::new("small"), id)
}

#[test]
fn a_small_image_is_planned() {
    let plan = analyse_small(&image()).unwrap();
    assert_eq!(
        (plan.runtime, plan.runtime_version.as_deref()),
        ("tokio", Some("1.54.1"))
    );
    assert_eq!(plan.entry_file_offset, Some(TEXT));
    assert_eq!(plan.problems, [""; 0]);
    assert_eq!(plan.task_types.len(), 1);
    let task_type = &plan.task_types[0];
    assert_eq!((task_type.vtable, task_type.kind), (VTABLE, Kind::Task));
    assert_eq!(
        (
            task_type.trailer_offset,
            task_type.scheduler_offset,
            task_type.id_offset
        ),
        (Some(0x50), Some(0x20), Some(0x28))
    );
    assert_eq!(task_type.vtable_offset, 0x10);
    let sites: Vec<_> = plan
        .sites
        .iter()
        .map(|site| {
            (
                site.role,
                site.address,
                site.file_offset,
                site.register,
                site.condition,
                site.task_type,
                site.cheap,
            )
        })
        .collect();
    assert_eq!(
        sites,
        [
            (
                Role::Birth,
                ALLOCATION_BRANCH,
                ALLOCATION_BRANCH,
                0,
                Condition::ZeroClear,
                Some(0),
                true
            ),
            (
                Role::End,
                COMPLETE + 12,
                COMPLETE + 12,
                7,
                Condition::ZeroSet,
                None,
                true
            ),
        ]
    );
    assert_eq!(plan.sites[0].bytes, [0x74, 0x01]);
}

#[test]
fn what_is_no_probeable_image_gets_a_sentence_of_its_own() {
    let good = image();
    let patched = |offset: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[offset..offset + bytes.len()].copy_from_slice(bytes);
        copy
    };
    let mut sentences = BTreeSet::new();
    for (bytes, expected) in [
        (Vec::new(), "not an ELF file"),
        (b"#!/bin/sh\n".to_vec(), "not an ELF file"),
        (good[..0x30].to_vec(), "truncated"),
        (good[..0x1800].to_vec(), "truncated"),
        (good[..good.len() - 1].to_vec(), "truncated"),
        (patched(4, &[1]), "32-bit"),
        (patched(5, &[2]), "machine 15872"),
        (patched(16, &[1]), "no executable"),
        (patched(18, &[183]), "aarch64"),
        (patched(18, &[0xff, 0x7f]), "machine 32767"),
        // The vtable's scheduler offset is implausible: no runtime, but its version is still there.
        (
            patched(VTABLE as usize + 64, &[7]),
            "tokio 1.54.1, which can't be probed",
        ),
        (patched(VTABLE as usize + 80, &[0; 8]), "a task vtable"),
    ] {
        match analyse_small(&bytes) {
            Ok(plan) => assert_eq!((expected, plan.runtime_version), ("a task vtable", None)),
            Err(error) => {
                let sentence = error.to_string();
                assert!(
                    sentence.starts_with("small: ") && sentence.contains(expected),
                    "{sentence}"
                );
                sentences.insert(sentence);
            }
        }
    }
    assert_eq!(sentences.len(), 10);
    let mut plain = patched(VTABLE as usize + 64, &[7]);
    plain[VTABLE as usize + 80..VTABLE as usize + 90].fill(0);
    // What was a table of tokio 1.54 now is one of 1.17, whose tables have no integers, as long as its functions complete tasks.
    let older = analyse_small(&plain).unwrap();
    assert_eq!((older.task_types[0].vtable_offset, older.runtime_version), (0x20, None));
    let xor = COMPLETE as usize + 6;
    assert_eq!(plain[xor], 3);
    plain[xor] = 1;
    assert!(
        analyse_small(&plain)
            .unwrap_err()
            .to_string()
            .contains("no async runtime that leakmon knows (tokio)")
    );
}

#[test]
fn files_that_are_none_are_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    mkfifo(&place("fifo"), Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(place("socket")).unwrap();
    fs::write(place("script"), "#!/bin/sh\n").unwrap();
    for (path, expected) in [
        (place("nothing"), "no such file"),
        (place("fifo/below"), "can't be read"),
        (place("fifo"), "is a FIFO"),
        (place("socket"), "is a socket"),
        (place("script"), "not an ELF file"),
        (directory.path().to_owned(), "is a directory"),
        ("/dev/null".into(), "is a device"),
    ] {
        let sentence = analyse(&path).unwrap_err().to_string();
        assert!(
            sentence.contains(expected) && sentence.contains(&*path.to_string_lossy()),
            "{sentence}"
        );
    }
    let error = analyse(&place("fifo")).unwrap_err().of_process(7, Path::new("/bin/x"));
    assert!(
        error.to_string().starts_with("process 7 (/bin/x): is a FIFO"),
        "{error}"
    );
}

#[test]
fn a_file_and_its_bytes_give_the_same_plan() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image()).unwrap();
    let from_file = analyse(file.path()).unwrap();
    let metadata = fs::metadata(file.path()).unwrap();
    assert_eq!(
        (from_file.image.device, from_file.image.inode),
        (metadata.dev(), metadata.ino())
    );
    let from_bytes = analyse_bytes(&image(), file.path(), from_file.image.clone()).unwrap();
    assert_eq!(from_file, from_bytes);
}

/// This test program links tokio: its own plan must be whole, and each site must be what the file has there.
#[test]
fn a_real_program_is_followed_completely() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let spawned = runtime.block_on(async { tokio::spawn(async { 7 }).await.unwrap() });
    assert_eq!(spawned, 7);
    let path = std::env::current_exe().unwrap();
    let plan = analyse(&path).unwrap();
    assert_eq!(plan.problems, [""; 0]);
    assert!(
        plan.runtime_version
            .as_deref()
            .is_some_and(|version| version.starts_with("1."))
    );
    let born: BTreeSet<_> = plan.sites.iter().filter_map(|site| site.task_type).collect();
    assert!(!plan.task_types.is_empty());
    assert_eq!(born.len(), plan.task_types.len());
    assert!(plan.sites_of(Role::End) > 0);
    let here = "leakmon::targets::opening::tests::a_real_program_is_followed_completely";
    assert!(
        plan.task_types
            .iter()
            .any(|one| one.names.iter().any(|name| name.starts_with(here))),
        "{plan:#?}"
    );
    let file = fs::File::open(&path).unwrap();
    for site in &plan.sites {
        let mut bytes = vec![0; site.bytes.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, site.file_offset).unwrap();
        assert_eq!(bytes, site.bytes, "{site:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_changed_image_never_breaks_it(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        words in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u64>(), Just(u64::MAX), 0..0x6000_u64]), 0..4),
        length in prop_oneof![4 => Just(usize::MAX), 1 => 0..0x5000_usize],
    ) {
        let mut bytes = image();
        // What matters is dense: the header, the tables, the code.
        let dense: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0 || *at < 0x130).collect();
        for (at, value) in changes {
            bytes[dense[at.index(dense.len())]] = value;
        }
        for (at, word) in words {
            let at = dense[at.index(dense.len())] & !7;
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
        bytes.truncate(length);
        if let Ok(plan) = analyse_small(&bytes) {
            for site in &plan.sites {
                let at = site.file_offset as usize;
                prop_assert_eq!(&bytes[at..at + site.bytes.len()], &site.bytes[..]);
            }
        }
    }
}
