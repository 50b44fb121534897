//! Why a template cannot be made or used.

use std::io;

use super::file::VERSION;
use super::head::HeadError;

/// Why a template cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The disk.
    #[error("{step} template {file}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Its file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// It is not what was written, or was written under another key.
    #[error(
        "template {file} is damaged, or of another key ({what}); it is removed, and another one made"
    )]
    Damaged {
        /// Its file.
        file: String,
        /// What does not fit.
        what: &'static str,
    },
    /// Of another program.
    #[error(
        "template {file} has version {found}, known is {VERSION}; it is removed, and another one made"
    )]
    Version {
        /// Its file.
        file: String,
        /// In the file.
        found: u32,
    },
    /// Its head.
    #[error("template {file}")]
    Head {
        /// Its file.
        file: String,
        /// Why.
        source: HeadError,
    },
    /// What of it is the version's cannot be read.
    #[error("the version's pages of template {file}")]
    Base {
        /// Its file.
        file: String,
        /// Why not.
        source: vmm_block::BlockError,
    },
    /// Memory of the host.
    #[error("memory for template {file}: {step}")]
    Memory {
        /// Its file.
        file: String,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl TemplateError {
    /// Whether it is the template itself that is of no use, so that another one is to be made.
    pub fn is_spoiled(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Version { .. } | Self::Head { .. } => true,
            Self::Io { .. } | Self::Base { .. } | Self::Memory { .. } => false,
        }
    }
}
