//! Any bytes, made into names: a file whose addresses are resolved if it begins as an ELF file, else a symbol a line.
//!
//! In: bytes. Checked: no panic of leakmon's own code, every address gives a frame, and texts keep within their bound.
//! A panic of blazesym is caught by the resolver, as in the program.
#![no_main]

use leakmon::analysis::Analyst;
use leakmon::symbols::ResolvedFrame;
use leakmon::symbols::address_space::Place;
use leakmon::symbols::image::{Image, ImageFile};
use leakmon::symbols::names::{self, NAME_CHARS_MAX};
use leakmon::symbols::resolver::{Limits, RawFrame, Resolver};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Once};

/// Segments whose addresses are resolved, and addresses of each.
const SEGMENTS: usize = 4;
const ADDRESSES: u64 = 16;

fuzz_target!(|bytes: &[u8]| {
    static CAUGHT: Once = Once::new();
    // libFuzzer's own hook ends the process at every panic, caught or not. It looks for uncaught ones by itself.
    CAUGHT.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    if bytes.starts_with(b"\x7fELF") {
        resolve(bytes);
    } else {
        name(&String::from_utf8_lossy(bytes));
    }
});

fn name(text: &str) {
    let symbols: Vec<String> = text.lines().map(str::to_owned).collect();
    for symbol in &symbols {
        for name in [names::demangle(symbol), names::task_type(symbol), names::cut(symbol)] {
            assert!(name.chars().count() <= NAME_CHARS_MAX, "{symbol}");
        }
    }
    let shown = names::one_of(&symbols);
    assert_eq!(shown.is_none(), symbols.is_empty());
    assert!(shown.is_none_or(|shown| shown.chars().count() <= 4 * NAME_CHARS_MAX));
}

fn resolve(bytes: &[u8]) {
    let mut file = File::from(memfd_create(c"fuzzed", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("memory for the file");
    let image = Arc::new(Image::read(&file, Path::new("/fuzzed")).expect("an open file can be asked"));
    // The image is its own debug file as well: that path takes the same bytes otherwise.
    let debug = match bytes.len() % 2 {
        0 => None,
        _ => file.try_clone().ok().map(|file| ((*image).clone(), file)),
    };
    let file = Arc::new(ImageFile {
        image: Arc::clone(&image),
        file,
        debug,
    });
    let mut resolver = Resolver::new(Limits::default(), Analyst::in_this_process());
    let segments = image.segments.iter().take(SEGMENTS);
    let stack: Vec<RawFrame> = segments
        .flat_map(|segment| {
            (0..ADDRESSES).map(|index| {
                segment
                    .file_offset
                    .wrapping_add(segment.size / ADDRESSES * index + index)
            })
        })
        .zip([true, false].into_iter().cycle())
        .map(|(offset, exact)| {
            let (image, file) = (Arc::clone(&image), Some(Arc::clone(&file)));
            RawFrame {
                place: Place::Image { image, file, offset },
                exact,
            }
        })
        .collect();
    let frames = resolver.resolve(&stack);
    assert!(frames.len() >= stack.len());
    for ResolvedFrame { function, file, .. } in &frames {
        let within = |text: &Option<String>| text.as_ref().is_none_or(|text| text.chars().count() <= NAME_CHARS_MAX);
        assert!(within(function) && within(file));
    }
    assert_eq!(resolver.resolve(&stack), frames, "the same answers from memory");
}
