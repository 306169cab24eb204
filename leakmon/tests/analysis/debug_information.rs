//! The first report of a program with 100 MB of debug information, and the next one.

use super::{analyst, memory::Peak, symbols};
use leakmon::symbols::{
    address_space::Place,
    image::{Image, ImageFile},
    resolver::{Limits, RawFrame},
    service::{QUEUE_MAX, Request, SymbolService},
};
use std::{
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Ten times what it may take on a quiet host.
const FIRST_REPORT_MAX: Duration = Duration::from_secs(20);
/// What daemon and child may have together.
const BYTES_MAX: u64 = 250 << 20;
const STACKS: usize = 25;
const FRAMES: usize = 16;

/// A large program, and addresses spread over the whole of it: more than a report has.
fn spread() -> (Arc<Image>, Vec<RawFrame>) {
    // leakmon's own dev build is such a program.
    let program = Path::new(env!("CARGO_BIN_EXE_leakmon"));
    let functions = symbols::functions(program, None);
    let file = File::open(program).unwrap();
    let image = Arc::new(Image::read(&file, program).unwrap());
    assert!(
        image.debug_bytes >= 100 << 20,
        "{} MiB: build the test with debug information",
        image.debug_bytes >> 20
    );
    let held = Arc::new(ImageFile {
        image: Arc::clone(&image),
        file,
        debug: None,
    });
    let step = functions.len() / (STACKS * FRAMES);
    let frames = functions
        .iter()
        .step_by(step)
        .take(STACKS * FRAMES)
        .map(|offset| {
            let (image, file) = (Arc::clone(&image), Some(Arc::clone(&held)));
            let place = Place::Image {
                image,
                file,
                offset: *offset,
            };
            RawFrame { place, exact: true }
        })
        .collect();
    (image, frames)
}

#[test]
fn the_first_report_of_a_large_program_is_quick_and_the_next_one_is_remembered() {
    let (image, frames) = spread();
    let (analyst, peak) = (analyst(), Peak::begin());
    let (service, mut answers) = SymbolService::start(QUEUE_MAX, Limits::default(), analyst.clone()).unwrap();
    let mut report = || {
        let began = Instant::now();
        for (token, stack) in frames.chunks(FRAMES).enumerate() {
            let stack = stack.to_vec();
            service.submit(Request { token, stack }).unwrap();
        }
        let (submitted, answered) = (began.elapsed(), service.counts().answered);
        let named: Vec<_> = (0..STACKS).map(|_| answers.blocking_recv().unwrap().frames).collect();
        (submitted, answered, began.elapsed(), named)
    };
    let (submitted, answered, first_time, first) = report();
    // Who submits waits for no answer.
    assert!(
        answered < STACKS as u64,
        "{answered} answers came before all stacks were submitted"
    );
    let counts = service.counts().resolver;
    assert_eq!((counts.without_debug, counts.unreadable), (0, 0));
    assert_eq!(counts.looked_up, (STACKS * FRAMES) as u64);
    let lines = first.iter().flatten().filter(|frame| frame.line.is_some()).count();
    assert!(lines >= STACKS * FRAMES * 9 / 10, "{lines} frames have lines");

    let (_, _, second_time, second) = report();
    assert_eq!(first, second);
    let again = service.counts().resolver;
    assert_eq!((again.looked_up, again.cached), (counts.looked_up, counts.looked_up));

    drop(service);
    assert!(answers.blocking_recv().is_none(), "the worker has ended");
    let (child, daemon) = (analyst.counts().peak_bytes, peak.bytes());
    println!(
        "{} MiB of debug information, {} look-ups: {first_time:?} the first time, {submitted:?} of it to submit; \
         {second_time:?} the second; child {} MiB, daemon {} MiB",
        image.debug_bytes >> 20,
        counts.looked_up,
        child >> 20,
        daemon >> 20
    );
    assert!(first_time < FIRST_REPORT_MAX, "{first_time:?}");
    assert!(child + daemon < BYTES_MAX, "{} MiB", (child + daemon) >> 20);
}
