//! Commands without rings.

use proptest::prelude::*;
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
fn a_display_that_goes_on_shows_what_it_showed() {
    let mut bench = Bench::new();
    bench.ok(Command::Transfer {
        rect: rect(0, 0, 100, 80),
        offset: 0,
        resource: 1,
    });
    bench.scanout(rect(10, 5, 80, 70), 1).expect("shown");
    // A pointer whose memory has changed since, and an image with none behind it.
    for resource in [2, 3] {
        bench.ok(Command::Create {
            resource,
            format: Format::Rgba,
            width: 8,
            height: 8,
        });
    }
    bench.ok(Command::AttachBacking {
        resource: 2,
        entries: vec![(1 << 21, 100), (1 << 22, 200)],
    });
    let square = rect(0, 0, 8, 8);
    bench
        .memory
        .write_slice(&[7; 256], GuestAddress(1 << 22))
        .expect("memory");
    bench.ok(Command::Transfer {
        rect: square,
        offset: 0,
        resource: 2,
    });
    bench.ok(Command::UpdateCursor {
        scanout: 0,
        x: 30,
        y: 40,
        resource: 2,
        hot_x: 3,
        hot_y: 4,
    });
    bench
        .memory
        .write_slice(&[9; 100], GuestAddress(1 << 21))
        .expect("memory");
    let asked = Size::new(800, 600).expect("a size");
    bench.screen.ask(asked);

    let saved = bench.adapter.save(&bench.memory, 1);
    let bytes = postcard::to_stdvec(&saved).expect("bytes");
    assert!(
        bytes.len() < 4096,
        "pixels that the guest's memory has are not kept: {} bytes",
        bytes.len()
    );
    let parsed: GpuState = postcard::from_bytes(&bytes).expect("the same");
    assert_eq!(parsed, saved);
    let screen = Screen::new(Size::new(640, 480).expect("a size"));
    let mut adapter = Adapter::new(screen.clone());
    adapter.restore(&bench.memory, parsed).expect("taken up");
    assert_eq!(adapter.save(&bench.memory, 1), saved);
    let all = |screen: &Screen| {
        let (canvas, mut pixels) = (screen.look(), Vec::new());
        canvas.copy(canvas.size().rect(), &mut pixels);
        (canvas.size(), canvas.asked(), canvas.pointer(), pixels)
    };
    assert_eq!(all(&screen), all(&bench.screen));
    assert_eq!(screen.look().cursor(), bench.screen.look().cursor());
    let mut other = Adapter::new(Screen::default());
    let mut wrong = saved;
    wrong.break_backing();
    assert!(other.restore(&bench.memory, wrong).is_err());
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

/// Numbers about which a guest may be wrong.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..4, 0u32..200, Just(4096), Just(8192), any::<u32>()]
}

fn any_rect() -> impl Strategy<Value = GuestRect> {
    (number(), number(), number(), number())
        .prop_map(|(x, y, width, height)| rect(x, y, width, height))
}

fn any_command() -> impl Strategy<Value = Command> {
    let resource = || 0u32..4;
    let scanout = || prop_oneof![9 => Just(0u32), 1 => any::<u32>()];
    let format = (0..Format::ALL.len()).prop_map(|index| Format::ALL[index]);
    let pieces = prop::collection::vec((number().prop_map(u64::from), number()), 0..4);
    prop_oneof![
        (resource(), format, number(), number()).prop_map(|(resource, format, width, height)| {
            Command::Create {
                resource,
                format,
                width,
                height,
            }
        }),
        resource().prop_map(|resource| Command::Unref { resource }),
        (any_rect(), scanout(), resource()).prop_map(|(rect, scanout, resource)| {
            Command::SetScanout {
                rect,
                scanout,
                resource,
            }
        }),
        (any_rect(), resource()).prop_map(|(rect, resource)| Command::Flush { rect, resource }),
        (any_rect(), number(), resource()).prop_map(|(rect, offset, resource)| {
            Command::Transfer {
                rect,
                offset: offset.into(),
                resource,
            }
        }),
        (resource(), pieces)
            .prop_map(|(resource, entries)| Command::AttachBacking { resource, entries }),
        resource().prop_map(|resource| Command::DetachBacking { resource }),
        (scanout(), number(), resource(), number()).prop_map(|(scanout, x, resource, hot_x)| {
            Command::UpdateCursor {
                scanout,
                x,
                y: x,
                resource,
                hot_x,
                hot_y: hot_x,
            }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No commands in any order are more than refused; a pointer's image is as large as it says, and a screen too.
    #[test]
    fn any_commands_leave_an_adapter_that_works(
        commands in prop::collection::vec(any_command(), 1..60),
    ) {
        let mut bench = Bench::new();
        for command in commands {
            let _ = bench.run(command);
            let canvas = bench.screen.look();
            let cursor = canvas.cursor();
            let pixels = usize::from(cursor.width) * usize::from(cursor.height);
            prop_assert_eq!(cursor.pixels.len(), pixels * PIXEL_BYTES);
        }
        let mut pixels = Vec::new();
        let size = bench.screen.look().size();
        bench.screen.look().copy(size.rect(), &mut pixels);
        prop_assert_eq!(pixels.len(), size.pixels() * PIXEL_BYTES);
        bench.adapter.reset();
        bench.ok(Command::Create { resource: 1, format: Format::Bgra, width: 64, height: 64 });
        bench.ok(Command::SetScanout { rect: rect(0, 0, 64, 64), scanout: 0, resource: 1 });
    }
}
