//! Code without entries: musl's own, and glibc's, whose entries are the truth.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use leakmon_ebpf::rows::{FRAME_POINTER_LOST, kind};

use super::super::bare_code::{Gap, calls_into, reckon};
use super::super::frame_entries::Range;
use super::super::{BARE_BYTES_MAX, UnwindTable};
use super::synthetic::{Entries, USUAL_START};
use super::{assert_consistent, own_images, row_at};

const AT: u64 = 0x1000;

/// The rule in force at an offset: its kind, the frame pointer's slot, words to the CFA.
fn rule_at(ranges: &[Range], offset: u64) -> Option<(u8, u8, u16)> {
    let range = ranges
        .iter()
        .find(|range| (range.start..range.start + u64::from(range.len)).contains(&(AT + offset)))?;
    Some((range.rule.kind, range.rule.frame_pointer, range.rule.offset))
}

fn function(bytes: &[u8]) -> Vec<Range> {
    reckon(Gap {
        address: AT,
        bytes,
        follows_function: true,
        entry_point: None,
        called: &BTreeSet::new(),
    })
}

/// musl 1.2.3, `src/thread/x86_64/clone.s`.
const CLONE: [u8; 57] = [
    0x31, 0xc0, 0xb0, 0x38, 0x49, 0x89, 0xfb, 0x48, 0x89, 0xd7, 0x4c, 0x89, 0xc2, 0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x54,
    0x24, 0x08, 0x4d, 0x89, 0xd9, 0x48, 0x83, 0xe6, 0xf0, 0x48, 0x83, 0xee, 0x08, 0x48, 0x89, 0x0e, 0x0f, 0x05, 0x85,
    0xc0, 0x75, 0x0f, 0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1, 0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4, 0xc3,
];

#[test]
fn a_new_thread_ends_where_it_begins_and_its_parent_returns() {
    let ranges = function(&CLONE);
    // `call *%r9`, after the only word of the new stack was popped.
    assert_eq!(rule_at(&ranges, 0x2c), Some((kind::END, 0, 0)));
    // Behind the system call, and `ret`.
    assert_eq!(rule_at(&ranges, 0x25), Some((kind::STACK_POINTER, 0, 1)));
    assert_eq!(rule_at(&ranges, 0x38), Some((kind::STACK_POINTER, 0, 1)));
}

#[test]
fn a_program_begins_at_its_entry_point() {
    // musl 1.2.3, `crt/x86_64/crt1.s`: `and $-16,%rsp; call` and padding; then `sub $16,%rsp; call *%rax` of another function.
    let code = [
        0x48, 0x83, 0xe4, 0xf0, 0xe8, 0x07, 0x00, 0x00, 0x00, 0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00, 0x48, 0x83,
        0xec, 0x10, 0xff, 0xd0,
    ];
    let ranges = |entry_point| {
        reckon(Gap {
            address: AT,
            bytes: &code,
            follows_function: false,
            entry_point,
            called: &BTreeSet::new(),
        })
    };
    assert_eq!(rule_at(&ranges(Some(AT)), 4), Some((kind::END, 0, 0)));
    assert_eq!(rule_at(&ranges(None), 4), None);
    assert_eq!(rule_at(&ranges(Some(AT)), 0x14), Some((kind::STACK_POINTER, 0, 3)));
}

