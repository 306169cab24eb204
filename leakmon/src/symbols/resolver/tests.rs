//! Tests against the test's own executable, whole, stripped and split.

mod hostile;

use super::*;
use crate::symbols::address_space::{AddressSpace, ImageTable};
use crate::symbols::debug_file;
use crate::symbols::image::Image;
use crate::symbols::nesting::Tree;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn resolver() -> Resolver {
    Resolver::new(Limits::default(), Analyst::in_this_process())
}

/// The place of an address of this test, with `file` in the place of its own image.
fn place_in(path: &Path, directories: &[PathBuf], address: u64) -> Place {
    let mut images = ImageTable::new(64, Vec::new());
    let space = AddressSpace::read(std::process::id(), &mut images).unwrap();
    let Place::Image { offset, .. } = space.place(address, &mut images) else {
        panic!("not placed");
    };
    let file = File::open(path).unwrap();
    let image = Arc::new(Image::read(&file, path).unwrap());
    let debug = match image.debug_bytes {
        0 => debug_file::find(&image, None, directories),
        _ => None,
    };
    let file = Some(Arc::new(ImageFile {
        image: Arc::clone(&image),
        file,
        debug,
    }));
    Place::Image { image, file, offset }
}

fn exact(place: Place) -> Vec<RawFrame> {
    vec![RawFrame { place, exact: true }]
}

fn own_executable() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn objcopy(arguments: &[&str]) {
    assert!(
        Command::new("objcopy").args(arguments).status().unwrap().success(),
        "{arguments:?}"
    );
}

/// A function whose line is known.
#[inline(never)]
fn landmark() -> u32 {
    std::hint::black_box(line!())
}

const LANDMARK: &str = "leakmon::symbols::resolver::tests::landmark";

#[test]
fn the_own_code_has_name_file_and_line() {
    let mut resolver = self::resolver();
    let place = place_in(&own_executable(), &[], landmark as *const () as u64);
    let frame = resolver.resolve(&exact(place)).pop().unwrap();
    assert_eq!(frame.function.as_deref(), Some(LANDMARK));
    assert!(
        frame
            .file
            .as_deref()
            .unwrap()
            .ends_with("src/symbols/resolver/tests.rs"),
        "{frame:?}"
    );
    assert_eq!(frame.line, Some(landmark() - 1));
    assert_eq!(frame.image.as_deref(), own_executable().file_name().unwrap().to_str());
    assert!(!frame.inlined);
    assert_eq!(resolver.counts().without_debug + resolver.counts().unreadable, 0);
}

#[inline(always)]
fn inlined_leaf(seed: u64) -> u64 {
    std::hint::black_box(seed).rotate_left(7) ^ seed
}

/// A function whose code is mostly another's.
#[inline(never)]
fn holder(seed: u64) -> u64 {
    inlined_leaf(seed)
}

#[test]
fn inlined_functions_come_before_the_one_that_holds_them() {
    let place = place_in(&own_executable(), &[], holder as *const () as u64);
    let Place::Image { image, file, offset } = place else {
        unreachable!()
    };
    assert_ne!(holder(1), 1);
    let mut resolver = self::resolver();
    let function = |frame: &ResolvedFrame, name: &str| {
        frame
            .function
            .as_ref()
            .is_some_and(|function| function.ends_with(&format!("resolver::tests::{name}")))
    };
    let mut found = 0;
    for within in 0..512 {
        let (image, file) = (Arc::clone(&image), file.clone());
        let frames = resolver.resolve(&exact(Place::Image {
            image,
            file,
            offset: offset + within,
        }));
        if !function(frames.last().unwrap(), "holder") {
            break;
        }
        let inlined: Vec<bool> = frames.iter().map(|frame| frame.inlined).collect();
        assert_eq!(inlined.iter().filter(|inlined| !**inlined).count(), 1);
        assert!(
            frames
                .iter()
                .all(|frame| frame.offset == offset + within && frame.line.is_some())
        );
        if let [.., leaf, holder] = &frames[..] {
            assert!(function(leaf, "inlined_leaf"), "{leaf:?}");
            assert!(leaf.line < holder.line, "each has its own line");
            found += 1;
        }
    }
    assert!(found > 0, "no address is in the inlined function");
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    let mut resolver = self::resolver();
    let place = place_in(&own_executable(), &[], landmark as *const () as u64);
    let Place::Image { offset, .. } = place else {
        unreachable!()
    };
    let called = resolver.resolve(&[RawFrame { place, exact: false }]).pop().unwrap();
    assert_ne!(called.function.as_deref(), Some(LANDMARK));
    assert_eq!(called.offset, offset, "the offset shown is that of the address itself");
}

