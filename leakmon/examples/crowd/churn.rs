//! Tasks that end and are replaced all the time.
//!
//! In: how many there are, and how many of them end in a second. As many as are replaced at once end before others begin, so there
//! are never more tasks than that, whatever the machine does, and never less by more than [`REPLACED_AT_ONCE`].

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::oneshot};

/// Tasks that end before as many others begin.
const REPLACED_AT_ONCE: usize = 10;

async fn churned(ballast: [u64; 12], end: oneshot::Receiver<()>, ended: Ended) {
    let _gone = end.await;
    black_box(ballast);
    drop(ended);
}

/// Counts what has ended.
struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Keeps a number of tasks, and replaces some of them all the time, the oldest first.
pub(crate) struct Churn {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
    driver: JoinHandle<()>,
}

impl Churn {
    /// Spawns `live` tasks, of which `rate` a second end and are replaced from then on.
    pub(crate) fn start(handle: Handle, live: usize, rate: usize) -> Self {
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&ended));
        let (filled, is_filled) = mpsc::channel();
        let driver = thread::spawn(move || {
            let senders = (0..live).map(|_| spawn(&handle, &count)).collect();
            let _told = filled.send(());
            replace(&handle, senders, rate, &stopped, &count);
        });
        let _full = is_filled.recv();
        Self { stop, ended, driver }
    }

    /// How many have been replaced.
    pub(crate) fn replaced(&self) -> usize {
        self.ended.load(SeqCst)
    }

    /// Ends them all.
    pub(crate) fn stop(self) {
        self.stop.store(true, SeqCst);
        let _ended = self.driver.join();
    }
}

fn spawn(handle: &Handle, ended: &Arc<AtomicUsize>) -> oneshot::Sender<()> {
    let (sender, end) = oneshot::channel();
    handle.spawn(churned([9; 12], end, Ended(Arc::clone(ended))));
    sender
}

fn replace(
    handle: &Handle,
    mut senders: VecDeque<oneshot::Sender<()>>,
    rate: usize,
    stop: &AtomicBool,
    ended: &Arc<AtomicUsize>,
) {
    let (began, mut replaced) = (Instant::now(), 0);
    let at_once = REPLACED_AT_ONCE.min(senders.len());
    while !stop.load(SeqCst) {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as usize;
        while replaced < due && at_once > 0 && !stop.load(SeqCst) {
            senders.drain(..at_once);
            replaced += at_once;
            while ended.load(SeqCst) < replaced {
                thread::yield_now();
            }
            senders.extend((0..at_once).map(|_| spawn(handle, ended)));
        }
        thread::sleep(Duration::from_millis(1));
    }
}
