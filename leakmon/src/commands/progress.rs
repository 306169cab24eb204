//! Progress on a terminal; silence in a pipe.
//!
//! In: what is being done. Out: a line on stderr, where that is a terminal, for as long as it is done and only if it takes
//! longer than a second.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

/// What is shorter needs no line.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the line changes.
pub(super) const REDRAW: Duration = Duration::from_millis(200);

/// Shows that something is being done until it is dropped. It has a thread of its own, since the work may block.
pub(super) struct Spinner(Option<(Sender<()>, JoinHandle<()>)>);

impl Spinner {
    pub(super) fn new(what: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (done, is_done) = channel();
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || spin(what, &is_done));
        // Without the thread there is no progress to see, and the work goes on.
        Self(thread.ok().map(|thread| (done, thread)))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.0.take() {
            drop(done);
            // The line must be gone before anything else is written.
            let _ended = thread.join();
        }
    }
}

fn spin(what: &'static str, is_done: &Receiver<()>) {
    if is_done.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} {elapsed}"));
    bar.set_message(what);
    while is_done.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
        bar.tick();
    }
    bar.finish_and_clear();
}

pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
