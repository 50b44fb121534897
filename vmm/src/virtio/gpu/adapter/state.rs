//! What a snapshot keeps of a display: images, which of them is shown, and the pointer.
//!
//! An image's pixels are those that were last copied from the guest's memory, and as a rule that memory still has them: then they are not
//! kept twice. Taking a state up goes through the same doors as the guest's commands, with the same limits.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::super::format::Format;
use super::super::limits::CURSOR_SIDE_MAX;
use super::super::protocol::{GuestRect, Refusal};
use super::super::resource::Resource;
use super::Adapter;
use crate::machine::memory::Memory;
use crate::screen::{Cursor, PIXEL_BYTES, Size};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ImageState {
    id: u32,
    format: u32,
    width: u32,
    height: u32,
    /// Pieces of guest memory behind it: address and bytes.
    backing: Option<Vec<(u64, u32)>>,
    /// Its pixels, if they are not those of the memory behind it.
    pixels: Option<ByteBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CursorState {
    width: u16,
    height: u16,
    hot_x: u16,
    hot_y: u16,
    pixels: ByteBuf,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuState {
    /// What has happened that the guest has not cleared.
    pub(in super::super) events: u32,
    /// The size that the guest was last asked for.
    asked: (u16, u16),
    images: Vec<ImageState>,
    /// The image that is shown, and which part of it: x, y, width, height.
    scanout: Option<(u32, [u32; 4])>,
    cursor: CursorState,
    pointer: (u16, u16),
}

#[cfg(test)]
impl GpuState {
    /// Puts memory behind an image that no machine has.
    pub fn break_backing(&mut self) {
        let backing = self
            .images
            .iter_mut()
            .find_map(|image| image.backing.as_mut());
        backing.expect("an image has some").push((u64::MAX, 1));
    }
}

fn whole(resource: &Resource) -> GuestRect {
    GuestRect {
        x: 0,
        y: 0,
        width: resource.width,
        height: resource.height,
    }
}

impl Adapter {
    /// The state of an adapter that is not at work.
    pub fn save(&self, memory: &Memory, events: u32) -> GpuState {
        let mut images: Vec<_> = self.resources.all().collect();
        images.sort_unstable_by_key(|(id, _)| *id);
        let images = images.into_iter().map(|(id, resource)| {
            let is_behind = resource.copied(memory);
            let is_behind = is_behind.is_ok_and(|pixels| pixels == resource.pixels());
            let pixels = (!is_behind).then(|| ByteBuf::from(resource.pixels()));
            ImageState {
                id,
                format: resource.format() as u32,
                width: resource.width,
                height: resource.height,
                backing: resource.pieces(),
                pixels,
            }
        });
        let canvas = self.screen.look();
        let cursor = canvas.cursor();
        GpuState {
            events,
            asked: (canvas.asked().width, canvas.asked().height),
            images: images.collect(),
            scanout: self.scanout.as_ref().map(|shown| {
                let GuestRect {
                    x,
                    y,
                    width,
                    height,
                } = shown.rect;
                (shown.resource, [x, y, width, height])
            }),
            cursor: CursorState {
                width: cursor.width,
                height: cursor.height,
                hot_x: cursor.hot_x,
                hot_y: cursor.hot_y,
                pixels: ByteBuf::from(cursor.pixels.clone()),
            },
            pointer: canvas.pointer(),
        }
    }

    /// Takes up a state, on a fresh adapter, and shows it.
    pub fn restore(&mut self, memory: &Memory, state: GpuState) -> Result<(), Refusal> {
        for image in state.images {
            let format = Format::from_wire(image.format).ok_or(Refusal::Parameter)?;
            let (id, resources) = (image.id, &mut self.resources);
            resources.create(id, format, image.width, image.height)?;
            if let Some(pieces) = &image.backing {
                resources.attach(memory, id, pieces)?;
            }
            match image.pixels {
                Some(pixels) => resources.set_pixels(id, pixels.into_vec())?,
                None => {
                    let rect = whole(resources.find(id)?);
                    resources.transfer(memory, id, rect, 0)?;
                }
            }
        }
        let (width, height) = state.asked;
        if let Ok(size) = Size::new(width.into(), height.into()) {
            self.screen.ask(size);
        }
        if let Some((resource, [x, y, width, height])) = state.scanout {
            let rect = GuestRect {
                x,
                y,
                width,
                height,
            };
            if resource == 0 {
                return Err(Refusal::ResourceId);
            }
            self.set_scanout(rect, resource)?;
        }
        let cursor = state.cursor;
        let bytes = usize::from(cursor.width) * usize::from(cursor.height) * PIXEL_BYTES;
        let side = u32::from(cursor.width.max(cursor.height));
        if cursor.pixels.len() != bytes || side > CURSOR_SIDE_MAX {
            return Err(Refusal::Parameter);
        }
        let cursor = Cursor {
            width: cursor.width,
            height: cursor.height,
            hot_x: cursor.hot_x.min(cursor.width.saturating_sub(1)),
            hot_y: cursor.hot_y.min(cursor.height.saturating_sub(1)),
            pixels: cursor.pixels.into_vec(),
        };
        self.screen.change(|canvas| {
            canvas.set_cursor(cursor);
            canvas.set_pointer(state.pointer.0, state.pointer.1);
        });
        Ok(())
    }
}
