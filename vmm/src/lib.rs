//! splice-vmm: one process per desktop on KVM.
//!
//! [`check`] tells whether this machine can run desktops at all.

pub mod check;
