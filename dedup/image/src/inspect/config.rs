//! The few text files of a Linux system that say what it is and how it boots. Each parser takes the whole text, keeps
//! what it understands and skips the rest.

/// What `os-release` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OsRelease {
    pub(super) id: Option<String>,
    pub(super) version_id: Option<String>,
    pub(super) pretty_name: Option<String>,
}

/// Parses `os-release`: shell assignments with optional quotes.
pub(super) fn os_release(text: &str) -> OsRelease {
    let mut release = OsRelease::default();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches(['"', '\'']).replace('\\', "");
        let value = super::disk::printable(&value);
        match key {
            "ID" => release.id = value,
            "VERSION_ID" => release.version_id = value,
            "PRETTY_NAME" => release.pretty_name = value,
            _ => {}
        }
    }
    release
}

/// The device that `fstab` mounts at `mount_point`, as written there.
pub(super) fn fstab_device(text: &str, mount_point: &str) -> Option<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            let device = fields.next()?;
            (fields.next()? == mount_point).then(|| device.replace('"', ""))
        })
}

/// One way to boot: a kernel and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BootEntry {
    pub(super) kernel: String,
    pub(super) arguments: String,
}

/// The entries of an `extlinux.conf`, the default one first.
pub(super) fn extlinux(text: &str) -> Vec<BootEntry> {
    let mut default = None;
    let mut label = String::new();
    let mut kernel: Option<String> = None;
    let mut arguments = String::new();
    let mut entries: Vec<(String, BootEntry)> = Vec::new();
    let mut finish = |label: &str, kernel: &mut Option<String>, arguments: &mut String| {
        if let Some(kernel) = kernel.take() {
            entries.push((
                label.to_owned(),
                BootEntry {
                    kernel,
                    arguments: std::mem::take(arguments),
                },
            ));
        }
        arguments.clear();
    };
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once(char::is_whitespace) else {
            continue;
        };
        let value = value.trim();
        match key.to_ascii_lowercase().as_str() {
            "default" => default = Some(value.to_owned()),
            "label" => {
                finish(&label, &mut kernel, &mut arguments);
                value.clone_into(&mut label);
            }
            "linux" | "kernel" => kernel = Some(value.to_owned()),
            "append" => value.clone_into(&mut arguments),
            _ => {}
        }
    }
    finish(&label, &mut kernel, &mut arguments);
    // A stable sort: the default first, the rest in their order.
    entries.sort_by_key(|(label, _)| Some(label) != default.as_ref());
    entries.into_iter().map(|(_, entry)| entry).collect()
}

/// The `linux` lines of a `grub.cfg` in their order. Arguments with shell variables in them are left out, as are
/// recovery entries.
pub(super) fn grub(text: &str) -> Vec<BootEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if !matches!(words.next()?, "linux" | "linux16" | "linuxefi") {
                return None;
            }
            let kernel = words.next()?.to_owned();
            let arguments: Vec<&str> = words.filter(|word| !word.contains('$')).collect();
            let recovery = arguments
                .iter()
                .any(|word| matches!(*word, "single" | "recovery" | "rescue"));
            (!recovery).then(|| BootEntry {
                kernel,
                arguments: arguments.join(" "),
            })
        })
        .collect()
}

/// A Boot Loader Specification entry (`loader/entries/*.conf`).
pub(super) fn loader_entry(text: &str) -> Option<BootEntry> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.trim().split_once(char::is_whitespace)?;
            (key == name).then(|| value.trim().to_owned())
        })
    };
    let arguments = field("options").unwrap_or_default();
    let arguments: Vec<&str> = arguments
        .split_whitespace()
        .filter(|word| !word.contains('$'))
        .collect();
    Some(BootEntry {
        kernel: field("linux")?,
        arguments: arguments.join(" "),
    })
}

/// The value of the last `root=` in a kernel command line.
pub(super) fn root_value(arguments: &str) -> Option<&str> {
    arguments
        .split_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("root="))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn os_release_is_unquoted() {
        let release = os_release(
            "# c\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\nX\n",
        );
        assert_eq!(
            release.pretty_name.unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(
            (
                release.id.unwrap().as_str(),
                release.version_id.unwrap().as_str()
            ),
            ("debian", "12")
        );
    }

    #[test]
    fn fstab_skips_comments() {
        let text = "#UUID=1 / ext4\n\nUUID=2 / ext4 defaults 0 1\nPARTUUID=3\t/boot ext4\n";
        assert_eq!(fstab_device(text, "/").unwrap(), "UUID=2");
        assert_eq!(fstab_device(text, "/boot").unwrap(), "PARTUUID=3");
        assert_eq!(fstab_device(text, "/home"), None);
    }

    #[test]
    fn the_default_extlinux_entry_comes_first() {
        let text = "DEFAULT b\nLABEL a\n  LINUX /a\n  APPEND root=/dev/a\nLABEL b\n  KERNEL /b\n  APPEND root=/dev/b quiet\n";
        let entries = extlinux(text);
        assert_eq!(
            entries[0],
            BootEntry {
                kernel: "/b".into(),
                arguments: "root=/dev/b quiet".into()
            }
        );
        assert_eq!(entries[1].kernel, "/a");
    }

    #[test]
    fn grub_entries_leave_out_variables_and_recovery() {
        let text = "menuentry x {\n\tlinux\t/boot/vmlinuz-6.1 root=UUID=9 ro $vt_handoff quiet\n}\n linux /v root=UUID=9 single\n";
        assert_eq!(
            grub(text),
            [BootEntry {
                kernel: "/boot/vmlinuz-6.1".into(),
                arguments: "root=UUID=9 ro quiet".into()
            }]
        );
    }

    #[test]
    fn the_last_root_counts() {
        assert_eq!(
            root_value("ro root=/dev/sda1 quiet root=UUID=5"),
            Some("UUID=5")
        );
        assert_eq!(root_value("ro rootwait"), None);
    }
}
