//! `splice-vmm screenshot`: a picture of a running machine's screen.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use vmm::rfb::client::Client;
use vmm::screen::picture::{self, Kind};

/// Saves the screen at `socket` as `file`.
pub fn save(socket: &Path, file: &Path) -> Result<()> {
    let kind = match file.extension().and_then(|extension| extension.to_str()) {
        Some("png") => Kind::Png,
        Some("ppm") => Kind::Ppm,
        _ => bail!("{}: a name that ends with .png or .ppm", file.display()),
    };
    let at = || format!("screen at {}", socket.display());
    let mut client = Client::connect(socket).with_context(at)?;
    let pixels = client.picture().with_context(at)?;
    let to = || format!("picture {}", file.display());
    let mut out = BufWriter::new(File::create(file).with_context(to)?);
    picture::write(kind, client.size(), &pixels, &mut out).with_context(to)?;
    out.flush().with_context(to)
}
