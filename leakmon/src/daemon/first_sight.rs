//! Images that a followed process executes for the first time (`leakmon run`).
//!
//! In: processes that stand at their exec, stopped by a BPF program before their first instruction. Out: attached images, and
//! processes that go on. What such a process runs is analysed on a thread of its own, once for each file; where that takes
//! too long the process goes on without, and its target is `partial`. Nothing of this happens unless
//! [`Observer::hold_descendants`] was called.

use super::{
    Observer,
    hold::{self, HOLD_MAX},
};
use crate::{
    analysis::Analyst,
    targets::{self, AnalyseError, plan::ProbePlan, processes::ProcessImage},
};
use anyhow::Context;
use leakmon_ebpf::abi::{FOLLOW, HOLD, HOLD_EXEC, TargetId};
use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    sync::mpsc::{SyncSender, sync_channel},
};
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

/// Files whose analysis is remembered; what comes beyond is let go unwatched.
const FILES_MAX: usize = 4096;
/// Files that wait for their analysis.
const QUEUE_MAX: usize = 64;
/// Targets that are remembered as having been let go too early.
const LATE_MAX: usize = 4096;

/// Bystanders are forgotten in batches: each batch visits all live tasks.
const BYSTANDERS_MIN: usize = 64;

/// Which version of which file: device, inode, time of its last change.
type FileKey = (u64, u64, i64, i64);

/// What became of a file's analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// It is under way.
    Asked,
    /// Its sites are attached.
    Attached,
    /// There is nothing in it to attach to.
    Nothing,
}

/// A question to the thread, and its answer.
type Question = (FileKey, ProcessImage);
type Answer = (FileKey, ProcessImage, Result<ProbePlan, AnalyseError>);

/// What has been seen so far.
pub(super) struct FirstSight {
    questions: SyncSender<Question>,
    answers: Receiver<Answer>,
    files: HashMap<FileKey, Sight>,
    /// Processes that stand at their exec until their file is known.
    standing: Vec<(TargetId, FileKey, Instant)>,
    /// Targets that went on before their file was known.
    late: HashSet<TargetId>,
}

