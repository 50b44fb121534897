//! What the guest draws is on the screen.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use vmm::machine::event::Event;
use vmm::screen::{Rect, Screen, Size};
use vmm::virtio::gpu::Gpu;

use crate::lab::Lab;

const WIDTH: u16 = 320;
const HEIGHT: u16 = 200;
const TICK: Duration = Duration::from_millis(5);

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
    let (ended, is_ended) = std::sync::mpsc::channel::<()>();
    let (mut viewer, listener) = (None, lab.listener());
    let said = lab.run_with("gpu hold", |events| {
        // Ends the machine when the picture is there, and the guest has done everything else.
        viewer = Some(std::thread::spawn(move || {
            let goes_on = Err(RecvTimeoutError::Timeout);
            while is_ended.recv_timeout(TICK) == goes_on {
                if shows(&screen) && listener.text().contains("CHECK gpu ok") {
                    events.put(Event::Quit);
                    return true;
                }
            }
            false
        }));
    });
    drop(ended);
    let seen = viewer.unwrap().join().unwrap();
    assert!(seen, "no picture:\n{}", said.text);
}
