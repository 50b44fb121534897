//! Who the desktop is: host name, machine id, and keys that differ from those of its clones.
//!
//! Desktops of a pool begin as copies of one image. What must differ between copies is made anew whenever the machine id that the branch tells is not
//! the one it was made for, and only then: a persistent desktop keeps its keys. It may be interrupted anywhere and is done again then.

use std::io;

use branch_guest::Identity;

use crate::root::Root;
use crate::tools::{LONG, ToolError, Tools};

/// Whom the host keys were made for.
const KEYS_OF: &str = "/var/lib/splice-agent/host-keys-of";

/// Why the identity is not whole.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("{path}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Host keys.
    #[error("host keys of ssh are not made")]
    Keys(#[from] ToolError),
}

fn io_error(path: &str) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { path, source }
}

/// Makes the desktop who it is to be; nothing happens if it is.
///
/// # Errors
/// The first thing that could not be done; the others are done.
pub fn apply(root: &Root, tools: &mut dyn Tools, identity: &Identity) -> Result<(), IdentityError> {
    let host_name = name(root, tools, identity.host_name.as_str());
    let id = identity.machine_id.to_string();
    let machine_id = machine_id(root, &id);
    let keys = host_keys(root, tools, &id);
    host_name.and(machine_id).and(keys)
}

fn name(root: &Root, tools: &mut dyn Tools, name: &str) -> Result<(), IdentityError> {
    const FILE: &str = "/etc/hostname";
    if root.line(FILE).as_deref() != Some(name) {
        let line = format!("{name}\n");
        root.write(FILE, &line, 0o644).map_err(io_error(FILE))?;
    }
    if root.line("/proc/sys/kernel/hostname").as_deref() != Some(name) {
        tools
            .set_host_name(name)
            .map_err(io_error("the kernel's host name"))?;
    }
    const HOSTS: &str = "/etc/hosts";
    if let Some(before) = root.text(HOSTS) {
        let after = hosts(&before, name);
        if after != before {
            root.write(HOSTS, &after, 0o644).map_err(io_error(HOSTS))?;
        }
    }
    Ok(())
}

/// Debian's line for a machine's own name says this one; all others are as they were.
fn hosts(before: &str, name: &str) -> String {
    let own = format!("127.0.1.1\t{name}");
    let mut said = false;
    let mut lines = Vec::new();
    for line in before.lines() {
        if line.split_whitespace().next() == Some("127.0.1.1") {
            if !said {
                lines.push(own.as_str());
            }
            said = true;
        } else {
            lines.push(line);
        }
    }
    if !said {
        lines.push(&own);
    }
    lines.join("\n") + "\n"
}

fn machine_id(root: &Root, id: &str) -> Result<(), IdentityError> {
    let line = format!("{id}\n");
    for file in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        let path = root.path(file);
        let kind = path.symlink_metadata().map(|m| m.file_type());
        // D-Bus's is a link to the other one as a rule, or is not there.
        let ours = file.starts_with("/etc/") || kind.is_ok_and(|kind| kind.is_file());
        if ours && root.line(file).as_deref() != Some(id) {
            root.write(file, &line, 0o444).map_err(io_error(file))?;
        }
    }
    Ok(())
}

fn host_keys(root: &Root, tools: &mut dyn Tools, id: &str) -> Result<(), IdentityError> {
    const FOLDER: &str = "/etc/ssh";
    if !root.path(FOLDER).is_dir() || root.line(KEYS_OF).as_deref() == Some(id) {
        return Ok(());
    }
    for name in root.names(FOLDER) {
        if name.starts_with("ssh_host_") && name.contains("_key") {
            let file = format!("{FOLDER}/{name}");
            root.remove(&file).map_err(io_error(&file))?;
        }
    }
    tools.run("ssh-keygen", &["-A"], LONG)?;
    let line = format!("{id}\n");
    root.write(KEYS_OF, &line, 0o600).map_err(io_error(KEYS_OF))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::fake::{FakeTools, identity};

    fn etc() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        root.write("/etc/hostname", "desktop\n", 0o644).unwrap();
        let hosts = "127.0.0.1\tlocalhost\n127.0.1.1\tdesktop\n::1\tlocalhost\n";
        root.write("/etc/hosts", hosts, 0o644).unwrap();
        root.write("/etc/machine-id", "", 0o444).unwrap();
        root.write("/etc/ssh/sshd_config", "x", 0o644).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub"] {
            let file = format!("/etc/ssh/{name}");
            root.write(&file, "of the image", 0o600).unwrap();
        }
        (folder, root)
    }

    #[test]
    fn a_clone_becomes_somebody_and_stays_so() {
        let (_folder, root) = etc();
        let mut tools = FakeTools::default();
        apply(&root, &mut tools, &identity("alice", 0xab)).unwrap();
        assert_eq!(root.line("/etc/hostname").unwrap(), "alice");
        let hosts = root.text("/etc/hosts").unwrap();
        assert_eq!(
            hosts,
            "127.0.0.1\tlocalhost\n127.0.1.1\talice\n::1\tlocalhost\n"
        );
        assert_eq!(root.line("/etc/machine-id").unwrap(), "ab".repeat(16));
        assert_eq!(root.names("/etc/ssh"), ["sshd_config"], "keys are gone");
        assert_eq!(tools.take(), ["hostname alice", "ssh-keygen -A"]);

        root.write("/etc/ssh/ssh_host_rsa_key", "own", 0o600)
            .unwrap();
        root.write("/proc/sys/kernel/hostname", "alice\n", 0o644)
            .unwrap();
        apply(&root, &mut tools, &identity("alice", 0xab)).unwrap();
        assert_eq!(tools.take(), [""; 0], "nothing is done twice");
        assert_eq!(root.line("/etc/ssh/ssh_host_rsa_key").unwrap(), "own");

        apply(&root, &mut tools, &identity("alice", 0xcd)).unwrap();
        assert_eq!(tools.take(), ["ssh-keygen -A"], "another machine");
    }

    #[test]
    fn what_fails_is_told_and_tried_again_and_the_rest_is_done() {
        let (_folder, root) = etc();
        let mut tools = FakeTools::default();
        tools.fail("ssh-keygen");
        let error = apply(&root, &mut tools, &identity("alice", 0xab)).unwrap_err();
        assert!(matches!(error, IdentityError::Keys(_)), "{error}");
        assert_eq!(root.line("/etc/machine-id").unwrap(), "ab".repeat(16));
        let mut tools = FakeTools::default();
        apply(&root, &mut tools, &identity("alice", 0xab)).unwrap();
        assert!(tools.take().contains(&"ssh-keygen -A".to_owned()));
    }

    #[test]
    fn without_ssh_there_are_no_keys_and_a_missing_line_is_added() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        root.write("/etc/hosts", "127.0.0.1 localhost\n", 0o644)
            .unwrap();
        let mut tools = FakeTools::default();
        apply(&root, &mut tools, &identity("bob", 1)).unwrap();
        assert_eq!(tools.take(), ["hostname bob"]);
        let hosts = root.text("/etc/hosts").unwrap();
        assert_eq!(hosts, "127.0.0.1 localhost\n127.0.1.1\tbob\n");
    }
}
