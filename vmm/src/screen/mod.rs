//! What a desktop shows: pixels, pointer image and size, between the graphics adapter that draws and viewers that look.
//!
//! [`Canvas`] is the value itself; [`Screen`] shares one and wakes those who wait for a change. It is made once and outlives machines:
//! viewers stay when a guest resets. A viewer that is slow misses nothing and holds nobody up: it has a [`View`] of its own, which says
//! which tiles it has been given, and takes what has changed since, whenever it likes.
//!
//! Invariant: whatever is drawn lies inside the canvas, and every pixel that differs from what a view was given is in one of the tiles
//! that the view is told of next. Nothing here knows virtio or RFB.

mod canvas;
mod geometry;
pub mod picture;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::machine::bus::lock;
pub use canvas::{Canvas, Cursor, Move, PIXEL_BYTES, RECT_WIDTH_MAX, View};
pub use geometry::{Rect, SIDE_MAX, SIDE_MIN, Size, SizeError, TILE};

#[derive(Default)]
struct Shared {
    canvas: Mutex<Canvas>,
    changed: Condvar,
    /// Rings when another size is asked for.
    asked: Mutex<Option<EventFd>>,
}

/// A canvas that many share.
#[derive(Clone, Default)]
pub struct Screen(Arc<Shared>);

impl Screen {
    /// A black screen; `size` is also what the guest is asked for first.
    pub fn new(size: Size) -> Self {
        Self(Arc::new(Shared {
            canvas: Mutex::new(Canvas::new(size)),
            ..Shared::default()
        }))
    }

    /// The canvas as it is.
    pub fn look(&self) -> MutexGuard<'_, Canvas> {
        lock(&self.0.canvas)
    }

    /// Changes it, and wakes those who wait.
    pub fn change<T>(&self, change: impl FnOnce(&mut Canvas) -> T) -> T {
        let result = change(&mut lock(&self.0.canvas));
        self.0.changed.notify_all();
        result
    }

    /// Has those who wait look again, for a reason that is not in the canvas. What gave the reason must have happened before.
    pub fn wake(&self) {
        // With the lock, nobody is between having looked and waiting.
        drop(lock(&self.0.canvas));
        self.0.changed.notify_all();
    }

    /// Waits until `ready` has something, at most for `patience`. It is asked again after each change.
    pub fn wait<T>(
        &self,
        patience: Duration,
        mut ready: impl FnMut(&Canvas) -> Option<T>,
    ) -> Option<T> {
        let mut canvas = lock(&self.0.canvas);
        let end = std::time::Instant::now() + patience;
        loop {
            if let Some(result) = ready(&canvas) {
                return Some(result);
            }
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return None;
            }
            let woken = self.0.changed.wait_timeout(canvas, left);
            canvas = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks the guest for another size. It may follow, later, or not at all.
    pub fn ask(&self, size: Size) {
        let is_new = {
            let mut canvas = lock(&self.0.canvas);
            canvas.asked() != size && {
                canvas.set_asked(size);
                true
            }
        };
        if is_new && let Some(asked) = &*lock(&self.0.asked) {
            // One write to an event that its reader empties cannot fail.
            let _ = asked.write(1);
        }
    }

    /// What rings when another size is asked for: the adapter's, while there is one.
    pub fn set_bell(&self, bell: Option<EventFd>) {
        *lock(&self.0.asked) = bell;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_woken_by_a_change_and_by_name() {
        let screen = Screen::new(Size::new(64, 64).expect("a size"));
        let waiter = screen.clone();
        let thread = std::thread::spawn(move || {
            waiter.wait(Duration::from_secs(20), |canvas| {
                (canvas.size().width == 128).then_some(())
            })
        });
        screen.wake();
        screen.change(|canvas| canvas.resize(Size::new(128, 64).expect("a size")));
        assert_eq!(thread.join().expect("no panic"), Some(()));
        let none = screen.wait(Duration::from_millis(1), |_| None::<()>);
        assert_eq!(none, None);
    }

    #[test]
    fn a_new_size_is_asked_for_once() {
        let screen = Screen::new(Size::new(640, 480).expect("a size"));
        let bell = EventFd::new(libc::EFD_NONBLOCK).expect("an event");
        screen.set_bell(Some(bell.try_clone().expect("a copy")));
        screen.ask(Size::new(640, 480).expect("a size"));
        assert!(bell.read().is_err(), "it has that size");
        let size = Size::new(800, 600).expect("a size");
        screen.ask(size);
        screen.ask(size);
        assert_eq!(bell.read().expect("rung"), 1);
        assert_eq!(screen.look().asked(), size);
        assert_eq!(
            screen.look().size().width,
            640,
            "the guest has not followed"
        );
    }
}
