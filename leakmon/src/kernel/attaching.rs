//! The thread that attaches.
//!
//! In: orders, each an open image with its probes. Out: what came of each, in the same sequence, with the links. The kernel may keep it
//! waiting for half a minute while anybody on the host takes many probes away; nobody else waits with it. It knows no plan
//! and pins nothing: until an outcome is taken its probes go when the process does.

use super::KernelError;
use crate::targets::plan::ProbeSite;
use leakmon_ebpf::abi::{Condition, Cookie};
use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};
use tokio::sync::mpsc::{Receiver, channel};

/// Orders of which nobody has taken the outcome yet. Who comes beyond is refused, and can come again.
pub(super) const ORDERS_MAX: usize = 64;

/// Where a program is attached, and the cookie that it finds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) program: &'static str,
    pub(super) file_offset: u64,
    pub(super) cookie: Cookie,
}

/// A probe site of an order.
#[derive(Debug)]
pub(super) struct Probe {
    /// Index of the site in the plan.
    pub(super) index: usize,
    pub(super) site: ProbeSite,
    pub(super) program: &'static str,
    /// `None` where the plan has too many sites.
    pub(super) cookie: Option<Cookie>,
}

/// What is to be attached to one image.
#[derive(Debug)]
pub(super) struct Order {
    /// The image's number.
    pub(super) number: u32,
    pub(super) file: File,
    /// The entry point. It comes first, and without it there is nothing.
    pub(super) entry: Option<Hook>,
    /// In the sequence in which they are attached.
    pub(super) probes: Vec<Probe>,
}

/// What came of an order.
#[derive(Debug)]
pub struct Outcome<L> {
    pub(super) number: u32,
    pub(super) entry: Option<Result<L, String>>,
    /// By index in the plan.
    pub(super) sites: Vec<(usize, Result<L, String>)>,
}

impl<L> Outcome<L> {
    /// The image's number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

/// The thread, and what it has been given. Where this is dropped it ends with the probe at hand.
pub(super) struct Attacher<L> {
    orders: Option<SyncSender<Order>>,
    outcomes: Receiver<Outcome<L>>,
    /// Orders of which nobody has taken the outcome.
    due: usize,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<L: Send + 'static> Attacher<L> {
    /// Starts it. `attach` is what the kernel does: it attaches to the file at a path.
    pub(super) fn start(
        mut attach: impl FnMut(&Path, Hook) -> Result<L, String> + Send + 'static,
    ) -> Result<Self, KernelError> {
        let (orders, queue): (_, mpsc::Receiver<Order>) = sync_channel(ORDERS_MAX);
        let (sender, outcomes) = channel(ORDERS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("attach".to_owned())
            .spawn(move || {
                for order in queue {
                    let outcome = carry_out(order, &stopped, &mut attach);
                    if sender.blocking_send(outcome).is_err() {
                        return;
                    }
                }
            })
            .map_err(KernelError::NoAttacher)?;
        Ok(Self {
            orders: Some(orders),
            outcomes,
            due: 0,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether there is room for another order.
    pub(super) const fn has_room(&self) -> bool {
        self.due < ORDERS_MAX
    }

    /// Gives it an order.
    ///
    /// # Errors
    /// Where too many wait, or the thread has ended.
    pub(super) fn order(&mut self, order: Order) -> Result<(), KernelError> {
        let given = self.has_room()
            && self
                .orders
                .as_ref()
                .is_some_and(|orders| orders.try_send(order).is_ok());
        if !given {
            return Err(KernelError::NotAttaching(ORDERS_MAX));
        }
        self.due += 1;
        Ok(())
    }

    /// What came of the next order; `None` where the thread has ended, which takes what it had with it. Waits for ever where none is due. Safe to drop
    /// half-way.
    pub(super) async fn outcome(&mut self) -> Option<Outcome<L>> {
        if self.due == 0 {
            return std::future::pending().await;
        }
        let outcome = self.outcomes.recv().await;
        self.due = if outcome.is_some() { self.due - 1 } else { 0 };
        outcome
    }

    /// Ends the thread, which takes as long as the probe at hand, and no process can end before: what has been attached of all orders.
    pub(super) fn stop(&mut self) -> Vec<Outcome<L>> {
        self.stop.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that attaches has panicked");
        }
        std::iter::from_fn(|| self.outcomes.try_recv().ok()).collect()
    }
}

impl<L> Drop for Attacher<L> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Attaches what an order has, until it is told to stop.
fn carry_out<L>(
    order: Order,
    stop: &AtomicBool,
    attach: &mut impl FnMut(&Path, Hook) -> Result<L, String>,
) -> Outcome<L> {
    let Order {
        number,
        file,
        entry,
        probes,
    } = order;
    // Through the descriptor a probe reaches exactly the file that was analysed, whatever its path names now.
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let is_stopped = || stop.load(Ordering::Relaxed);
    let entry = entry.filter(|_| !is_stopped()).map(|hook| attach(&path, hook));
    let mut sites = Vec::new();
    if !matches!(entry, Some(Err(_))) {
        for probe in probes {
            if is_stopped() {
                break;
            }
            let link = verify(&probe.site, &file).and_then(|()| {
                let hook = Hook {
                    program: probe.program,
                    file_offset: probe.site.file_offset,
                    cookie: probe.cookie.ok_or("the plan has too many sites")?,
                };
                attach(&path, hook)
            });
            sites.push((probe.index, link));
        }
    }
    Outcome { number, entry, sites }
}

/// Checks that the file still has the planned instruction at the site's offset.
fn verify(site: &ProbeSite, file: &File) -> Result<(), String> {
    if site.bytes.is_empty() {
        return Err(format!("the plan has no instruction at offset {:#x}", site.file_offset));
    }
    if site.condition != Condition::Always && !site.cheap {
        return Err(format!(
            "the site at offset {:#x} has a condition but is no branch",
            site.file_offset
        ));
    }
    let mut found = vec![0; site.bytes.len()];
    let read = |error: io::Error| format!("the image can't be read at offset {:#x}: {error}", site.file_offset);
    file.read_exact_at(&mut found, site.file_offset).map_err(read)?;
    if found == site.bytes {
        Ok(())
    } else {
        Err(format!("the image has changed at offset {:#x}", site.file_offset))
    }
}

#[cfg(test)]
mod tests;
