//! What commands do: images, which of them is shown, and the pointer. No rings and no threads.

mod state;
#[cfg(test)]
mod tests;

pub use state::GpuState;

use super::edid::edid;
use super::limits::CURSOR_SIDE_MAX;
use super::protocol::{Command, Done, GuestRect, Refusal};
use super::resource::Resources;
use crate::machine::memory::Memory;
use crate::screen::{Cursor, Rect, Screen, Size};

/// The part of an image that is shown.
struct Scanout {
    resource: u32,
    rect: GuestRect,
}

/// See the module.
pub(super) struct Adapter {
    screen: Screen,
    resources: Resources,
    scanout: Option<Scanout>,
}

impl Adapter {
    /// An adapter whose one output is `screen`. What that shows stays until the guest shows something.
    pub fn new(screen: Screen) -> Self {
        Self {
            screen,
            resources: Resources::default(),
            scanout: None,
        }
    }

    /// Does what a command wants.
    pub fn run(&mut self, memory: &Memory, command: Command) -> Result<Done, Refusal> {
        match command {
            Command::GetDisplayInfo => {
                let asked = self.screen.look().asked();
                return Ok(Done::Display {
                    width: asked.width.into(),
                    height: asked.height.into(),
                });
            }
            Command::GetEdid { scanout } => {
                only(scanout)?;
                return Ok(Done::Edid(edid(self.screen.look().asked())));
            }
            Command::Create {
                resource,
                format,
                width,
                height,
            } => self.resources.create(resource, format, width, height)?,
            Command::Unref { resource } => {
                self.resources.remove(resource)?;
                if self.scanout.take_if(|it| it.resource == resource).is_some() {
                    self.dark();
                }
            }
            Command::SetScanout {
                rect,
                scanout,
                resource,
            } => {
                only(scanout)?;
                self.set_scanout(rect, resource)?;
            }
            Command::Flush { rect, resource } => self.flush(rect, resource)?,
            Command::Transfer {
                rect,
                offset,
                resource,
            } => self.resources.transfer(memory, resource, rect, offset)?,
            Command::AttachBacking { resource, entries } => {
                self.resources.attach(memory, resource, &entries)?;
            }
            Command::DetachBacking { resource } => self.resources.detach(resource)?,
            Command::UpdateCursor {
                scanout,
                x,
                y,
                resource,
                hot_x,
                hot_y,
            } => {
                only(scanout)?;
                let cursor = self.cursor(resource, hot_x, hot_y)?;
                self.screen.change(|canvas| {
                    canvas.set_cursor(cursor);
                    canvas.set_pointer(near(x), near(y));
                });
            }
            Command::MoveCursor { scanout, x, y } => {
                only(scanout)?;
                self.screen
                    .change(|canvas| canvas.set_pointer(near(x), near(y)));
            }
        }
        Ok(Done::Nothing)
    }

    fn dark(&self) {
        self.screen.change(|canvas| {
            canvas.blank();
            canvas.set_cursor(Cursor::default());
        });
    }

    /// The guest is gone, or begins anew.
    pub fn reset(&mut self) {
        self.resources = Resources::default();
        self.scanout = None;
        self.dark();
    }

    fn set_scanout(&mut self, rect: GuestRect, resource: u32) -> Result<(), Refusal> {
        if resource == 0 {
            self.scanout = None;
            self.dark();
            return Ok(());
        }
        let image = self.resources.find(resource)?;
        let size = Size::shown(rect.width, rect.height);
        let size = size.filter(|_| rect.is_inside(image.width, image.height));
        let size = size.ok_or(Refusal::Parameter)?;
        self.scanout = Some(Scanout { resource, rect });
        self.screen.change(|canvas| canvas.resize(size));
        self.flush(rect, resource)
    }

    fn flush(&self, rect: GuestRect, resource: u32) -> Result<(), Refusal> {
        let image = self.resources.find(resource)?;
        if !rect.is_inside(image.width, image.height) {
            return Err(Refusal::Parameter);
        }
        let Some(scanout) = &self.scanout else {
            return Ok(());
        };
        let shown = scanout.rect;
        let (left, top) = (rect.x.max(shown.x), rect.y.max(shown.y));
        let right = (rect.x + rect.width).min(shown.x + shown.width);
        let bottom = (rect.y + rect.height).min(shown.y + shown.height);
        if scanout.resource != resource || left >= right || top >= bottom {
            return Ok(());
        }
        // A scanout is no larger than a screen, so all of these have 12 bits.
        let target = Rect::new(
            (left - shown.x) as u16,
            (top - shown.y) as u16,
            (right - left) as u16,
            (bottom - top) as u16,
        );
        self.screen
            .change(|canvas| canvas.draw(target, |row| image.row(left, top + u32::from(row))));
        Ok(())
    }

    fn cursor(&self, resource: u32, hot_x: u32, hot_y: u32) -> Result<Cursor, Refusal> {
        if resource == 0 {
            return Ok(Cursor::default());
        }
        let image = self.resources.find(resource)?;
        if image.width > CURSOR_SIDE_MAX || image.height > CURSOR_SIDE_MAX {
            return Err(Refusal::Parameter);
        }
        Ok(Cursor {
            width: image.width as u16,
            height: image.height as u16,
            hot_x: hot_x.min(image.width - 1) as u16,
            hot_y: hot_y.min(image.height - 1) as u16,
            pixels: image.pixels().to_vec(),
        })
    }
}

/// There is one output, number 0.
fn only(scanout: u32) -> Result<(), Refusal> {
    if scanout == 0 {
        Ok(())
    } else {
        Err(Refusal::ScanoutId)
    }
}

/// A place of the pointer; what lies farther out than any screen is at its edge.
fn near(place: u32) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}
