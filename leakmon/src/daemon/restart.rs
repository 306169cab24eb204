//! Going on where an earlier daemon was killed.
//!
//! In: pinned maps and links. Out: the same images, targets and counts as before, those of the gap included. Whatever is not what
//! it was (a file that is gone, a plan that has changed) loses its probes and keeps its counts.

use super::{Observer, images::Image};
use crate::{
    kernel::{event::Event, images::KnownImage},
    targets::{self, processes::ProcessImage},
};
use anyhow::{Context, ensure};
use leakmon_ebpf::abi::TargetId;
use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

impl Observer {
    /// Takes over what an earlier daemon left, if it left anything.
    pub async fn resume(&mut self) {
        if !self.kernel.has_resumed() {
            return;
        }
        self.unwinding.resume(&self.kernel);
        let running: Vec<TargetId> = self
            .kernel
            .targets()
            .iter()
            .map(|(_, entry)| TargetId(entry.target))
            .collect();
        let images = self.kernel.known_images();
        for image in &images {
            if let Err(error) = self.resume_image(image, &running) {
                let path = image.path.as_deref().unwrap_or(Path::new("an image"));
                tracing::warn!("{}: is not watched any more: {error:#}", path.display());
                self.kernel.drop_image(image.number.number);
            }
        }
        for (_, entry) in self.kernel.targets() {
            let target = TargetId(entry.target);
            if entry.whole == 0 {
                self.inspection.see_running(target);
            }
            self.take_event(&Event::Target {
                target,
                time_ns: entry.since_ns,
            });
        }
        self.unwinding.has_seen_all();
        self.prepare().await;
        tracing::info!(
            "goes on with {} images and {} processes of an earlier daemon's",
            images.len(),
            running.len()
        );
    }

    fn resume_image(&mut self, known: &KnownImage, running: &[TargetId]) -> anyhow::Result<()> {
        let (path, file) = find(known, running).context("its file is gone, and no process runs it")?;
        let plan = targets::analyse(&self.analyst, &file, &path)?;
        ensure!(plan.digest() == known.plan, "its probe sites are others by now");
        self.unwinding.expect(&file);
        let attached = self.kernel.attach(&plan, &file, known.number)?;
        let image = Image::new(plan, file, attached)?;
        self.images.put(known.number.number, image);
        Ok(())
    }
}

/// The file of an image: where it was, else what one of the targets runs.
fn find(known: &KnownImage, running: &[TargetId]) -> Option<(PathBuf, File)> {
    let is_it = |file: &File| {
        let metadata = file.metadata();
        metadata
            .is_ok_and(|metadata| metadata.is_file() && (metadata.dev(), metadata.ino()) == (known.device, known.inode))
    };
    let by_path = known.path.clone().and_then(|path| {
        // Nothing but a regular file is opened: whatever is there now may be another's.
        let regular = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        let file = File::open(&path).ok().filter(|_| regular)?;
        is_it(&file).then_some((path, file))
    });
    by_path.or_else(|| {
        running.iter().find_map(|target| {
            let image = ProcessImage::open(target.tgid()).ok()?;
            is_it(&image.file).then_some((image.path, image.file))
        })
    })
}
