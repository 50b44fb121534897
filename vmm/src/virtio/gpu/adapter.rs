//! What commands do: images, which of them is shown, and the pointer. No rings and no threads.

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

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::format::Format;
    use super::*;
    use crate::machine::memory;
    use crate::screen::PIXEL_BYTES;

    fn rect(x: u32, y: u32, width: u32, height: u32) -> GuestRect {
        GuestRect {
            x,
            y,
            width,
            height,
        }
    }

    struct Bench {
        memory: Memory,
        adapter: Adapter,
        screen: Screen,
    }

    impl Bench {
        /// An image 1 of 100 by 80, filled with bytes by their place, behind it memory at 1 MiB.
        fn new() -> Self {
            let screen = Screen::new(Size::new(640, 480).expect("a size"));
            let mut bench = Self {
                memory: memory::create(64).expect("memory"),
                adapter: Adapter::new(screen.clone()),
                screen,
            };
            let bytes: Vec<u8> = (0..100 * 80 * 4u32).map(|at| (at % 253) as u8).collect();
            bench
                .memory
                .write_slice(&bytes, GuestAddress(1 << 20))
                .expect("memory");
            bench.ok(Command::Create {
                resource: 1,
                format: Format::Bgra,
                width: 100,
                height: 80,
            });
            bench.ok(Command::AttachBacking {
                resource: 1,
                entries: vec![(1 << 20, bytes.len() as u32)],
            });
            bench
        }

        fn run(&mut self, command: Command) -> Result<Done, Refusal> {
            self.adapter.run(&self.memory, command)
        }

        fn ok(&mut self, command: Command) {
            assert_eq!(self.run(command), Ok(Done::Nothing));
        }

        fn scanout(&mut self, rect: GuestRect, resource: u32) -> Result<Done, Refusal> {
            self.run(Command::SetScanout {
                rect,
                scanout: 0,
                resource,
            })
        }

        fn pixel(&self, x: u16, y: u16) -> Vec<u8> {
            let mut pixel = Vec::new();
            let at = Rect::new(x, y, 1, 1);
            self.screen.look().copy(at, &mut pixel);
            pixel
        }
    }

    fn byte(x: u32, y: u32) -> Vec<u8> {
        let at = (y * 100 + x) * 4;
        (at..at + 4).map(|at| (at % 253) as u8).collect()
    }

    #[test]
    fn what_is_transferred_and_flushed_is_shown() {
        let mut bench = Bench::new();
        assert_eq!(
            bench.scanout(rect(10, 5, 70, 70), 1),
            Ok(Done::Nothing),
            "a part of it"
        );
        assert_eq!(bench.screen.look().size().to_string(), "70x70");
        bench.ok(Command::Transfer {
            rect: rect(0, 0, 100, 80),
            offset: 0,
            resource: 1,
        });
        assert_eq!(bench.pixel(3, 4), [0; PIXEL_BYTES], "not flushed");
        bench.ok(Command::Flush {
            rect: rect(12, 0, 50, 80),
            resource: 1,
        });
        assert_eq!(bench.pixel(1, 0), [0; PIXEL_BYTES], "left of what was");
        assert_eq!(bench.pixel(2, 0), byte(12, 5));
        assert_eq!(bench.pixel(51, 69), byte(61, 74));
        assert_eq!(bench.pixel(52, 69), [0; PIXEL_BYTES]);
        bench.ok(Command::Unref { resource: 1 });
        assert_eq!(bench.pixel(2, 0), [0; PIXEL_BYTES], "nothing to show");
    }

    #[test]
    fn wrong_commands_get_their_errors_and_change_nothing() {
        let mut bench = Bench::new();
        let scanout = |rect, resource| (rect, resource);
        for ((rect, resource), refusal) in [
            (scanout(rect(0, 0, 100, 80), 2), Refusal::ResourceId),
            (scanout(rect(0, 0, 101, 80), 1), Refusal::Parameter),
            (scanout(rect(50, 50, u32::MAX, 1), 1), Refusal::Parameter),
            (scanout(rect(0, 0, 0, 80), 1), Refusal::Parameter),
        ] {
            assert_eq!(bench.scanout(rect, resource), Err(refusal));
        }
        let other = Command::SetScanout {
            rect: rect(0, 0, 9, 9),
            scanout: 1,
            resource: 1,
        };
        assert_eq!(bench.run(other), Err(Refusal::ScanoutId));
        let edid = Command::GetEdid { scanout: 3 };
        assert_eq!(bench.run(edid), Err(Refusal::ScanoutId));
        let flush = |rect, resource| Command::Flush { rect, resource };
        assert_eq!(
            bench.run(flush(rect(0, 0, 1, 1), 9)),
            Err(Refusal::ResourceId)
        );
        assert_eq!(
            bench.run(flush(rect(100, 80, 1, 0), 1)),
            Err(Refusal::Parameter)
        );
        bench.ok(flush(rect(0, 0, 100, 80), 1));
        assert_eq!(bench.screen.look().size().to_string(), "640x480");
    }

    #[test]
    fn the_guest_is_told_the_size_that_viewers_ask_for() {
        let mut bench = Bench::new();
        bench.screen.ask(Size::new(800, 600).expect("a size"));
        let told = bench.run(Command::GetDisplayInfo);
        assert_eq!(
            told,
            Ok(Done::Display {
                width: 800,
                height: 600
            })
        );
        let Ok(Done::Edid(told)) = bench.run(Command::GetEdid { scanout: 0 }) else {
            panic!("an EDID");
        };
        assert_eq!(told, edid(Size::new(800, 600).expect("a size")));
    }

    #[test]
    fn the_pointer_is_an_image_with_a_point_in_it() {
        let mut bench = Bench::new();
        bench.ok(Command::Transfer {
            rect: rect(0, 0, 100, 80),
            offset: 0,
            resource: 1,
        });
        let update = |resource, hot_x| Command::UpdateCursor {
            scanout: 0,
            x: 7,
            y: u32::MAX,
            resource,
            hot_x,
            hot_y: 3,
        };
        bench.ok(update(1, 5000));
        let cursor = bench.screen.look().cursor().clone();
        assert_eq!((cursor.width, cursor.height), (100, 80));
        assert_eq!((cursor.hot_x, cursor.hot_y), (99, 3));
        assert_eq!(cursor.pixels[..4], byte(0, 0));
        assert_eq!(bench.screen.look().pointer(), (7, u16::MAX));
        assert_eq!(bench.run(update(2, 0)), Err(Refusal::ResourceId));
        bench.ok(Command::Create {
            resource: 2,
            format: Format::Bgra,
            width: 257,
            height: 1,
        });
        assert_eq!(bench.run(update(2, 0)), Err(Refusal::Parameter));
        bench.ok(update(0, 0));
        assert_eq!(bench.screen.look().cursor().width, 0);
    }
}
