//! Symbolising off the event path: requests go into a bounded queue, answers come out of a channel.
//!
//! In: stacks with a token of the caller's. Out: the token with the resolved frames, in the order of the requests.
//! One thread works, so the caller never waits; it owns the [`Resolver`], and waits for the children that read the files.

use super::resolver::{Limits, RawFrame, Resolver, ResolverCounts};
use crate::analysis::Analyst;
use crate::symbols::ResolvedFrame;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver as Queue, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Stacks that wait, unless configured otherwise. Each is at most 127 frames of some 60 bytes.
pub const QUEUE_MAX: usize = 4_096;

/// A stack to resolve.
#[derive(Debug)]
pub struct Request<T> {
    /// Given back with the answer.
    pub token: T,
    /// Innermost first.
    pub stack: Vec<RawFrame>,
}

/// A resolved stack.
#[derive(Debug)]
pub struct Reply<T> {
    /// The request's.
    pub token: T,
    /// Innermost first, inlined functions before the function they were inlined into.
    pub frames: Vec<ResolvedFrame>,
}

/// Why a request was not taken; it comes back.
#[derive(Debug, thiserror::Error)]
pub enum Refused<T> {
    /// The queue is full: ask again later.
    #[error("the queue of the symbolizer is full; ask again once it has answered")]
    Full(Request<T>),
    /// The worker has ended, which it does only when nobody takes its answers.
    #[error("the symbolizer has stopped; restart leakmon to get names again")]
    Stopped(Request<T>),
}

/// What the service counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Requests refused since the queue was full.
    pub refused: u64,
    /// Requests answered.
    pub answered: u64,
    /// The resolver's own counts, as of the last answer.
    pub resolver: ResolverCounts,
}

/// The sender's end. Dropping it ends the worker once it has answered what is queued.
#[derive(Debug)]
pub struct SymbolService<T> {
    requests: SyncSender<Request<T>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    refused: AtomicU64,
    /// Held for a copy only.
    worker: Mutex<(u64, ResolverCounts)>,
}

impl<T: Send + 'static> SymbolService<T> {
    /// Starts the worker. At most `queue_max` requests wait, and as many answers; the worker waits while nobody takes
    /// them.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(queue_max: usize, limits: Limits, analyst: Analyst) -> io::Result<(Self, Receiver<Reply<T>>)> {
        let (requests, queue) = sync_channel::<Request<T>>(queue_max);
        let (replies, answers) = channel(queue_max.max(1));
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("symbols".to_owned())
            .spawn(move || work(&queue, &replies, Resolver::new(limits, analyst), &seen))?;
        Ok((Self { requests, shared }, answers))
    }

    /// Queues a stack. Never waits.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn submit(&self, request: Request<T>) -> Result<(), Refused<T>> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                Refused::Full(request)
            }
            TrySendError::Disconnected(request) => Refused::Stopped(request),
        })
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> ServiceCounts {
        let (answered, resolver) = *self.shared.worker.lock().unwrap_or_else(PoisonError::into_inner);
        ServiceCounts {
            refused: self.shared.refused.load(Ordering::Relaxed),
            answered,
            resolver,
        }
    }
}

