//! What the guest draws is on the screen.

use std::time::Instant;

use vmm::machine::event::Event;
use vmm::screen::{Rect, Screen, Size};
use vmm::virtio::gpu::Gpu;

use crate::lab::{Lab, PATIENCE};

const WIDTH: u16 = 320;
const HEIGHT: u16 = 200;

/// Blue, green and red of the guest's picture.
fn pixel(x: u16, y: u16) -> [u8; 3] {
    [x as u8, y as u8, (x + y) as u8]
}

fn shows(screen: &Screen) -> bool {
    let look = screen.look();
    let size = look.size();
    if (size.width, size.height) != (WIDTH, HEIGHT) {
        return false;
    }
    let mut shown = Vec::new();
    look.copy(Rect::new(0, 0, WIDTH, HEIGHT), &mut shown);
    let places = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y)));
    places
        .zip(shown.chunks_exact(4))
        .all(|((x, y), shown)| shown[..3] == pixel(x, y))
}

#[test]
fn a_picture_is_seen() {
    let Some(mut lab) = Lab::new() else { return };
    let screen = Screen::new(Size::new(640, 480).unwrap());
    lab.add("gpu", Gpu::new(screen.clone()));
    let (mut viewer, listener) = (None, lab.listener());
    let said = lab.run_with("gpu hold", |events| {
        // Ends the machine when the picture is there.
        viewer = Some(std::thread::spawn(move || {
            let end = Instant::now() + PATIENCE;
            let mut seen = false;
            while !seen && Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(5));
                seen = shows(&screen);
            }
            // It stays when the guest has done everything else.
            listener.wait("CHECK gpu ok", 1);
            seen &= shows(&screen);
            events.put(Event::Quit);
            seen
        }));
    });
    assert!(
        viewer.unwrap().join().unwrap(),
        "no picture:\n{}",
        said.text
    );
}
