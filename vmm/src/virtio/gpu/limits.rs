//! How much of ours one guest may use for its graphics.

/// Longest side of a resource: the longest that Linux's driver makes; a compositor may keep one buffer for more than the screen.
pub(super) const SIDE_MAX: u32 = 8192;
/// Resources: a desktop has one or a few buffers a screen and one a pointer shape in use.
pub(super) const RESOURCES_MAX: usize = 1024;
/// Bytes of all resources' pixels: seven buffers of 3840 by 2160. Pages are had when the guest first draws on them.
pub(super) const BYTES_MAX: usize = 256 << 20;
/// Backing entries of one resource: 64 MiB in single pages, the largest screen there is here (4095 by 4095).
pub(super) const ENTRIES_MAX: usize = 16384;
/// Backing entries of all resources: [`BYTES_MAX`] in single pages; 1.5 MiB of ours.
pub(super) const ENTRIES_TOTAL_MAX: usize = BYTES_MAX / 4096;
/// Sides of a pointer's image: Linux's are 64 by 64, and no viewer shows larger ones.
pub(super) const CURSOR_SIDE_MAX: u32 = 256;
