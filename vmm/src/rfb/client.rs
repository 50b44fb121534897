//! A viewer that looks once: what `splice-vmm screenshot` is made of. It understands Raw pixels only.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::pixel::{FORMAT_BYTES, PixelFormat};
use super::wire::{SECURITY_NONE, VERSION, encoding, from_client, to_client};
use crate::screen::{PIXEL_BYTES, Rect, Size};

/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a desktop's name that are read.
const NAME_BYTES_MAX: usize = 4096;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("connection to the screen")]
    Io(#[from] io::Error),
    /// Not what this client understands.
    #[error("the server says something unexpected: {0}")]
    Unexpected(&'static str),
}

/// See the module.
pub struct Client {
    stream: UnixStream,
    size: Size,
}

impl Client {
    /// Opens a screen.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let size = Size::default();
        let mut client = Self { stream, size };
        client.greet()?;
        Ok(client)
    }

    fn greet(&mut self) -> Result<(), ClientError> {
        if self.read::<12>()? != VERSION {
            return Err(ClientError::Unexpected("another version"));
        }
        self.send(&VERSION)?;
        let [count] = self.read()?;
        let types = self.read_bytes(count.into())?;
        if !types.contains(&SECURITY_NONE) {
            return Err(ClientError::Unexpected("security"));
        }
        self.send(&[SECURITY_NONE])?;
        if self.read()? != [0; 4] {
            return Err(ClientError::Unexpected("no access"));
        }
        // Together with others.
        self.send(&[1])?;
        let [a, b, c, d] = self.read()?;
        self.size = size([a, b], [c, d])?;
        self.read::<FORMAT_BYTES>()?;
        let len = u32::from_be_bytes(self.read()?) as usize;
        if len > NAME_BYTES_MAX {
            return Err(ClientError::Unexpected("a very long name"));
        }
        self.read_bytes(len)?;
        let mut format = vec![from_client::SET_PIXEL_FORMAT, 0, 0, 0];
        format.extend(PixelFormat::NATIVE.to_wire());
        self.send(&format)
    }

    /// Size of the screen.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Sends bytes of a message.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Reads bytes of a message.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn read<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads `len` bytes of a message.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn read_bytes(&mut self, len: usize) -> Result<Vec<u8>, ClientError> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Asks for an update of the whole screen.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn request(&mut self, incremental: bool) -> Result<(), ClientError> {
        let mut request = vec![from_client::UPDATE_REQUEST, incremental.into(), 0, 0, 0, 0];
        request.extend(self.size.width.to_be_bytes());
        request.extend(self.size.height.to_be_bytes());
        self.send(&request)
    }

    /// Reads how many rectangles the next update has.
    ///
    /// # Errors
    /// The server says something else, or the connection is gone.
    pub fn read_update(&mut self) -> Result<u16, ClientError> {
        let [kind, _, high, low] = self.read()?;
        if kind != to_client::UPDATE {
            return Err(ClientError::Unexpected("not an update"));
        }
        Ok(u16::from_be_bytes([high, low]))
    }

    /// Reads a rectangle's head: where, and in which encoding.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn read_head(&mut self) -> Result<(Rect, i32), ClientError> {
        let fields: [u8; 8] = self.read()?;
        let field = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
        let rect = Rect::new(field(0), field(2), field(4), field(6));
        Ok((rect, i32::from_be_bytes(self.read()?)))
    }

    /// Reads an update of Raw pixels into a picture of the whole screen.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn read_raw(&mut self, picture: &mut Vec<u8>) -> Result<(), ClientError> {
        picture.resize(self.size.pixels() * PIXEL_BYTES, 0);
        let stride = usize::from(self.size.width) * PIXEL_BYTES;
        for _ in 0..self.read_update()? {
            let (rect, kind) = self.read_head()?;
            if kind != encoding::RAW || rect.intersect(self.size.rect()) != rect {
                return Err(ClientError::Unexpected(
                    "a rectangle that was not asked for",
                ));
            }
            for y in rect.y..rect.bottom() {
                let row = self.read_bytes(usize::from(rect.width) * PIXEL_BYTES)?;
                let at = usize::from(y) * stride + usize::from(rect.x) * PIXEL_BYTES;
                picture[at..at + row.len()].copy_from_slice(&row);
            }
        }
        Ok(())
    }

    /// A picture of the whole screen as it is now: blue, green, red and one more byte a pixel.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn picture(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut picture = Vec::new();
        self.request(false)?;
        self.read_raw(&mut picture)?;
        Ok(picture)
    }
}

fn size(width: [u8; 2], height: [u8; 2]) -> Result<Size, ClientError> {
    let side = |bytes| u32::from(u16::from_be_bytes(bytes));
    Size::shown(side(width), side(height)).ok_or(ClientError::Unexpected("a strange size"))
}
