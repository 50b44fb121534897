//! QEMU as the machine: its command line, and what its monitor is asked.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use branch_guest::PORT_NAME;

use super::qmp::Qmp;
use super::{Boot, DiskFront, Files, MachineKind, MachineSpec};

/// For how long QEMU tries to reach an NBD export again after the branch server went away. A guest waits as long. Over vhost-user it tries for
/// ever.
const RECONNECT_S: u32 = 86_400;

/// Longest serial number of a virtio disk, in bytes.
const SERIAL_BYTES_MAX: usize = 20;

/// The serial number of a desktop's disk, however it is reached.
pub fn disk_serial(name: &str) -> &str {
    &name[..name.len().min(SERIAL_BYTES_MAX)]
}

/// Whether this QEMU has SPICE. Asked once: which program it is does not change while the server runs.
pub(super) fn has_spice(qemu: &Path) -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| {
        let asked = Command::new(qemu)
            .args(["-machine", "none", "-display", "none", "-spice", "help"])
            .stdin(Stdio::null())
            .output();
        asked.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("unix="))
    })
}

/// The command that runs the machine.
pub(super) fn command(spec: &MachineSpec) -> Command {
    let mut command = Command::new(&spec.host.qemu);
    command.args(arguments(spec, has_spice(&spec.host.qemu)));
    command
}

/// QEMU's arguments. Commas in paths are doubled, as its option syntax asks.
fn arguments(spec: &MachineSpec, spice: bool) -> Vec<String> {
    let path = |p: &Path| p.display().to_string().replace(',', ",,");
    let files = &spec.files;
    let mut args: Vec<String> = Vec::new();
    let mut arg = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    arg("-name", format!("guest={},debug-threads=on", spec.name));
    let (accelerator, cpu) = match spec.choice.kind {
        MachineKind::QemuTcg => ("tcg,thread=multi", "max"),
        MachineKind::QemuKvm | MachineKind::Splice => ("kvm", "host"),
    };
    arg("-accel", accelerator.into());
    arg("-cpu", cpu.into());
    arg("-smp", spec.vcpus.to_string());
    arg("-m", format!("{}M", spec.memory_mib));
    // A kernel that QEMU itself starts has the first place in the order.
    let boot_index = match &spec.boot {
        Boot::Kernel(_) => "",
        Boot::Bios | Boot::Uefi(_) => ",bootindex=0",
    };
    // Their names in QEMU, their exports, sockets and serial numbers, and whether firmware boots from them.
    let system = (
        "system",
        "desktop",
        files.disk_socket(),
        disk_serial(&spec.name),
        boot_index,
    );
    let user = spec.user_serial.as_deref();
    let user = user.map(|serial| ("user", "user", files.user_disk_socket(), serial, ""));
    match spec.disk_front() {
        DiskFront::Nbd => {
            arg("-machine", "q35".into());
            for (node, export, _, serial, boot_index) in [Some(system), user].into_iter().flatten()
            {
                arg(
                    "-blockdev",
                    format!(
                        "driver=nbd,node-name={node},server.type=unix,server.path={},export={export}/{},reconnect-delay={RECONNECT_S},discard=unmap",
                        path(&spec.host.nbd_socket),
                        spec.name
                    ),
                );
                // A read that the branch gave up on pauses the guest instead of breaking its file system; it goes on when the link is back.
                arg(
                    "-device",
                    format!(
                        "virtio-blk-pci,drive={node},serial={serial},rerror=stop,werror=stop{boot_index}"
                    ),
                );
            }
        }
        DiskFront::VhostUser => {
            // The branch server maps the guest's memory, and takes only files that cannot be shortened under it: QEMU seals its memfd.
            arg("-machine", "q35,memory-backend=memory".into());
            arg(
                "-object",
                format!(
                    "memory-backend-memfd,id=memory,size={}M,share=on",
                    spec.memory_mib
                ),
            );
            for (node, _, socket, _, boot_index) in [Some(system), user].into_iter().flatten() {
                arg(
                    "-chardev",
                    format!("socket,id={node},path={},reconnect=1", path(&socket)),
                );
                arg(
                    "-device",
                    format!(
                        "vhost-user-blk-pci,chardev={node},num-queues={}{boot_index}",
                        spec.disk_queues()
                    ),
                );
            }
        }
    }
    arg("-device", "virtio-rng-pci".into());
    match &spec.boot {
        Boot::Kernel(boot) => {
            arg("-kernel", boot.kernel.display().to_string());
            if let Some(initrd) = &boot.initrd {
                arg("-initrd", initrd.display().to_string());
            }
            arg("-append", boot.command_line.clone());
        }
        Boot::Bios => {}
        Boot::Uefi(firmware) => {
            arg(
                "-drive",
                format!(
                    "if=pflash,unit=0,format=raw,readonly=on,file={}",
                    path(&firmware.code)
                ),
            );
            arg(
                "-drive",
                format!("if=pflash,unit=1,format=raw,file={}", path(&firmware.vars)),
            );
        }
    }
    if spec.tpm {
        arg(
            "-chardev",
            format!("socket,id=tpm,path={}", path(&files.tpm_socket())),
        );
        arg("-tpmdev", "emulator,id=tpm,chardev=tpm".into());
        arg("-device", "tpm-crb,tpmdev=tpm".into());
    }
    arg(
        "-chardev",
        format!(
            "socket,id=serial0,path={},server=on,wait=off,logfile={},logappend=on",
            path(&files.serial_socket()),
            path(&files.serial_log())
        ),
    );
    arg("-serial", "chardev:serial0".into());
    // The port of the agent inside.
    arg("-device", "virtio-serial-pci".into());
    arg(
        "-chardev",
        format!(
            "socket,id=agent,path={},server=on,wait=off",
            path(&files.agent_socket())
        ),
    );
    arg(
        "-device",
        format!("virtserialport,chardev=agent,name={PORT_NAME}"),
    );
    arg(
        "-qmp",
        format!(
            "unix:{},server=on,wait=off",
            path(&files.control_socket(true))
        ),
    );
    arg("-display", "none".into());
    arg("-vga", "std".into());
    arg("-vnc", format!("unix:{}", path(&files.screen_socket())));
    if spice {
        // The socket is the permission: its folder is the branch server's.
        arg(
            "-spice",
            format!(
                "unix=on,addr={},disable-ticketing=on",
                path(&files.spice_socket())
            ),
        );
    }
    // A pointer that is where the viewer's is; without it the two drift apart.
    arg("-device", "qemu-xhci".into());
    arg("-device", "usb-tablet".into());
    match &spec.card {
        None => arg("-nic", "none".into()),
        Some(card) => {
            arg(
                "-netdev",
                format!("tap,id=net0,fd={}", card.tap.as_raw_fd()),
            );
            // Nobody boots from it, and the program that would is a package of its own.
            let mac = card.mac_text();
            arg(
                "-device",
                format!("virtio-net-pci,netdev=net0,mac={mac},romfile="),
            );
        }
    }
    args.push("-nodefaults".into());
    args
}

