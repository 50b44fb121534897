//! A person at a desktop's screen: a small viewer of RFB, apart from the product's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const PATIENCE: Duration = Duration::from_secs(60);

/// A picture of a screen.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// Red, green, blue.
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    pub fn at(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        let inside = x < self.width && y < self.height;
        inside.then(|| self.pixels[y * self.width + x])
    }
}

/// See the module.
pub struct Window {
    stream: UnixStream,
    width: u16,
    height: u16,
}

impl Window {
    /// Opens a screen. It sees later sizes only when it is opened again.
    pub fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("the screen's socket")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut window = Self {
            stream,
            width: 0,
            height: 0,
        };
        ensure!(&window.read::<12>()? == b"RFB 003.008\n");
        window.send(b"RFB 003.008\n")?;
        let [types] = window.read()?;
        for _ in 0..types {
            window.read::<1>()?;
        }
        window.send(&[1])?;
        ensure!(window.read::<4>()? == [0; 4], "not let in");
        window.send(&[1])?;
        let [a, b, c, d] = window.read()?;
        (window.width, window.height) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        window.read::<16>()?;
        let name = u32::from_be_bytes(window.read()?);
        for _ in 0..name {
            window.read::<1>()?;
        }
        // 32 bits, red highest; Raw only, and pointers without opacity.
        window.send(&[
            0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
        ])?;
        window.send(&[2, 0, 0, 1, 0, 0, 0, 0])?;
        Ok(window)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads messages until an update has come; texts that were copied are told.
    fn message(&mut self) -> Result<Option<String>> {
        let [kind] = self.read()?;
        match kind {
            0 => Ok(None),
            3 => {
                self.read::<3>()?;
                let mut text = vec![0; u32::from_be_bytes(self.read()?) as usize];
                self.stream.read_exact(&mut text)?;
                Ok(Some(text.iter().map(|byte| char::from(*byte)).collect()))
            }
            other => anyhow::bail!("message {other}"),
        }
    }

    /// What is shown now.
    pub fn look(&mut self) -> Result<Picture> {
        let (width, height) = (usize::from(self.width), usize::from(self.height));
        let mut request = vec![3, 0, 0, 0, 0, 0];
        request.extend(self.width.to_be_bytes());
        request.extend(self.height.to_be_bytes());
        self.send(&request)?;
        while self.message()?.is_some() {}
        let mut picture = Picture {
            width,
            height,
            pixels: vec![[0; 3]; width * height],
        };
        let [_, high, low] = self.read()?;
        for _ in 0..u16::from_be_bytes([high, low]) {
            let head: [u8; 12] = self.read()?;
            let field = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
            let (x, y, columns, rows) = (field(0), field(2), field(4), field(6));
            ensure!(head[8..] == [0; 4], "another encoding");
            ensure!(
                x + columns <= width && y + rows <= height,
                "beside the screen"
            );
            let mut row = vec![0; columns * 4];
            for y in y..y + rows {
                self.stream.read_exact(&mut row)?;
                for (x, pixel) in (x..).zip(row.chunks_exact(4)) {
                    picture.pixels[y * width + x] = [pixel[2], pixel[1], pixel[0]];
                }
            }
        }
        Ok(picture)
    }

    /// Puts the pointer there, with no button pressed.
    pub fn point(&mut self, x: u16, y: u16) -> Result<()> {
        let [a, b] = x.to_be_bytes();
        let [c, d] = y.to_be_bytes();
        self.send(&[5, 0, a, b, c, d])
    }

    /// Types a text of lower-case letters, digits and blanks, and Return.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        for symbol in text.bytes().map(u16::from).chain([0xff0d]) {
            let [high, low] = symbol.to_be_bytes();
            for down in [1, 0] {
                self.send(&[4, down, 0, 0, 0, 0, high, low])?;
            }
        }
        Ok(())
    }

    /// Gives the guest a text to paste.
    pub fn give_text(&mut self, text: &str) -> Result<()> {
        let mut message = vec![6, 0, 0, 0];
        message.extend((text.len() as u32).to_be_bytes());
        message.extend(text.as_bytes());
        self.send(&message)
    }

    /// The next text that is copied in the guest.
    pub fn text(&mut self) -> Result<String> {
        self.message()?.context("an update that was not asked for")
    }
}
