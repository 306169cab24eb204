//! Images whose probes are being attached.
//!
//! In: plans with open files, and what they are for. Out: watched images, once the thread that attaches ([`crate::kernel::attaching`]) has
//! done so, and whoever waits for them is told. An image has its number from the beginning: its first tasks are counted before
//! its last probe is there. Nobody but who asked for an image waits for it.

use super::{
    Observer,
    images::{Image, Purpose},
};
use crate::{
    kernel::{
        KernelError,
        attach::{Attached, ImageNumber, ImageOutcome},
        clock::monotonic_ns,
        detach,
    },
    targets::plan::ProbePlan,
};
use anyhow::{Context, bail};
use std::fs::File;
use tokio::sync::oneshot::{self, error::TryRecvError};

impl Observer {
    /// Attaches an image, and returns when its probes are there. `every_process` makes all its processes targets, not only the watched
    /// ones.
    ///
    /// # Errors
    /// Where there is no room, or none of its sites can be attached.
    pub async fn add_image(&mut self, plan: ProbePlan, file: File, every_process: bool) -> anyhow::Result<()> {
        let (sender, told) = oneshot::channel();
        self.order_image(plan, file, every_process, Purpose::Asked(sender))?;
        self.settle(told).await
    }

    /// Has an image attached, and returns its number at once.
    ///
    /// # Errors
    /// Where there is no room.
    pub(super) fn order_image(
        &mut self,
        plan: ProbePlan,
        file: File,
        every_process: bool,
        purpose: Purpose,
    ) -> anyhow::Result<u32> {
        let path = plan.path.display().to_string();
        let number = self
            .images
            .next_number()
            .with_context(|| format!("{path}: too many images are watched"))?;
        self.unwinding.expect(&file);
        let image = Image::new(plan, file, purpose).with_context(|| format!("{path}: can't be read"))?;
        let attached = self
            .kernel
            .attach(&image.plan, image.open_file(), ImageNumber { number, every_process });
        if let Err(error) = attached {
            self.kernel.drop_image(number);
            return Err(error.into());
        }
        self.images.add(number, image);
        Ok(number)
    }

    /// Waits until an image that was asked for is attached. What is published already goes on being so meanwhile.
    pub(super) async fn settle(&mut self, mut told: oneshot::Receiver<anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut clocks = self.clocks();
        loop {
            match told.try_recv() {
                Ok(outcome) => return outcome,
                Err(TryRecvError::Closed) => bail!("its file was changed while its probes were attached"),
                Err(TryRecvError::Empty) if self.publisher.is_some() => self.turn(&mut clocks).await,
                Err(TryRecvError::Empty) => {
                    let outcome = self.kernel.outcome().await;
                    self.take_attached(outcome);
                }
            }
        }
    }

    /// Takes what has been attached.
    pub(super) fn take_attached(&mut self, outcome: Option<ImageOutcome>) {
        let Some(outcome) = outcome else {
            tracing::error!("the thread that attaches has ended: no more images are watched");
            for number in self.images.attaching() {
                self.conclude(number, Err("the thread that attaches has ended".to_owned()));
            }
            return;
        };
        let number = outcome.number();
        let attached = self.kernel.keep(outcome);
        self.conclude(number, attached);
    }

    fn conclude(&mut self, number: u32, attached: Result<Attached, String>) {
        match self.images.end_attaching(number) {
            Some(Purpose::Births) => self.births_are_back(number, attached),
            Some(Purpose::Asked(sender)) => {
                // Who asked may have gone.
                let _told = sender.send(self.admit(number, attached));
            }
            Some(Purpose::Found(tgids)) => {
                let outcome = self.admit(number, attached);
                self.take_in(number, tgids, outcome);
            }
            Some(Purpose::Standing(key)) => {
                let outcome = self.admit(number, attached);
                self.let_in(key, &outcome);
            }
            // It was retired meanwhile.
            None => self.detach(number),
        }
    }

    /// From now on an image is watched, as far as its sites could be attached.
    fn admit(&mut self, number: u32, attached: Result<Attached, String>) -> anyhow::Result<()> {
        let path = self
            .images
            .get(number)
            .map(|image| image.plan.path.display().to_string());
        let path = path.unwrap_or_default();
        let attached = attached.and_then(|attached| match attached.refused.first() {
            _ if !attached.sites.is_empty() => Ok(attached),
            Some((_, reason)) => Err(reason.clone()),
            None => Err("it has no probe sites".to_owned()),
        });
        match attached {
            Ok(attached) => {
                for (index, reason) in &attached.refused {
                    tracing::warn!("{path}: site {index} is not attached: {reason}");
                }
                self.set_attached(number, attached);
                Ok(())
            }
            Err(reason) => {
                self.images.remove(number);
                self.detach(number);
                Err(KernelError::NoSite { path, reason }.into())
            }
        }
    }

    /// Notes what is attached of an image, from now on; what was proven wrong meanwhile goes.
    pub(super) fn set_attached(&mut self, number: u32, attached: Attached) {
        for index in self.images.set_sites(number, attached) {
            if let Some(links) = self.kernel.take_site(number, index) {
                let _in_its_time = detach::on_thread(links);
            }
        }
        self.images.set_attached(number, monotonic_ns());
    }

    /// Takes the probes of an image away, on another thread, since that takes a tenth of a second each.
    pub(super) fn detach(&mut self, number: u32) {
        if let Some(links) = self.kernel.take_links(number) {
            let _in_its_time = detach::on_thread(links);
        }
    }

    /// Attaches nothing any more. Half of an image's probes count wrong: whoever comes next begins with it anew.
    pub(super) fn stop_attaching(&mut self) {
        for number in self.kernel.stop_attaching() {
            if !matches!(self.images.end_attaching(number), Some(Purpose::Births)) {
                self.kernel.drop_image(number);
            }
        }
    }
}