#[test]
fn pushes_are_counted_and_the_frame_pointer_is_found() {
    // `push %r13; push %rbp; mov %rax,%rbp; sub $8,%rsp; call *%rbx; add $8,%rsp; pop %rbp; pop %r13; ret`
    let code = [
        0x41, 0x55, 0x55, 0x48, 0x89, 0xc5, 0x48, 0x83, 0xec, 0x08, 0xff, 0xd3, 0x48, 0x83, 0xc4, 0x08, 0x5d, 0x41,
        0x5d, 0xc3,
    ];
    let ranges = function(&code);
    assert_eq!(rule_at(&ranges, 0), Some((kind::STACK_POINTER, 0, 1)));
    assert_eq!(rule_at(&ranges, 0x0a), Some((kind::STACK_POINTER, 3, 4)));
    assert_eq!(rule_at(&ranges, 0x13), Some((kind::STACK_POINTER, 0, 1)));
    // `mov %rax,%rbp; call *%rbx; ret`: it is not saved.
    let lost = function(&[0x48, 0x89, 0xc5, 0xff, 0xd3, 0xc3]);
    assert_eq!(rule_at(&lost, 3), Some((kind::STACK_POINTER, FRAME_POINTER_LOST, 1)));
    // `mov %rax,%rbp; sub $0x7f0,%rsp; pop %rbp; call *%rbx`: of a slot too far away nothing is known.
    let far = function(&[
        0x48, 0x89, 0xc5, 0x48, 0x81, 0xec, 0xf0, 0x07, 0x00, 0x00, 0x5d, 0xff, 0xd3,
    ]);
    assert_eq!(rule_at(&far, 11), Some((kind::STACK_POINTER, FRAME_POINTER_LOST, 254)));
}

#[test]
fn what_can_not_be_known_gets_no_rule() {
    // `sub %rax,%rsp; call *%rbx`; `push %rax; ret`; zeros.
    assert_eq!(rule_at(&function(&[0x48, 0x29, 0xc4, 0xff, 0xd3]), 3), None);
    assert!(function(&[0x50, 0xc3]).is_empty());
    assert_eq!(rule_at(&function(&[0; 64]), 2), None);
    // `pop (%rdi); call *%rbx`: its caller is known to itself alone.
    assert_eq!(rule_at(&function(&[0x8f, 0x07, 0xff, 0xd3]), 2), None);
    // `test %eax,%eax; je 1f; push %rbx; 1: call *%rbx`: two ways disagree.
    assert_eq!(rule_at(&function(&[0x85, 0xc0, 0x74, 0x01, 0x53, 0xff, 0xd3]), 5), None);
}

#[test]
fn a_function_behind_a_call_that_never_returns_begins_anew() {
    // `push %rbx; call *%rbx` and padding to 16 bytes; then `push %rbx; pop %rbx; ret`.
    let mut code = vec![0x53, 0xff, 0xd3];
    code.resize(16, 0x90);
    code.extend([0x53, 0x5b, 0xc3]);
    let ranges = function(&code);
    assert_eq!(rule_at(&ranges, 1), Some((kind::STACK_POINTER, 0, 2)));
    assert_eq!(rule_at(&ranges, 0x11), Some((kind::STACK_POINTER, 0, 2)));
    assert_eq!(rule_at(&ranges, 0x12), Some((kind::STACK_POINTER, 0, 1)));
}

#[test]
fn what_is_called_from_elsewhere_begins_a_function() {
    // `push %rbx; call *%rbx`, then without padding `push %rbx; pop %rbx; ret`.
    let code = [0x53, 0xff, 0xd3, 0x53, 0x5b, 0xc3];
    assert!(function(&code).is_empty());
    // `call` of that, 16 bytes before it, and of what is outside.
    let calls = [0xe8, 14, 0, 0, 0, 0xe8, 0, 1, 0, 0];
    let called = calls_into(&calls, AT - 16, &[0..8, AT..AT + 6]);
    assert_eq!(called, BTreeSet::from([AT + 3]));
    let ranges = reckon(Gap {
        address: AT,
        bytes: &code,
        follows_function: true,
        entry_point: None,
        called: &called,
    });
    assert_eq!(rule_at(&ranges, 1), Some((kind::STACK_POINTER, 0, 2)));
    assert_eq!(rule_at(&ranges, 5), Some((kind::STACK_POINTER, 0, 1)));
}