#[test]
fn a_stripped_image_keeps_image_and_offset_and_its_debug_file_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (bare, symbols, debug) = (
        folder.path().join("bare"),
        folder.path().join("symbols"),
        folder.path().join("d"),
    );
    objcopy(&["--strip-all", &text(&own_executable()), &text(&bare)]);
    objcopy(&["--strip-debug", &text(&own_executable()), &text(&symbols)]);
    let address = landmark as *const () as u64;
    let mut resolver = self::resolver();

    let frame = resolver.resolve(&exact(place_in(&bare, &[], address))).pop().unwrap();
    assert_eq!((frame.function, frame.file, frame.line), (None, None, None));
    assert_eq!(frame.image.as_deref(), Some("bare"));
    assert!(frame.offset > 0);

    let frame = resolver
        .resolve(&exact(place_in(&symbols, &[], address)))
        .pop()
        .unwrap();
    assert_eq!(
        (frame.function.as_deref(), frame.file, frame.line),
        (Some(LANDMARK), None, None)
    );

    let build_id = Image::read(&File::open(&bare).unwrap(), &bare)
        .unwrap()
        .build_id
        .expect("the linker writes one");
    let below = debug.join(".build-id").join(&build_id[..2]);
    std::fs::create_dir_all(&below).unwrap();
    let separate = below.join(format!("{}.debug", &build_id[2..]));
    objcopy(&["--only-keep-debug", &text(&own_executable()), &text(&separate)]);
    let mut resolver = self::resolver();
    let frame = resolver
        .resolve(&exact(place_in(&bare, &[debug], address)))
        .pop()
        .unwrap();
    assert_eq!(
        (frame.function.as_deref(), frame.line),
        (Some(LANDMARK), Some(landmark() - 1))
    );
    assert_eq!(frame.image.as_deref(), Some("bare"));
}

#[test]
fn too_much_debug_information_leaves_the_symbol_table() {
    let place = place_in(&own_executable(), &[], landmark as *const () as u64);
    let Place::Image { image, .. } = &place else {
        unreachable!()
    };
    for (limit, lines) in [(image.debug_bytes, true), (image.debug_bytes - 1, false)] {
        let limits = Limits {
            debug_bytes: limit,
            ..Limits::default()
        };
        let mut resolver = Resolver::new(limits, Analyst::in_this_process());
        let frame = resolver.resolve(&exact(place.clone())).pop().unwrap();
        assert_eq!(frame.function.as_deref(), Some(LANDMARK));
        assert_eq!(frame.line.is_some(), lines);
        assert_eq!(resolver.counts().without_debug, u64::from(!lines));
    }
}

#[test]
fn compressed_debug_information_is_measured_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed");
    objcopy(&[
        "--compress-debug-sections=zlib",
        own_executable().to_str().unwrap(),
        path.to_str().unwrap(),
    ]);
    let place = place_in(&path, &[], landmark as *const () as u64);
    let Place::Image { image, .. } = &place else {
        unreachable!()
    };
    let whole = Image::read(&File::open(own_executable()).unwrap(), &own_executable())
        .unwrap()
        .debug_bytes;
    assert!(image.debug_bytes < whole && !image.compressed.is_empty());
    // However much this test program has by now.
    let limits = Limits {
        debug_bytes: u64::MAX / 2,
        ..Limits::default()
    };
    let frame = Resolver::new(limits, Analyst::in_this_process())
        .resolve(&exact(place.clone()))
        .pop()
        .unwrap();
    assert_eq!(frame.line, Some(landmark() - 1));
}

#[test]
fn the_cache_answers_and_is_bounded() {
    let address = landmark as *const () as u64;
    let place = place_in(&own_executable(), &[], address);
    let Place::Image { image, file, offset } = place else {
        unreachable!()
    };
    let at = |offset| {
        let (image, file) = (Arc::clone(&image), file.clone());
        exact(Place::Image { image, file, offset })
    };
    let mut resolver = Resolver::new(
        Limits {
            cache_entries: 4,
            ..Limits::default()
        },
        Analyst::in_this_process(),
    );
    let first = resolver.resolve(&at(offset));
    assert_eq!(resolver.resolve(&at(offset)), first);
    assert_eq!((resolver.counts().looked_up, resolver.counts().cached), (1, 1));
    for step in 1..=4 {
        resolver.resolve(&at(offset + step));
    }
    assert_eq!((resolver.cache.len(), resolver.counts().evicted), (4, 1));
    assert_eq!(resolver.resolve(&at(offset)), first);
    assert_eq!(resolver.counts().looked_up, 6);

    let mut resolver = Resolver::new(
        Limits {
            cache_bytes: 2 * weight(&first),
            ..Limits::default()
        },
        Analyst::in_this_process(),
    );
    for step in 0..20 {
        resolver.resolve(&at(offset + step));
        assert!(resolver.cache.len() <= 2);
    }
}

