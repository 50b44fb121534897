//! Serves a raw image over NBD, to measure and to try clients: `serve <image> <socket>`.

use std::path::Path;
use std::sync::Arc;

use vmm_block::RawFile;
use vmm_block::nbd::{Export, ExportMap, NbdOptions, NbdServer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(image), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve <image> <socket>".into());
    };
    let exports = Arc::new(ExportMap::default());
    exports.insert(Export::new(
        "",
        &image,
        Arc::new(RawFile::open(Path::new(&image), false)?),
    )?)?;
    let server = NbdServer::new(exports, NbdOptions::default())?;
    server.listen_unix(Path::new(&socket))?;
    println!("nbd+unix:///?socket={socket}");
    loop {
        std::thread::park();
    }
}
