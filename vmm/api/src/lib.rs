//! What splice-vmm tells other programs
