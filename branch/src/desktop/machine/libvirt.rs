//! A desktop's machine as a libvirt domain, for those who run libvirt: what `splice desktop libvirt-xml` prints.
//!
//! The disk stays the branch's, so the desktop is to be started with `--serve-only` before the domain is. The domain says no more than the
//! machine that the branch itself would run under QEMU has.

use std::fmt::Write;
use std::path::Path;

use branch_guest::PORT_NAME;

use super::{Boot, DiskFront, MachineKind, MachineSpec, disk_serial};

/// Text as XML has it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no way to say other control characters.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn path(path: &Path) -> String {
    escape(&path.display().to_string())
}

/// 16 bytes as a UUID's text, marked as random (version 4), which libvirt wants.
fn uuid(mut id: [u8; 16]) -> String {
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The domain of a desktop whose id is `id`.
pub fn domain(spec: &MachineSpec, id: [u8; 16]) -> String {
    let (kind, cpu) = match spec.choice.kind {
        MachineKind::QemuTcg => ("qemu", "maximum"),
        MachineKind::QemuKvm | MachineKind::Splice => ("kvm", "host-passthrough"),
    };
    let backing = match spec.disk_front() {
        DiskFront::Nbd => "",
        // The branch server maps the guest's memory.
        DiskFront::VhostUser => {
            "\n  <memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>"
        }
    };
    let tpm = if spec.tpm {
        "\n    <tpm model='tpm-crb'>\n      <backend type='emulator' version='2.0'/>\n    </tpm>"
    } else {
        ""
    };
    let files = &spec.files;
    format!(
        "<domain type='{kind}'>
  <name>splice-{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>{backing}
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>{boot}
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu mode='{cpu}'/>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
{disk}
    <controller type='usb' model='qemu-xhci'/>
    <serial type='unix'>
      <source mode='bind' path='{serial}'/>
      <log file='{serial_log}' append='on'/>
      <target port='0'/>
    </serial>
    <channel type='unix'>
      <source mode='bind' path='{agent}'/>
      <target type='virtio' name='{port}'/>
    </channel>{tpm}
    <input type='tablet' bus='usb'/>
    <graphics type='vnc' socket='{screen}'/>
    <graphics type='spice'>
      <listen type='socket' socket='{spice}'/>
    </graphics>
    <video>
      <model type='vga'/>
    </video>
    <memballoon model='none'/>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>
",
        name = escape(&spec.name),
        uuid = uuid(id),
        memory = spec.memory_mib,
        vcpus = spec.vcpus,
        boot = boot(&spec.boot),
        disk = disks(spec),
        serial = path(&files.serial_socket()),
        serial_log = path(&files.serial_log()),
        agent = path(&files.agent_socket()),
        port = PORT_NAME,
        screen = path(&files.screen_socket()),
        spice = path(&files.spice_socket()),
    )
}

fn boot(boot: &Boot) -> String {
    match boot {
        Boot::Kernel(boot) => {
            let initrd = boot.initrd.as_deref().map_or(String::new(), |initrd| {
                format!("\n    <initrd>{}</initrd>", path(initrd))
            });
            format!(
                "\n    <kernel>{}</kernel>{initrd}\n    <cmdline>{}</cmdline>",
                path(&boot.kernel),
                escape(&boot.command_line)
            )
        }
        Boot::Bios => "\n    <boot dev='hd'/>".into(),
        Boot::Uefi(firmware) => format!(
            "\n    <loader readonly='yes' type='pflash'>{}</loader>\n    <nvram>{}</nvram>\n    <boot dev='hd'/>",
            path(&firmware.code),
            path(&firmware.vars)
        ),
    }
}

/// The system's disk, and the user volume behind it.
fn disks(spec: &MachineSpec) -> String {
    let files = &spec.files;
    let system = disk_serial(&spec.name);
    let system = disk(spec, "desktop", &files.disk_socket(), "vda", system);
    let user = spec.user_serial.as_deref();
    let user = user.map(|serial| disk(spec, "user", &files.user_disk_socket(), "vdb", serial));
    let disks: Vec<String> = [Some(system), user].into_iter().flatten().collect();
    disks.join("\n")
}

fn disk(spec: &MachineSpec, export: &str, socket: &Path, target: &str, serial: &str) -> String {
    match spec.disk_front() {
        DiskFront::VhostUser => format!(
            "    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw' queues='{queues}'/>
      <source type='unix' path='{socket}'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target dev='{target}' bus='virtio'/>
    </disk>",
            queues = spec.disk_queues(),
            socket = path(socket),
        ),
        // Debian 12's libvirt cannot say how long to reconnect: where the branch server goes away, QEMU pauses the guest for good.
        DiskFront::Nbd => format!(
            "    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop' discard='unmap'/>
      <source protocol='nbd' name='{export}/{name}'>
        <host transport='unix' socket='{socket}'/>
      </source>
      <target dev='{target}' bus='virtio'/>
      <serial>{serial}</serial>
    </disk>",
            name = escape(&spec.name),
            socket = path(&spec.host.nbd_socket),
            serial = escape(serial),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::super::tests::spec;
    use super::super::{DirectBoot, Firmware};
    use super::*;

    /// One of each way to boot, with either disk.
    fn domains() -> [(&'static str, String); 3] {
        let mut kernel = spec(MachineKind::QemuKvm);
        kernel.host.qemu_disk = DiskFront::VhostUser;
        kernel.boot = Boot::Kernel(DirectBoot {
            kernel: "/d/.boot/k".into(),
            initrd: Some("/d/.boot/i".into()),
            command_line: "root=UUID=1 ro quiet=\"a<b\"".into(),
        });
        let mut uefi = spec(MachineKind::QemuTcg);
        uefi.host.qemu_disk = DiskFront::Nbd;
        uefi.tpm = true;
        uefi.boot = Boot::Uefi(Firmware {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            vars: "/d/alice/efi-vars.fd".into(),
        });
        let mut bios = spec(MachineKind::QemuKvm);
        bios.host.qemu_disk = DiskFront::VhostUser;
        let of = |spec: &MachineSpec| domain(spec, [0xab; 16]);
        [
            ("kernel", of(&kernel)),
            ("uefi", of(&uefi)),
            ("bios", of(&bios)),
        ]
    }

    #[test]
    fn domains_are_as_libvirt_s_schema_has_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut differ = Vec::new();
        for (name, domain) in domains() {
            let file = format!("libvirt-{name}.xml");
            if std::fs::read_to_string(folder.join(&file)).ok().as_ref() != Some(&domain) {
                let place = std::env::temp_dir().join(file);
                std::fs::write(&place, &domain).unwrap();
                differ.push(place);
            }
        }
        assert!(
            differ.is_empty(),
            "{differ:?} differ from those in {}: check them with virt-xml-validate, then copy them",
            folder.display()
        );
    }

    #[test]
    fn a_user_volume_is_the_second_disk_either_way() {
        let mut spec = spec(MachineKind::QemuKvm);
        spec.user_serial = Some("su-1".into());
        spec.host.qemu_disk = DiskFront::Nbd;
        let nbd = domain(&spec, [1; 16]);
        assert!(nbd.contains("<source protocol='nbd' name='user/alice'>"));
        assert!(nbd.contains("<target dev='vdb' bus='virtio'/>\n      <serial>su-1</serial>"));
        spec.host.qemu_disk = DiskFront::VhostUser;
        let vhost = domain(&spec, [1; 16]);
        assert!(vhost.contains("<source type='unix' path='/d/alice/user.sock'>"));
        assert_eq!(vhost.matches("<disk ").count(), 2);
    }

    #[test]
    fn what_xml_gives_a_meaning_is_told_as_text() {
        assert_eq!(escape("a<b>&'\"\u{1}"), "a&lt;b&gt;&amp;&apos;&quot; ");
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