#[test]
fn gaps_are_reckoned_up_to_a_bound() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &USUAL_START);
    entries.function(common, 0x1000, 16, &[]);
    let build = |text_end: usize| {
        let mut bytes = entries.image(text_end, true);
        // `push %rbx; call *%rbx`
        bytes[0x1010..0x1013].copy_from_slice(&[0x53, 0xff, 0xd3]);
        let table = UnwindTable::build(&bytes).unwrap();
        assert_consistent(&table);
        table
    };
    let whole = build(0x2000);
    assert!(whole.stats.reckoned > 0);
    assert_eq!(whole.stats.unreckoned_bytes, 0);
    let row = row_at(&whole.segments[0], 0x1011);
    assert_eq!((row.kind, row.offset), (kind::STACK_POINTER, 2));
    let large = build(0x1010 + BARE_BYTES_MAX as usize + 8);
    assert!(large.stats.unreckoned_bytes > BARE_BYTES_MAX);
    assert_eq!(row_at(&large.segments[0], 0x1011).kind, kind::NONE);
}

#[test]
fn what_has_no_rule_does_not_get_the_one_before_it() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &USUAL_START);
    entries.function(common, 0x1000, 16, &[]);
    let mut bytes = entries.image(0x1020, true);
    // `push %rbx; sub %rax,%rsp; call *%rbx; hlt` and padding, then `ret`.
    bytes[0x1010..0x1017].copy_from_slice(&[0x53, 0x48, 0x29, 0xc4, 0xff, 0xd3, 0xf4]);
    bytes[0x1017..0x1020].fill(0x90);
    bytes[0x101f] = 0xc3;
    let table = UnwindTable::build(&bytes).unwrap();
    assert_consistent(&table);
    let kinds = [0x1010, 0x1011, 0x1014].map(|at| row_at(&table.segments[0], at).kind);
    assert_eq!(kinds, [kind::STACK_POINTER, kind::STACK_POINTER, kind::NONE]);
}

/// Where a walk is in a function: at its calls, and behind its system calls.
fn places(bytes: &[u8], address: u64) -> Vec<u64> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    decoder
        .iter()
        .filter_map(|instruction| match instruction.mnemonic() {
            Mnemonic::Call => Some(instruction.ip()),
            Mnemonic::Syscall => Some(instruction.next_ip()),
            _ => None,
        })
        .collect()
}

#[test]
fn what_is_reckoned_of_glibc_is_what_its_entries_say() {
    let (_, images) = own_images();
    let (_, bytes) = images
        .iter()
        .find(|(path, _)| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libc.so"))
        })
        .expect("this process has glibc");
    let table = UnwindTable::build(bytes).unwrap();
    let segment = &table.segments[0];
    let from = segment.file_offset as usize;
    let text = &bytes[from..from + segment.size as usize];
    let whole = 0..text.len() as u64;
    let ranges = reckon(Gap {
        address: 0,
        bytes: text,
        follows_function: false,
        entry_point: None,
        called: &calls_into(text, 0, &[whole]),
    });
    let mut found = BTreeMap::new();
    for place in places(text, 0) {
        let row = row_at(segment, place as u32);
        let range = ranges
            .partition_point(|range| range.start <= place)
            .checked_sub(1)
            .map(|at| ranges[at]);
        let reckoned = range.filter(|range| place < range.start + u64::from(range.len));
        let outcome = match reckoned.map(|range| range.rule) {
            _ if row.kind == kind::NONE => "no truth",
            None => "silent",
            Some(rule) if rule.kind == row.kind && rule.offset == row.offset => "right",
            // The same place, reckoned from the other register.
            Some(_) if row.kind == kind::FRAME_POINTER => "by frame pointer",
            // Cleanups that only a table of exceptions names, at the ends of functions; musl has none.
            Some(_) => "wrong",
        };
        *found.entry(outcome).or_insert(0_usize) += 1;
    }
    let count = |outcome| found.get(outcome).copied().unwrap_or_default();
    assert!(count("right") > 2 * count("silent"), "{found:?}");
    assert!(count("right") > 50 * count("wrong"), "{found:?}");
}
