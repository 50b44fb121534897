//! A machine that was saved, written into a template: its state as it is, of its memory what the image has not.

use std::io;
use std::os::unix::fs::FileExt;

use super::head::{BLOCK_BYTES, Head, PAGE_BYTES, Page, STATE_BYTES_MAX};
use super::pages::PageIndex;
use super::thaw::Files;
use super::{TemplateError, Writer};

/// Bytes of the state copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// Why it cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A file that splice-vmm filled.
    #[error("the {0} that was saved")]
    Read(&'static str, #[source] io::Error),
    /// It cannot be all of it.
    #[error("the {what} that was saved has {found} bytes")]
    Length {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
    },
}

/// Writes a machine's state into a template's body. Returns how long it is.
///
/// # Errors
/// See [`SaveError`].
pub fn state(files: &Files, writer: &mut Writer<'_>) -> Result<u64, SaveError> {
    let failed = |error| SaveError::Read("state", error);
    let len = files.state.metadata().map_err(failed)?.len();
    if len == 0 || len > STATE_BYTES_MAX {
        let (what, found) = ("state", len);
        return Err(SaveError::Length { what, found });
    }
    let (mut at, mut bytes) = (0, vec![0; COPY_BYTES as usize]);
    while at < len {
        let taken = (len - at).min(COPY_BYTES);
        let bytes = &mut bytes[..taken as usize];
        files.state.read_exact_at(bytes, at).map_err(failed)?;
        writer.write(bytes)?;
        at += taken;
    }
    Ok(len)
}

/// Writes the pages of a machine's memory that nobody else has into a template's body, and where all of them are into its head.
///
/// # Errors
/// See [`SaveError`].
pub fn memory(
    files: &Files,
    index: &PageIndex,
    head: &mut Head,
    writer: &mut Writer<'_>,
) -> Result<(), SaveError> {
    let failed = |error| SaveError::Read("memory", error);
    let (found, what) = (files.memory.metadata().map_err(failed)?.len(), "memory");
    if found != head.identity.memory_bytes() {
        return Err(SaveError::Length { what, found });
    }
    let mut bytes = Box::new([0u8; BLOCK_BYTES]);
    for number in 0..(found / BLOCK_BYTES as u64) as u32 {
        let at = u64::from(number) * BLOCK_BYTES as u64;
        files
            .memory
            .read_exact_at(&mut bytes[..], at)
            .map_err(failed)?;
        let Some(block) = index.plan(number, &bytes) else {
            continue;
        };
        for (page, bytes) in block.pages.iter().zip(bytes.chunks_exact(PAGE_BYTES)) {
            if *page == Page::Own {
                writer.write(bytes)?;
            }
        }
        head.blocks.push(block);
    }
    Ok(())
}
