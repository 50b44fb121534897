//! How an image is opened. Everything has a default that suits a datacenter; only formats that are converted look at
//! the scratch folder.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::format::ImageFormat;
use crate::image::DISK_BYTES_MAX;

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Between 0 and 1.
    pub fraction: f64,
}

/// How [`crate::open`] opens an image.
#[derive(Clone)]
pub struct OpenOptions {
    pub(crate) format: Option<ImageFormat>,
    pub(crate) scratch_dir: PathBuf,
    pub(crate) qemu_img: PathBuf,
    pub(crate) convert_timeout: Duration,
    pub(crate) disk_bytes_max: u64,
    pub(crate) progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            format: None,
            scratch_dir: std::env::temp_dir(),
            qemu_img: PathBuf::from("qemu-img"),
            convert_timeout: Duration::from_secs(4 * 3600),
            disk_bytes_max: DISK_BYTES_MAX,
            progress: None,
        }
    }
}

impl OpenOptions {
    /// The defaults: format by magic, the system's folder for temporary files, four hours for a conversion.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the file as this format whatever its magic says. Use it for raw disks from untrusted guests, which can
    /// write another format's magic into their first sector.
    #[must_use]
    pub fn format(mut self, format: ImageFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Where converted images are kept while they are open. It needs room for the image's data.
    #[must_use]
    pub fn scratch_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.scratch_dir = dir.into();
        self
    }

    /// The `qemu-img` program, by default the one on the search path.
    #[must_use]
    pub fn qemu_img(mut self, program: impl Into<PathBuf>) -> Self {
        self.qemu_img = program.into();
        self
    }

    /// How long a conversion may take before it is ended.
    #[must_use]
    pub fn convert_timeout(mut self, timeout: Duration) -> Self {
        self.convert_timeout = timeout;
        self
    }

    /// Refuses disks above this many bytes (at most 64 TiB, the default). A small file can describe a large disk that is
    /// full of data, so whoever publishes foreign images should set what is plausible.
    #[must_use]
    pub fn disk_bytes_max(mut self, bytes: u64) -> Self {
        self.disk_bytes_max = bytes.min(DISK_BYTES_MAX);
        self
    }

    /// Called from the opening thread while a conversion runs.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("format", &self.format)
            .field("scratch_dir", &self.scratch_dir)
            .field("qemu_img", &self.qemu_img)
            .field("convert_timeout", &self.convert_timeout)
            .field("disk_bytes_max", &self.disk_bytes_max)
            .finish_non_exhaustive()
    }
}
