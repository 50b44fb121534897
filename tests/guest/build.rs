//! Compiles the guest in `bare/` with the compiler that compiles everything else.
//!
//! Cargo cannot: a program without std must be built with `panic=abort`, which a profile sets for all crates or none, and with a
//! linker script of its own.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=bare");
    let folder = |name: &str| PathBuf::from(std::env::var_os(name).expect("cargo sets it"));
    let source = folder("CARGO_MANIFEST_DIR").join("bare");
    let image = folder("OUT_DIR").join("guest.elf");
    let script = source.join("guest.ld");
    let mut rustc = Command::new(folder("RUSTC"));
    rustc
        .args(["--crate-name=guest", "--crate-type=bin", "--edition=2024"])
        .args([
            "-Copt-level=2",
            "-Cpanic=abort",
            "-Cdebuginfo=0",
            "-Cstrip=symbols",
        ])
        .args(["-Crelocation-model=static", "-Ctarget-feature=+crt-static"])
        .args(["-Crelro-level=off", "-Coverflow-checks=on", "-Dwarnings"])
        .args(["-Clink-arg=-nostdlib", "-Clink-arg=-nostartfiles"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-Clink-arg=-Wl,--build-id=none")
        .arg("-o")
        .arg(&image)
        .arg(source.join("main.rs"));
    let status = rustc.status().expect("the compiler runs");
    assert!(status.success(), "the guest does not compile: {rustc:?}");
}