/// Whether the machine's monitor answers.
pub(super) fn is_up(files: &Files) -> bool {
    Qmp::connect(&files.control_socket(true)).is_ok()
}

fn ask(files: &Files, command: &str) -> Option<serde_json::Value> {
    let mut qmp = Qmp::connect(&files.control_socket(true)).ok()?;
    qmp.run(command).ok()
}

/// See [`super::resume_after_io_error`].
pub(super) fn resume_after_io_error(files: &Files) -> bool {
    is_paused_by_io_error(files) && ask(files, "cont").is_some()
}

/// See [`super::is_paused_by_io_error`].
pub(super) fn is_paused_by_io_error(files: &Files) -> bool {
    ask(files, "query-status").is_some_and(|status| status["status"] == "io-error")
}

/// Presses the power button. Returns whether that was done.
pub(super) fn press_power_button(files: &Files) -> bool {
    ask(files, "system_powerdown").is_some()
}

/// Ends the machine. Returns whether that was heard.
pub(super) fn quit(files: &Files) -> bool {
    ask(files, "quit").is_some()
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::super::{DirectBoot, Firmware};
    use super::*;

    fn line(spec: &MachineSpec) -> String {
        arguments(spec, true).join(" ")
    }

    #[test]
    fn disks_come_over_nbd_or_vhost_user() {
        let mut spec = spec(MachineKind::QemuKvm);
        spec.host.qemu_disk = DiskFront::Nbd;
        let nbd = line(&spec);
        assert!(nbd.contains("server.path=/d/nbd.sock,export=desktop/alice,"));
        assert!(nbd.contains("rerror=stop,werror=stop"));
        assert!(!nbd.contains("vhost-user"));
        spec.host.qemu_disk = DiskFront::VhostUser;
        let vhost = line(&spec);
        assert!(vhost.contains("-machine q35,memory-backend=memory"));
        assert!(vhost.contains("memory-backend-memfd,id=memory,size=1024M,share=on"));
        assert!(vhost.contains("socket,id=system,path=/d/alice/disk.sock,reconnect=1"));
        assert!(vhost.contains("vhost-user-blk-pci,chardev=system,num-queues=2"));
        assert!(!vhost.contains("nbd"));
        assert!(!vhost.contains("user.sock"));
        spec.user_serial = Some("su-1".into());
        let vhost = line(&spec);
        assert!(vhost.contains("socket,id=user,path=/d/alice/user.sock,reconnect=1"));
        assert!(vhost.contains("vhost-user-blk-pci,chardev=user,num-queues=2"));
        spec.host.qemu_disk = DiskFront::Nbd;
        let nbd = line(&spec);
        assert!(nbd.contains("server.path=/d/nbd.sock,export=user/alice,"));
        assert!(nbd.contains("virtio-blk-pci,drive=user,serial=su-1,rerror=stop"));
        assert_eq!(nbd.matches("bootindex").count(), 1);
    }

    #[test]
    fn kvm_or_tcg_and_screens_on_sockets() {
        let kvm = line(&spec(MachineKind::QemuKvm));
        assert!(kvm.contains("-accel kvm -cpu host"));
        assert!(kvm.contains("socket,id=agent,path=/d/alice/agent.sock,server=on,wait=off"));
        assert!(kvm.contains("virtserialport,chardev=agent,name=splice.agent.0"));
        let tcg = line(&spec(MachineKind::QemuTcg));
        assert!(tcg.contains("-accel tcg,thread=multi -cpu max"));
        assert!(tcg.contains("-vnc unix:/d/alice/screen.sock"));
        assert!(tcg.contains("-spice unix=on,addr=/d/alice/spice.sock,disable-ticketing=on"));
        let without = arguments(&spec(MachineKind::QemuTcg), false).join(" ");
        assert!(!without.contains("-spice"));
    }

    #[test]
    fn a_card_is_at_the_tap_that_is_handed_in() {
        let mut spec = spec(MachineKind::QemuKvm);
        assert!(line(&spec).contains("-nic none"));
        let card = super::super::tests::card();
        let tap = format!("-netdev tap,id=net0,fd={} -device", card.tap.as_raw_fd());
        spec.card = Some(card);
        let line = line(&spec);
        assert!(line.contains(&tap) && !line.contains("-nic"), "{line}");
        assert!(line.contains("virtio-net-pci,netdev=net0,mac=52:53:0a:d5:00:02,romfile= "));
    }

    #[test]
    fn it_boots_a_kernel_or_firmware() {
        let mut spec = spec(MachineKind::QemuKvm);
        spec.boot = Boot::Kernel(DirectBoot {
            kernel: "/boot/k".into(),
            initrd: None,
            command_line: "root=UUID=1 ro".into(),
        });
        assert!(line(&spec).contains("-kernel /boot/k -append root=UUID=1 ro"));
        assert!(!line(&spec).contains("bootindex"));
        spec.boot = Boot::Bios;
        assert!(!line(&spec).contains("pflash"));
        assert!(line(&spec).contains("bootindex=0"));
        spec.boot = Boot::Uefi(Firmware {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            vars: "/d/a,b/efi-vars.fd".into(),
        });
        let uefi = line(&spec);
        assert!(uefi.contains(
            "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"
        ));
        assert!(uefi.contains("if=pflash,unit=1,format=raw,file=/d/a,,b/efi-vars.fd"));
        assert!(!uefi.contains("tpm"));
        spec.tpm = true;
        assert!(line(&spec).contains("socket,id=tpm,path=/d/alice/tpm.sock -tpmdev emulator,"));
    }
}
