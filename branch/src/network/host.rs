//! The host's own tools for its network: `ip`, `nft` and what is asked of them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::NetworkError;

/// Where programs for administrators are, which is not in everybody's path.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Whether this host passes packets on that are not for itself.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A program's file.
pub(super) fn program(name: &'static str) -> Result<PathBuf, NetworkError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    let mut files = folders.map(|folder| folder.join(name));
    files
        .find(|file| file.is_file())
        .ok_or(NetworkError::NoProgram {
            program: name,
            package: match name {
                "ip" => "iproute2",
                "nft" => "nftables",
                _ => "dnsmasq-base",
            },
        })
}

/// Runs a program with `input`; what it prints.
fn run(name: &'static str, arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let failed = |source| NetworkError::Io {
        what: format!("run {name}"),
        source,
    };
    let mut command = Command::new(program(name)?);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    // It prints nothing before it has read all, so that neither waits for the other. One that ends early says why.
    let written = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(NetworkError::Refused {
            line: format!("{name} {}", arguments.join(" ")),
            said: said.trim().lines().take(3).collect::<Vec<_>>().join("; "),
        });
    }
    written.transpose().map_err(failed)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `ip` with these words.
pub(super) fn ip(words: &str) -> Result<String, NetworkError> {
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    run("ip", &words, "")
}

/// Puts rules in force, all or none.
pub(super) fn nft(rules: &str) -> Result<(), NetworkError> {
    run("nft", &["-f", "-"], rules).map(drop)
}

/// Whether both tables of a NAT are in force.
pub(super) fn has_tables(table: &str) -> bool {
    let listed = run("nft", &["list", "tables"], "").unwrap_or_default();
    let has = |family: &str| {
        let wanted = format!("table {family} {table}");
        listed.lines().any(|line| line.trim() == wanted)
    };
    has("inet") && has("bridge")
}

/// What an interface is; `None` if there is none of the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    /// Whether it is a bridge.
    pub(super) is_bridge: bool,
    /// Its IPv4 addresses with their prefixes.
    pub(super) addresses: Vec<String>,
}

/// Looks at an interface. Not in /sys, which shows the network namespace that it was mounted in and no other.
pub(super) fn interface(name: &str) -> Option<Interface> {
    let text = ip(&format!("-j -d address show dev {name}")).ok()?;
    parse_interface(&text)
}

fn parse_interface(text: &str) -> Option<Interface> {
    let parsed: serde_json::Value = serde_json::from_str(text).ok()?;
    // Of some versions the list begins with empty objects.
    let links = parsed.as_array()?;
    let link = links.iter().find(|link| link["ifname"].is_string())?;
    let addresses = link["addr_info"].as_array().into_iter().flatten();
    let addresses = addresses.filter(|one| one["family"] == "inet");
    Some(Interface {
        is_bridge: link["linkinfo"]["info_kind"] == "bridge",
        addresses: addresses
            .filter_map(|one| Some(format!("{}/{}", one["local"].as_str()?, one["prefixlen"])))
            .collect(),
    })
}

/// Has the host pass packets on. True: it did not before.
pub(super) fn forward() -> Result<bool, NetworkError> {
    let failed = |source| NetworkError::Io {
        what: format!("set {FORWARDING} to 1"),
        source,
    };
    let path = Path::new(FORWARDING);
    if std::fs::read_to_string(path).map_err(failed)?.trim() == "1" {
        return Ok(false);
    }
    std::fs::write(path, "1").map_err(failed)?;
    Ok(true)
}

/// Keeps an interface off IPv6; nothing happens on a host without it.
pub(super) fn no_ipv6(name: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    let _ = std::fs::write(path, "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_read_from_what_ip_says() {
        let text = r#"[{},{"ifindex":3,"ifname":"splice0","linkinfo":{"info_kind":"bridge"},
            "addr_info":[{"family":"inet","local":"10.213.0.1","prefixlen":22},
            {"family":"inet6","local":"fe80::1","prefixlen":64},{"family":"inet"}]}]"#;
        let bridge = Interface {
            is_bridge: true,
            addresses: vec!["10.213.0.1/22".into()],
        };
        assert_eq!(parse_interface(text), Some(bridge));
        let plain = Interface {
            is_bridge: false,
            addresses: Vec::new(),
        };
        assert_eq!(parse_interface(r#"[{"ifname":"eth0"}]"#), Some(plain));
        for nothing in ["", "[]", "{}", "[{}]", "nonsense"] {
            assert_eq!(parse_interface(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let error = program("dnsmasq-that-nobody-has").map(drop);
        let error = error.map_err(|error| error.to_string());
        let text = error.expect_err("nobody has it");
        assert!(text.contains("package dnsmasq-base"), "{text}");
    }
}
