//! splice-vmm: one process per desktop on KVM.
//!
//! [`check`] tells whether this machine can run desktops at all. [`machine`] is a PC of a few parts ([`legacy`]), a PCI bus ([`pci`]) and
//! virtio devices ([`virtio`]), enough for an unmodified distribution kernel. Its [`screen`] is shown to viewers by [`rfb`], and its
//! [`clipboard`] is shared with them. A [`snapshot`] of one is what another goes on from. [`sandbox`] bounds what a guest that breaks into
//! all this can do; [`threads`] are started for what they do there.

pub mod check;
pub mod clipboard;
pub mod control;
pub mod legacy;
pub mod machine;
pub mod pci;
pub mod rfb;
pub mod sandbox;
pub mod screen;
pub mod snapshot;
pub mod threads;
pub mod virtio;
