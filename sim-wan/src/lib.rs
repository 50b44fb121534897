//! WAN emulator
