//! Files made to mislead blazesym, which trusts what it reads: they lose names, and cost neither time nor memory.

use super::*;
use crate::symbols::naming::SYMBOL_BYTES_MAX;

/// A section of a made file: name, type, flags, contents.
type Section<'a> = (&'a str, u32, u64, &'a [u8]);

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const COMPRESSED: u64 = 1 << 11;

/// A library of one segment and these sections, the names' last.
fn library(sections: &[Section<'_>]) -> Vec<u8> {
    let mut data = vec![0; 0x1000];
    let (mut names, mut headers) = (vec![0], vec![0; 64]);
    let mut header = |names: &mut Vec<u8>, data: &mut Vec<u8>, section: Section<'_>, contents: Option<&[u8]>| {
        let (name, kind, flags, own) = section;
        let name_at = names.len() as u32;
        names.extend(name.bytes().chain([0]));
        let contents = contents.unwrap_or(own).to_vec();
        headers.extend([name_at.to_le_bytes(), kind.to_le_bytes()].concat());
        let link = if kind == SYMTAB { 2 } else { 0_u64 };
        for word in [flags, 0, data.len() as u64, contents.len() as u64, link, 8, 24] {
            headers.extend(word.to_le_bytes());
        }
        data.extend(contents);
        // blazesym takes headers and symbols where they lie.
        data.resize(data.len().next_multiple_of(8), 0);
    };
    for section in sections {
        header(&mut names, &mut data, *section, None);
    }
    let all = [&names[..], b".shstrtab\0"].concat();
    header(&mut names, &mut data, (".shstrtab", STRTAB, 0, &[]), Some(&all));
    let (at, count) = (data.len() as u64, sections.len() as u16 + 2);
    data.extend(headers);
    data[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    data[16..20].copy_from_slice(&[3, 0, 62, 0]);
    put(&mut data, 32, &64_u64.to_le_bytes());
    put(&mut data, 40, &at.to_le_bytes());
    for (at, value) in [(54, 56), (56, 1), (58, 64), (60, count), (62, count - 1)] {
        put(&mut data, at, &u16::to_le_bytes(value));
    }
    put(&mut data, 64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    for at in [96, 104] {
        put(&mut data, at, &0x1000_u64.to_le_bytes());
    }
    data
}

fn put(data: &mut [u8], at: usize, value: &[u8]) {
    data[at..at + value.len()].copy_from_slice(value);
}

/// One function over most of the segment.
fn symbols() -> Vec<u8> {
    let mut table = vec![0; 48];
    put(&mut table, 24, &[1, 0, 0, 0, 0x12, 0, 1, 0]);
    put(&mut table, 32, &0x100_u64.to_le_bytes());
    put(&mut table, 40, &0xf00_u64.to_le_bytes());
    table
}

/// What the file's first bytes are called, and what was counted.
fn resolved(data: &[u8]) -> (Option<String>, ResolverCounts) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    resolved_file(file)
}

fn resolved_file(file: File) -> (Option<String>, ResolverCounts) {
    let image = Arc::new(Image::read(&file, Path::new("/lib/made.so")).unwrap());
    let (held, debug) = (Arc::clone(&image), None);
    let file = Some(Arc::new(ImageFile {
        image: held,
        file,
        debug,
    }));
    let mut resolver = super::resolver();
    let place = Place::Image {
        image,
        file,
        offset: 0x123,
    };
    let frame = resolver.resolve(&exact(place)).pop().unwrap();
    (frame.function, resolver.counts())
}

#[test]
fn a_made_library_has_its_symbol() {
    let table = symbols();
    let (name, counts) = resolved(&library(&[
        (".symtab", SYMTAB, 0, &table),
        (".strtab", STRTAB, 0, b"\0work\0"),
    ]));
    assert_eq!(name.as_deref(), Some("work"));
    assert_eq!((counts.unreadable, counts.without_debug), (0, 0));
}

#[test]
fn files_that_hide_sections_are_not_given_to_blazesym() {
    let table = symbols();
    let sections = [(".symtab", SYMTAB, 0, &table[..]), (".strtab", STRTAB, 0, b"\0work\0")];
    let whole = library(&sections);
    let headers = whole.len() - 64 * 4;
    let changed = |at: usize, value: &[u8]| {
        let mut data = whole.clone();
        put(&mut data, at, value);
        data
    };
    // The real number of sections is then in the first header: a table of a million headers, each with a name as long
    // as the file, is read by blazesym for hours.
    let hidden = [
        &changed(60, &[0, 0])[..headers + 32],
        &4_u64.to_le_bytes(),
        &whole[headers + 40..],
    ]
    .concat();
    let many = vec![(".other", PROGBITS, 0, &b""[..]); 5_000];
    for (what, data) in [
        ("the number is elsewhere", hidden),
        ("the names' number is elsewhere", changed(62, &[0xff, 0xff])),
        ("an object", changed(16, &[1])),
        ("a name beyond the names", changed(headers + 64, &[0xff, 0xff])),
        ("more than are read", library(&[&sections[..], &many].concat())),
        (
            "two trees",
            library(&[&sections[..], &[(".debug_info", PROGBITS, 0, &b""[..]); 2]].concat()),
        ),
    ] {
        let (name, counts) = resolved(&data);
        assert_eq!((name, counts.unreadable), (None, 1), "{what}");
    }
}

#[test]
fn links_are_not_followed_however_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    // To open a FIFO waits for a writer, for ever.
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let (table, text) = (symbols(), [fifo.as_bytes(), b"\0"].concat());
    let padded = [&text[..], &[0; 3], &[1, 2, 3, 4]].concat();
    for (section, contents) in [
        (".gnu_debuglink", padded[..padded.len() - padded.len() % 4].to_vec()),
        (".gnu_debugaltlink", [&text[..], b"id"].concat()),
        (".debug_sup", [&[5, 0, 0], &text[..], &[2, 1, 1]].concat()),
    ] {
        let data = library(&[
            (".symtab", SYMTAB, 0, &table),
            (".strtab", STRTAB, 0, b"\0work\0"),
            (".debug_str", PROGBITS, 0, b"text"),
            (section, PROGBITS, 0, &contents),
        ]);
        let (answer, answered) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || answer.send(resolved(&data)));
        let (name, counts) = answered
            .recv_timeout(std::time::Duration::from_secs(20))
            .unwrap_or_else(|_| panic!("{section} was followed"));
        thread.join().unwrap().unwrap();
        assert_eq!((name.as_deref(), counts.unreadable), (Some("work"), 0), "{section}");
    }
}

#[test]
fn symbol_tables_are_bounded() {
    let table = symbols();
    let made = library(&[(".symtab", SYMTAB, 0, &table), (".strtab", STRTAB, 0, b"\0work\0")]);
    let headers = made.len() - 64 * 4;
    for (bytes, named) in [(SYMBOL_BYTES_MAX / 24 * 24, true), (SYMBOL_BYTES_MAX + 24, false)] {
        let mut data = made.clone();
        put(&mut data, headers + 64 + 32, &bytes.to_le_bytes());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        // The symbols behind the first two are empty, and cost no room in the file.
        file.set_len(0x1000 + bytes).unwrap();
        let (name, counts) = resolved_file(file);
        assert_eq!(
            (name.is_some(), counts.unreadable),
            (named, u64::from(!named)),
            "{bytes}"
        );
    }
}

#[test]
fn a_compressed_symbol_table_that_is_hidden_costs_nothing() {
    let table = symbols();
    let data = library(&[
        (".symtab", SYMTAB, COMPRESSED, &table),
        (".strtab", STRTAB, 0, b"\0work\0"),
    ]);
    assert_eq!(resolved(&data).0, None);
}
