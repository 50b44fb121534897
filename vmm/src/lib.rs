//! splice-vmm: one process per desktop on KVM