impl FirstSight {
    fn start(analyst: Analyst) -> anyhow::Result<Self> {
        let (questions, asked) = sync_channel::<Question>(QUEUE_MAX);
        let (reply, answers) = channel(QUEUE_MAX);
        let answer = move || {
            for (key, image) in asked {
                let plan = targets::analyse(&analyst, &image.file, &image.path);
                if reply.blocking_send((key, image, plan)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("first sight".to_owned())
            .spawn(answer)
            .context("the thread that looks at new images can't be started")?;
        Ok(Self {
            questions,
            answers,
            files: HashMap::new(),
            standing: Vec::new(),
            late: HashSet::new(),
        })
    }

    /// The next answer. Safe to drop half-way.
    pub(super) async fn answered(sight: &mut Option<Self>) -> Option<Answer> {
        match sight {
            Some(sight) => sight.answers.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Whether a target's first tasks may have gone unseen.
    pub(super) fn is_late(&self, target: TargetId) -> bool {
        self.late.contains(&target)
    }
}

impl Observer {
    /// Has every descendant of the watched command stop at its exec until what it runs is known.
    ///
    /// # Errors
    /// A thread can't be started.
    pub fn hold_descendants(&mut self) -> anyhow::Result<()> {
        self.first_sight = Some(FirstSight::start(self.analyst.clone())?);
        Ok(())
    }

    /// A process stands at its exec. It goes on at once where its file is known.
    pub(super) fn stands_at_exec(&mut self, target: TargetId) {
        let Some(sight) = &mut self.first_sight else {
            return hold::let_go(target.tgid());
        };
        let opened = ProcessImage::open(target.tgid());
        let key = opened.as_ref().ok().and_then(|image| key_of(image).ok());
        let (Ok(image), Some(key)) = (opened, key) else {
            return hold::let_go(target.tgid());
        };
        if self.images.of_file(image.device, image.inode).is_some() {
            return self.let_enter(target);
        }
        match sight.files.get(&key) {
            Some(Sight::Asked) => sight.standing.push((target, key, Instant::now())),
            Some(Sight::Attached) => self.let_enter(target),
            Some(Sight::Nothing) => hold::let_go(target.tgid()),
            None if sight.files.len() >= FILES_MAX => self.go_on_unseen(target),
            None => match sight.questions.try_send((key, image)) {
                Ok(()) => {
                    sight.files.insert(key, Sight::Asked);
                    sight.standing.push((target, key, Instant::now()));
                }
                Err(_) => self.go_on_unseen(target),
            },
        }
    }

    /// Attaches what was found in a file, and lets go who stands for it.
    pub(super) fn take_answer(&mut self, answer: Option<Answer>) {
        let Some((key, image, plan)) = answer else {
            tracing::error!("the thread that looks at new images has ended: descendants are not held any more");
            self.let_all_go();
            self.first_sight = None;
            return;
        };
        let attached = match plan {
            Ok(plan) => match self.add_image(plan, image.file, false) {
                Ok(_) => true,
                Err(error) => {
                    tracing::warn!("{error:#}");
                    false
                }
            },
            Err(error) => {
                tracing::debug!("{error}");
                false
            }
        };
        let Some(sight) = &mut self.first_sight else {
            return;
        };
        sight
            .files
            .insert(key, if attached { Sight::Attached } else { Sight::Nothing });
        let here = |standing: &(TargetId, FileKey, Instant)| standing.1 == key;
        let (freed, others): (Vec<_>, Vec<_>) = std::mem::take(&mut sight.standing).into_iter().partition(here);
        sight.standing = others;
        for (target, _, _) in freed {
            if attached {
                self.let_enter(target);
            } else {
                hold::let_go(target.tgid());
            }
        }
    }

    /// Lets those go who have stood too long.
    pub(super) fn let_go_of_first_sights(&mut self) {
        let Some(sight) = &mut self.first_sight else {
            return;
        };
        let is_overdue = |standing: &(TargetId, FileKey, Instant)| standing.2.elapsed() >= HOLD_MAX;
        let (overdue, others): (Vec<_>, Vec<_>) = std::mem::take(&mut sight.standing).into_iter().partition(is_overdue);
        sight.standing = others;
        for (target, _, _) in overdue {
            self.go_on_unseen(target);
        }
    }

    /// Lets all go who stand; nobody will answer any more.
    pub(super) fn let_all_go(&mut self) {
        let standing = self.first_sight.iter_mut().flat_map(|sight| sight.standing.drain(..));
        for (target, _, _) in standing {
            hold::let_go(target.tgid());
        }
    }

    /// Drops descendants that have ended and ran nothing that is watched: a build starts thousands of them.
    pub(super) fn forget_bystanders(&mut self) {
        if self.first_sight.is_none() {
            return;
        }
        let is_watched = |target: TargetId| {
            let file = self.processes.of(target).and_then(|process| process.file);
            file.is_some_and(|(device, inode)| self.images.of_file(device, inode).is_some())
        };
        let tasks = self.live.stacks().filter(|(_, count)| !count.cookie.is_thread());
        let counted: HashSet<TargetId> = tasks.map(|(key, _)| key.target).collect();
        let gone: Vec<TargetId> = self
            .live
            .targets()
            .filter(|(target, state)| state.exited_ns.is_some() && !counted.contains(target) && !is_watched(*target))
            .map(|(target, _)| target)
            .collect();
        if gone.len() >= BYSTANDERS_MIN {
            self.forget_targets(gone);
        }
    }

    /// Lets a process of a known image go to its entry point, where it waits for its tables.
    fn let_enter(&mut self, target: TargetId) {
        let tgid = target.tgid();
        if let Err(error) = self.kernel.watch(tgid, FOLLOW | HOLD_EXEC | HOLD) {
            tracing::warn!("process {tgid} is not held at its entry point: {error}");
        }
        hold::let_go(tgid);
    }

    fn go_on_unseen(&mut self, target: TargetId) {
        if let Some(sight) = &mut self.first_sight
            && sight.late.len() < LATE_MAX
        {
            sight.late.insert(target);
        }
        hold::let_go(target.tgid());
    }
}

fn key_of(image: &ProcessImage) -> std::io::Result<FileKey> {
    let metadata = image.file.metadata()?;
    Ok((image.device, image.inode, metadata.mtime(), metadata.mtime_nsec()))
}
