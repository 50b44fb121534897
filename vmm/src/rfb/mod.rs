//! The screen for viewers: RFB 3.8 (RFC 6143) on a Unix socket.
//!
//! Who may open the socket may see and type: there is no security inside (type None), and none is needed, because the socket lies where
//! only the branch's portal comes, which knows who is who. It is never on a network.
//!
//! Served: Raw, ZRLE and Tight with JPEG, any true-colour format; scrolls as moves (CopyRect), updates without a count (LastRect); the
//! pointer's image, with opacity if the viewer has it, the screen's size (DesktopSize, ExtendedDesktopSize with wishes for another size,
//! which are forwarded to the guest), fences and continuous updates, keys by scan code (QEMU's extension), more buttons, clipboards
//! (plain, and the extension for all of Unicode). Left out: colour maps, wishes to be alone with the screen, and whatever else
//! docs/display.md says.
//!
//! `parser` and `wishes` are the protocol without sockets: what a viewer says, and what it is sent when. `viewer` has the threads.
//! Invariant: what a viewer says can end that viewer and nothing else, and what it makes us keep is bounded.

pub mod client;
mod clip;
mod deflate;
mod hands;
mod keys;
mod palette;
mod parser;
mod pixel;
#[cfg(test)]
mod tests;
mod tight;
mod update;
mod viewer;
mod wire;
mod wishes;
mod zrle;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use hands::Inputs;
pub use parser::{MESSAGE_BYTES_MAX, Message, ParseError, Parser, Said};
pub use pixel::{FORMAT_BYTES, FormatError, PixelFormat};
pub use wire::encoding;

use crate::screen::Screen;
use crate::threads::{self, Role, Service};

/// Viewers at a time: a user, those who help, and programs that take pictures. Each has two threads and about 2 MiB of buffers.
pub const VIEWERS_MAX: usize = 8;
/// How long to wait before the next viewer when the host has no room for one.
const NO_ROOM: std::time::Duration = std::time::Duration::from_millis(100);

/// Lets viewers come at a socket that is made anew; `name` is what they call the desktop. They are served from when the service is started,
/// as long as the process lives.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path, screen: Screen, inputs: Inputs, name: &str) -> io::Result<Service> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    let name: Arc<str> = name.into();
    let accept = move || {
        let viewers = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(NO_ROOM);
                continue;
            };
            let place = Place::take(&viewers);
            let (screen, inputs, name) = (screen.clone(), inputs.clone(), Arc::clone(&name));
            let Some(place) = place else {
                tracing::warn!(max = VIEWERS_MAX, "one viewer too many is hung up on");
                continue;
            };
            let serve = move || {
                let _place = place;
                if let Err(gone) = viewer::serve(stream, &screen, inputs, &name) {
                    let error = &gone as &dyn std::error::Error;
                    tracing::info!(error, "a viewer is hung up on");
                }
            };
            if let Err(error) = threads::spawn(Role::Screen, "rfb-hear", serve) {
                tracing::warn!(%error, "no thread for a viewer");
            }
        }
    };
    Ok(Service::new(Role::Screen, "rfb", accept))
}

/// One of the places for viewers.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(viewers: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = viewers.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < VIEWERS_MAX).then_some(count + 1)
        });
        taken.ok().map(|_| Self(Arc::clone(viewers)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