#[test]
fn large_images_are_given_back_at_rest_and_small_ones_kept() {
    let address = landmark as *const () as u64;
    let mut resolver = self::resolver();
    let large = place_in(&own_executable(), &[], address);
    let Place::Image { image, .. } = &large else {
        unreachable!()
    };
    assert!(image.debug_bytes > IDLE_BYTES_MAX, "the test is a large image");
    let Place::Image { image, file, .. } = place_in(Path::new("/bin/true"), &[], address) else {
        unreachable!()
    };
    let offset = image.segments[0].file_offset;
    let small = Place::Image { image, file, offset };
    let first = resolver.resolve(&[exact(large.clone()), exact(small)].concat());
    assert_eq!(resolver.namings.len(), 2);
    resolver.rest();
    assert_eq!(resolver.namings.len(), 1);
    assert_eq!(resolver.resolve(&exact(large))[0], first[0], "the cache answers");
    assert_eq!(resolver.namings.len(), 1);
}

/// Assembly of one function whose debug information nests `depth` inlined functions.
fn nested(depth: usize) -> String {
    let opened = format!(".fill {depth},1,3\n.fill {depth},1,0\n");
    format!(
        ".text\n.globl main\n.type main,@function\n\
         .file 1 \"a.c\"\nmain:\n.loc 1 5\nxor %eax,%eax\n.loc 1 6\nret\n.Le:\n\
         .size main, .Le-main\n\
         .section .debug_abbrev,\"\",@progbits\n.byte 1,0x11,1,0x11,1,0x12,7,0x10,0x17,0,0\n\
         .byte 2,0x2e,1,0x11,1,0x12,7,0x03,8,0,0\n.byte 3,0x1d,1,0,0\n.byte 0\n\
         .section .debug_info,\"\",@progbits\n.long .Lie-.Lis\n.Lis: .short 4\n.long 0\n.byte 8\n\
         .byte 1\n.quad main\n.quad .Le-main\n.long 0\n.byte 2\n.quad main\n.quad .Le-main\n.asciz \"outer\"\n\
         {opened}.byte 0,0\n.Lie:\n.section .debug_line,\"\",@progbits\n"
    )
}

#[test]
fn endless_nesting_costs_the_inlined_functions_alone() {
    // blazesym descends by recursion: this many levels would overflow any stack and end the daemon.
    let folder = tempfile::tempdir().unwrap();
    for (depth, tree) in [(10, Tree::Shallow), (3_000_000, Tree::Deep)] {
        let (source, path) = (folder.path().join("a.s"), folder.path().join("a"));
        std::fs::write(&source, nested(depth)).unwrap();
        let linked = Command::new("cc")
            .arg("-w")
            .arg(&source)
            .arg("-o")
            .arg(&path)
            .output()
            .unwrap();
        assert!(linked.status.success(), "{linked:?}");
        let Place::Image { image, file, .. } = place_in(&path, &[], nested as *const () as u64) else {
            unreachable!()
        };
        let file = file.unwrap();
        assert_eq!(Tree::of(&image, &file.file), tree, "{depth}");
        let mut resolver = self::resolver();
        let text = *image.segments.iter().find(|segment| segment.address > 0).unwrap();
        let found = (0..text.size).find_map(|within| {
            let (image, file, offset) = (Arc::clone(&image), Some(Arc::clone(&file)), text.file_offset + within);
            let frame = resolver.resolve(&exact(Place::Image { image, file, offset })).pop()?;
            frame.line.is_some().then_some(frame)
        });
        let found = found.expect("the function has lines");
        assert_eq!((found.function.as_deref(), found.line), (Some("outer"), Some(5)));
    }
}

#[test]
fn damaged_images_cost_their_names_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read("/bin/true").unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut resolver = self::resolver();
    for round in 0..200 {
        let mut data = whole.clone();
        for _ in 0..20 {
            let at = (random() % data.len() as u64) as usize;
            data[at] = random() as u8;
        }
        data.truncate(data.len() - (random() % 4_096) as usize);
        let path = folder.path().join(round.to_string());
        std::fs::write(&path, &data).unwrap();
        let file = File::open(&path).unwrap();
        let image = Arc::new(Image::read(&file, &path).unwrap());
        let file = Some(Arc::new(ImageFile {
            image: Arc::clone(&image),
            file,
            debug: None,
        }));
        let offset = random() % data.len() as u64;
        let frames = resolver.resolve(&exact(Place::Image { image, file, offset }));
        assert_eq!(frames[0].offset, offset);
    }
}

#[test]
fn what_is_in_no_file_keeps_what_is_known() {
    let mut resolver = self::resolver();
    let vdso = Place::Region {
        name: "[vdso]".into(),
        offset: 7,
    };
    let frames = resolver.resolve(&[exact(vdso), exact(Place::Nowhere { address: 9 })].concat());
    let seen: Vec<_> = frames
        .iter()
        .map(|frame| (frame.image.as_deref(), frame.offset))
        .collect();
    assert_eq!(seen, [(Some("[vdso]"), 7), (None, 9)]);
}