/// Answers requests until nobody sends any, or nobody takes the answers.
fn work<T>(queue: &Queue<Request<T>>, replies: &Sender<Reply<T>>, mut resolver: Resolver, shared: &Shared) {
    loop {
        let next = queue.try_recv().or_else(|_| {
            resolver.rest();
            queue.recv()
        });
        let Ok(Request { token, stack }) = next else { return };
        let frames = resolver.resolve(&stack);
        // The files may be closed now, whatever the caller does with the answer.
        drop(stack);
        {
            let mut worker = shared.worker.lock().unwrap_or_else(PoisonError::into_inner);
            *worker = (worker.0 + 1, resolver.counts());
        }
        if replies.blocking_send(Reply { token, frames }).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::address_space::{AddressSpace, ImageTable, Place};
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    fn nowhere(address: u64) -> Vec<RawFrame> {
        vec![RawFrame {
            place: Place::Nowhere { address },
            exact: true,
        }]
    }

    #[test]
    fn answers_come_in_order_with_their_tokens() {
        let (service, mut answers) = SymbolService::start(8, Limits::default(), Analyst::in_this_process()).unwrap();
        for token in 0..8_u64 {
            let stack = nowhere(token);
            assert!(service.submit(Request { token, stack }).is_ok());
        }
        for token in 0..8 {
            let reply = answers.blocking_recv().unwrap();
            assert_eq!((reply.token, reply.frames[0].offset), (token, token));
        }
        assert_eq!(service.counts().answered, 8);
        drop(service);
        assert!(answers.blocking_recv().is_none(), "the worker has ended");
    }

    #[test]
    fn a_full_queue_refuses_and_counts() {
        let (service, mut answers) = SymbolService::start(2, Limits::default(), Analyst::in_this_process()).unwrap();
        // Nobody takes answers: two of them fit, the worker holds a third, two requests wait.
        let mut taken = 0;
        let refused = loop {
            match service.submit(Request {
                token: taken,
                stack: nowhere(0),
            }) {
                Ok(()) => taken += 1,
                // The worker may be about to take one from the queue; it is stuck for good once it has answered
                // three.
                Err(Refused::Full(_)) if service.counts().answered < 3 => std::thread::yield_now(),
                Err(refused) => break refused,
            }
            assert!(taken <= 5, "more than queue and answers can hold");
        };
        assert!(matches!(refused, Refused::Full(Request { .. })));
        assert!(service.counts().refused >= 1);
        for token in 0..taken {
            assert_eq!(answers.blocking_recv().unwrap().token, token);
        }
    }

    #[test]
    fn without_a_taker_the_worker_stops() {
        let (service, answers) = SymbolService::start(1, Limits::default(), Analyst::in_this_process()).unwrap();
        drop(answers);
        let refused = loop {
            match service.submit(Request {
                token: 7,
                stack: nowhere(0),
            }) {
                Err(refused @ Refused::Stopped(_)) => break refused,
                _ => std::thread::yield_now(),
            }
        };
        assert!(refused.to_string().contains("stopped"));
    }

    #[test]
    fn a_process_that_has_ended_and_lost_its_file_is_still_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("victim");
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        let mut child = Command::new(&path)
            .args(["--exact", "symbols::service::tests::victim", "--nocapture"])
            .env("LEAKMON_TEST_VICTIM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, address)) = line.split_once("victim at ") {
                break address.parse::<u64>().unwrap();
            }
        };
        let mut images = ImageTable::new(16, Vec::new());
        let space = AddressSpace::read(child.id(), &mut images).unwrap();
        std::fs::remove_file(&path).unwrap();
        drop(child.stdin.take());
        for line in lines {
            line.unwrap();
        }
        assert!(child.wait().unwrap().success());

        let (service, mut answers) = SymbolService::start(1, Limits::default(), Analyst::in_this_process()).unwrap();
        let place = space.place(address, &mut images);
        service
            .submit(Request {
                token: (),
                stack: vec![RawFrame { place, exact: true }],
            })
            .unwrap();
        let frame = answers.blocking_recv().unwrap().frames.pop().unwrap();
        assert_eq!(
            frame.function.as_deref(),
            Some("leakmon::symbols::service::tests::victim")
        );
        assert!(frame.file.unwrap().ends_with("symbols/service.rs"));
        assert_eq!(frame.image.as_deref(), Some("victim"));
    }

    /// The child of the test above: says where its code is and waits until it is told to end. Alone it does nothing.
    #[test]
    fn victim() {
        if std::env::var_os("LEAKMON_TEST_VICTIM").is_some() {
            println!("\nvictim at {}", victim as *const () as usize);
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
        }
    }
}
