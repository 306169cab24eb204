//! Answers as they are, and as a child might forge them.

use super::*;

fn own_file() -> File {
    File::open(std::env::current_exe().unwrap()).unwrap()
}

fn found() -> Found {
    search(&ReadCache::new(SharedFile::new(&own_file()))).unwrap()
}

#[test]
fn a_plan_comes_back_whole() {
    let analyst = Analyst::in_this_process();
    let path = std::env::current_exe().unwrap();
    let (plan, file) = analyse_path(&analyst, &path).unwrap();
    let id = identify(&file, &path).unwrap();
    assert_eq!(plan, found().into_plan(&path, id));
    assert!(plan.sites.len() > 2 && plan.path == path);
}

#[test]
fn a_table_comes_back_whole() {
    let sent = unwind_table(&Analyst::in_this_process(), &own_file()).unwrap();
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(sent, UnwindTable::build(&bytes).unwrap());
    let text = tempfile::tempfile().unwrap();
    assert_eq!(
        unwind_table(&Analyst::in_this_process(), &text),
        Err(TableError::None(
            "not a readable 64-bit little-endian ELF image: the file header is broken".to_owned()
        ))
    );
}

#[test]
fn forged_plans_are_not_believed() {
    let long = "x".repeat(TEXT_BYTES_MAX_ANSWER + 1);
    type Forgery = fn(&mut Found, &str);
    let forgeries: [(&str, Forgery); 11] = [
        ("a register", |found, _| found.sites[0].register = 16),
        ("an offset", |found, _| found.sites[0].file_offset = 1 << 63),
        ("no instruction", |found, _| found.sites[0].bytes.clear()),
        ("a long instruction", |found, _| found.sites[0].bytes = vec![0x90; 16]),
        ("a task type", |found, _| {
            found.sites[0].task_type = Some(found.task_types.len());
        }),
        ("a runtime", |found, _| found.runtime = RUNTIMES.len()),
        ("a build id", |found, _| found.build_id = "../x".to_owned()),
        ("an entry", |found, _| found.entry_file_offset = Some(u64::MAX)),
        ("a long name", |found, long| {
            found.task_types[0].names = vec![long.to_owned()];
        }),
        ("a long problem", |found, long| found.problems = vec![long.to_owned()]),
        ("a long version", |found, long| found.version = Some(long.to_owned())),
    ];
    let found = postcard::to_stdvec(&found()).unwrap();
    assert!(is_credible(&postcard::from_bytes(&found).unwrap()));
    for (what, forge) in forgeries {
        let mut found: Found = postcard::from_bytes(&found).unwrap();
        forge(&mut found, &long);
        assert!(!is_credible(&found), "{what}");
    }
    for (runtime, reason, credible) in [(0, "r", true), (9, "r", false), (0, &*long, false)] {
        let reason = reason.to_owned();
        let refusal = Refusal::Unsupported {
            runtime,
            version: None,
            reason,
        };
        assert_eq!(is_credible_refusal(&refusal), credible);
    }
}

#[test]
fn forged_tables_are_not_believed() {
    let row = |pc| Row {
        pc,
        kind: 1,
        frame_pointer: 0,
        offset: 1,
    };
    let sent = |size: u64, rows: &[Row], segments: usize| {
        let segment = || SentRows {
            vaddr: 0,
            file_offset: 0,
            size,
            rows: rows.as_bytes().to_vec(),
        };
        SentTable {
            segments: (0..segments).map(|_| segment()).collect(),
            stats: UnwindStats::default(),
        }
    };
    let good = [row(0), row(8)];
    assert!(sent(16, &good, SEGMENTS_MAX).into_table().is_some());
    for (what, forged) in [
        ("no row", sent(16, &[], 1)),
        ("it begins later", sent(16, &good[1..], 1)),
        ("it falls", sent(16, &[row(0), row(8), row(4)], 1)),
        ("twice the same", sent(16, &[row(0), row(0)], 1)),
        ("a row outside", sent(8, &good, 1)),
        ("too many segments", sent(16, &good, SEGMENTS_MAX + 1)),
        ("too large", sent(TEXT_BYTES_MAX, &good, 2)),
        ("sizes that overflow", sent(u64::MAX, &good, 2)),
    ] {
        assert!(forged.into_table().is_none(), "{what}");
    }
    let mut cut = sent(16, &good, 1);
    cut.segments[0].rows.pop();
    assert!(cut.into_table().is_none());
}
