//! What a boot wrote to its disk, taken from one overlay and laid into others.
//!
//! Clones get it as writes of their own: their overlays are like any others, encrypted under their own keys, written back as ever, and nothing that is
//! shared has to stay. Invariant: a disk on which a template was laid whole and flushed reads as the template's did when its machine was saved.

use vmm_block::{BlockDevice, BlockError};

use super::head::{Content, EXTENTS_MAX, Extent};
use super::{TemplateError, TemplateFile, Writer};
use crate::volume::{Overlay, OverlayError, Source};

/// Bytes read and written at a time: one record of a log.
const COPY_BYTES: u64 = 1 << 20;

/// Why it cannot be taken or laid.
#[derive(Debug, thiserror::Error)]
pub enum WrittenError {
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The overlay that it is taken from.
    #[error("what its boot wrote")]
    Overlay(#[from] OverlayError),
    /// A disk.
    #[error("the disk that its boot wrote to, or that it is laid on")]
    Disk(#[from] BlockError),
    /// Too scattered.
    #[error("its boot wrote to more than {EXTENTS_MAX} places")]
    Scattered,
    /// Another disk.
    #[error("its disk has {found} bytes, the template's {expected}")]
    Size {
        /// Bytes of the disk.
        found: u64,
        /// Bytes of the template's.
        expected: u64,
    },
}

/// What was written to the first disk of an overlay, as long as it can be told together.
///
/// # Errors
/// [`WrittenError::Overlay`], [`WrittenError::Scattered`].
pub fn extents(overlay: &Overlay) -> Result<Vec<Extent>, WrittenError> {
    let size = overlay.identity().disks.first().copied().unwrap_or(0);
    let mut extents: Vec<Extent> = Vec::new();
    for part in overlay.parts(0, 0, size)? {
        let content = match part.source {
            Source::Base => continue,
            Source::Zero { hole } => Content::Zero { hole },
            Source::Log { .. } => Content::Data,
        };
        let len = part.end - part.start;
        let is_full = extents.len() == EXTENTS_MAX;
        match extents.last_mut() {
            Some(last) if last.content == content && last.start + last.len == part.start => {
                last.len += len;
            }
            _ if is_full => return Err(WrittenError::Scattered),
            _ => extents.push(Extent {
                start: part.start,
                len,
                content,
            }),
        }
    }
    Ok(extents)
}

/// Writes what extents hold, as `device` has it, into a template's body.
///
/// # Errors
/// [`WrittenError::Disk`], [`WrittenError::Template`].
pub fn save(
    extents: &[Extent],
    device: &dyn BlockDevice,
    writer: &mut Writer<'_>,
) -> Result<(), WrittenError> {
    let mut bytes = Vec::new();
    for (start, len) in pieces(extents) {
        bytes.resize(len as usize, 0);
        device.read(start, &mut bytes)?;
        writer.write(&bytes)?;
    }
    Ok(())
}

/// Lays what a template's boot wrote on another disk over the same version, and makes it durable: the guest that goes on was told that it is.
///
/// # Errors
/// [`WrittenError::Disk`], [`WrittenError::Template`], [`WrittenError::Size`]. What was laid until then is of no use.
pub fn lay(template: &TemplateFile, device: &dyn BlockDevice) -> Result<(), WrittenError> {
    let head = template.head();
    let (found, expected) = (device.geometry().size_bytes, head.disk_bytes);
    if found != expected {
        return Err(WrittenError::Size { found, expected });
    }
    for extent in &head.extents {
        if let Content::Zero { hole } = extent.content {
            device.write_zeroes(extent.start, extent.len, hole, false)?;
        }
    }
    let mut body = template.body(head.extents_at());
    let mut bytes = Vec::new();
    for (start, len) in pieces(&head.extents) {
        bytes.resize(len as usize, 0);
        body.read(&mut bytes)?;
        device.write(start, &bytes, false)?;
    }
    Ok(device.flush()?)
}

/// The ranges of extents that have bytes, in pieces.
fn pieces(extents: &[Extent]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let data = extents.iter().filter(|e| e.content == Content::Data);
    data.flat_map(|extent| {
        let end = extent.start + extent.len;
        let starts = (extent.start..end).step_by(COPY_BYTES as usize);
        starts.map(move |start| (start, COPY_BYTES.min(end - start)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::sync::Arc;

    use dedup::VersionId;
    use dedup_store::disk::{Disk, HostDisk};
    use proptest::prelude::*;

    use super::super::head::tests::identity;
    use super::super::{Head, TemplateSecret};
    use super::*;
    use crate::keys::system_random;
    use crate::volume::{MemBase, OverlayIdentity, OverlayKey, OverlayOptions, Volume};

    const BYTES: u64 = 4 << 20;
    const NAME: &str = "one.template";

    fn volume(disk: &Arc<dyn Disk>, dir: &str, desktop: u8, bytes: u64) -> Volume {
        let identity = OverlayIdentity {
            desktop: [desktop; 16],
            base: VersionId([7; 32]),
            disks: vec![bytes],
        };
        let overlay = Overlay::open_or_create(
            Arc::clone(disk),
            dir,
            &identity,
            [desktop; 16],
            &OverlayKey::new([desktop; 32], system_random),
            OverlayOptions::default(),
        );
        let base = MemBase::new((0..BYTES).map(|at| (at / 512) as u8).collect());
        Volume::new(Arc::new(base), Arc::new(overlay.unwrap()), 0).unwrap()
    }

    fn all(volume: &Volume) -> Vec<u8> {
        let mut bytes = vec![0; BYTES as usize];
        volume.read(0, &mut bytes).unwrap();
        bytes
    }

    fn secret() -> TemplateSecret {
        TemplateSecret::new(&[1; 32])
    }

    /// A template of what was written to a volume.
    fn keep(disk: &Arc<dyn Disk>, from: &Volume) -> TemplateFile {
        let extents = extents(from.overlay()).unwrap();
        let mut writer = Writer::create(&**disk, NAME, &secret(), [5; 16]).unwrap();
        save(&extents, from, &mut writer).unwrap();
        let head = Head {
            identity: identity(),
            made_unix_s: 1,
            agent: true,
            state_bytes: 0,
            blocks: Vec::new(),
            disk_bytes: BYTES,
            extents,
            order: Vec::new(),
        };
        writer.finish(&head).unwrap();
        let template = TemplateFile::open(&**disk, NAME, &secret()).unwrap();
        template.unwrap()
    }

    fn disk() -> (tempfile::TempDir, Arc<dyn Disk>) {
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(folder.path()).unwrap());
        (folder, disk)
    }

    #[test]
    fn what_lies_side_by_side_is_told_together() {
        let (_folder, disk) = disk();
        let first = volume(&disk, "first", 1, BYTES);
        assert!(extents(first.overlay()).unwrap().is_empty());
        first.write(4096, &[1; 4096], false).unwrap();
        first.write(8192, &[2; 512], false).unwrap();
        first.write_zeroes(1 << 20, 4096, false, false).unwrap();
        first.discard(3 << 20, 1 << 20).unwrap();
        let extent = |start, len, content| Extent {
            start,
            len,
            content,
        };
        assert_eq!(
            extents(first.overlay()).unwrap(),
            [
                extent(4096, 4096 + 512, Content::Data),
                extent(1 << 20, 4096, Content::Zero { hole: false }),
                extent(3 << 20, 1 << 20, Content::Zero { hole: true }),
            ]
        );
    }

    #[test]
    fn a_disk_of_another_size_is_refused() {
        let (_folder, disk) = disk();
        let first = volume(&disk, "first", 1, BYTES);
        let template = keep(&disk, &first);
        let larger = volume(&disk, "larger", 2, 2 * BYTES);
        let refused = lay(&template, &larger).unwrap_err();
        assert!(matches!(refused, WrittenError::Size { .. }), "{refused}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever was written, a clone's disk reads the same and goes its own way.
        #[test]
        fn clones_begin_where_the_template_was(writes in prop::collection::vec((0u8..3, 0u64..8192, 1u64..3000, any::<u8>()), 0..40)) {
            let (_folder, disk) = disk();
            let first = volume(&disk, "first", 1, BYTES);
            for (kind, sector, sectors, byte) in writes {
                let start = sector * 512;
                let len = (sectors * 512).min(BYTES - start);
                match kind {
                    0 => first.write(start, &vec![byte; len as usize], false).unwrap(),
                    1 => first.write_zeroes(start, len, false, false).unwrap(),
                    _ => first.discard(start, len).unwrap(),
                }
            }
            let template = keep(&disk, &first);
            let second = volume(&disk, "second", 2, BYTES);
            lay(&template, &second).unwrap();
            prop_assert!(all(&first) == all(&second));
            second.write(0, &[77; 512], false).unwrap();
            let third = volume(&disk, "third", 3, BYTES);
            lay(&template, &third).unwrap();
            prop_assert!(all(&first) == all(&third));
        }
    }
}
