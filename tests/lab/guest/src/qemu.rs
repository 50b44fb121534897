//! The same desktop under QEMU, on the same KVM, to compare with.

use std::path::Path;
use std::process::Command;

use crate::vm::Options;

/// A machine as close to splice-vmm's as QEMU's options have it: a modern PC, the kernel started without a boot loader, virtio devices.
pub fn command(options: &Options, system: &Path, console: &Path, log: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-M", "q35", "-accel", "kvm", "-cpu", "host"])
        .args(["-display", "none", "-no-reboot", "-nic", "none"])
        .args(["-m", &format!("{}M", options.memory_mib)])
        .args(["-smp", &options.vcpus.to_string()])
        .arg("-kernel")
        .arg(system.join("kernel"))
        .arg("-initrd")
        .arg(system.join("initrd"))
        .args(["-append", super::vm::COMMAND_LINE])
        .arg("-chardev")
        .arg(format!(
            "socket,id=console,path={},server=on,wait=off,logfile={},logappend=on",
            console.display(),
            log.display()
        ))
        .args(["-serial", "chardev:console", "-device", "virtio-rng-pci"]);
    let disks = [(&options.disk, ""), (&options.data, ",readonly=on")];
    for (disk, more) in disks {
        if let Some(disk) = disk {
            let drive = format!("file={},if=virtio,format=raw{more}", disk.display());
            command.args(["-drive", &drive]);
        }
    }
    command
}
