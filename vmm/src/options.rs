//! Options of devices as they are written on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use vmm::virtio::block::Limits;
use vmm::virtio::console::PortSpec;

/// Where a disk's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A raw file.
    File(PathBuf),
    /// A server's socket.
    VhostUser(PathBuf),
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOption {
    /// Where its bytes come from.
    pub source: DiskSource,
    /// Writes are refused.
    pub read_only: bool,
    /// Serial number.
    pub serial: String,
    /// How much it may do.
    pub limits: Limits,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().filter(|first| !first.is_empty());
        let first = first.ok_or("a file or vhost-user=SOCKET is needed")?;
        let source = match first.strip_prefix("vhost-user=") {
            Some("") => return Err("vhost-user needs the path of a socket".into()),
            Some(socket) => DiskSource::VhostUser(socket.into()),
            None => DiskSource::File(first.into()),
        };
        let mut this = Self {
            source,
            read_only: false,
            serial: String::new(),
            limits: Limits::default(),
        };
        let positive = |number: &str| {
            let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
            // Far beyond any disk, far below what cannot be counted.
            Some(number.min(u64::from(u32::MAX)))
        };
        for part in parts {
            if matches!(this.source, DiskSource::VhostUser(_)) {
                return Err(format!(
                    "{part:?}: the server of a vhost-user disk decides on that"
                ));
            }
            match part.split_once('=') {
                None if part == "readonly" => this.read_only = true,
                Some(("serial", serial)) if serial.len() <= 20 => this.serial = serial.into(),
                Some(("serial", _)) => return Err("a serial number has 20 bytes at most".into()),
                Some((name @ ("iops" | "mbps"), number)) => {
                    let number = positive(number);
                    let number = number.ok_or_else(|| format!("{part:?}: a number above 0"))?;
                    if name == "iops" {
                        this.limits.requests_per_s = Some(number);
                    } else {
                        this.limits.bytes_per_s = Some(number * 1_000_000);
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown option {part:?}: readonly, serial=TEXT, iops=N and mbps=N are known"
                    ));
                }
            }
        }
        Ok(this)
    }
}

/// One `--net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOption {
    /// The interface's name.
    pub tap: String,
    /// Hardware address, if one was chosen.
    pub mac: Option<[u8; 6]>,
}

impl FromStr for NetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tap, options) = text.split_once(',').unwrap_or((text, ""));
        let mac = match options.strip_prefix("mac=") {
            Some(address) => Some(mac(address)?),
            None if options.is_empty() => None,
            None => return Err(format!("unknown option {options:?}: mac=ADDRESS is known")),
        };
        Ok(Self {
            tap: tap.into(),
            mac,
        })
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        })
        .collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    match bytes {
        // The lowest bit of the first byte is of groups.
        Some(bytes) if bytes[0] & 1 == 0 => Ok(bytes),
        _ => Err(format!(
            "{text:?} is no hardware address of a card, such as 52:54:00:12:34:56"
        )),
    }
}

/// One `--port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOption(pub PortSpec);

impl FromStr for PortOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, socket)) if !name.is_empty() && name.len() <= 64 && !socket.is_empty() => {
                Ok(Self(PortSpec {
                    name: name.into(),
                    socket: socket.into(),
                }))
            }
            _ => Err("NAME=PATH is needed, such as org.qemu.guest_agent.0=agent.sock".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskOption, String> {
        text.parse()
    }

    #[test]
    fn disks_are_files_with_options_or_sockets() {
        let disk = parse("a.raw,readonly,serial=one,iops=500,mbps=20").expect("all are known");
        assert_eq!(disk.source, DiskSource::File("a.raw".into()));
        assert!(disk.read_only);
        assert_eq!(disk.serial, "one");
        assert_eq!(disk.limits.requests_per_s, Some(500));
        assert_eq!(disk.limits.bytes_per_s, Some(20_000_000));
        let disk = parse("vhost-user=/run/disk.sock").expect("a socket");
        assert_eq!(disk.source, DiskSource::VhostUser("/run/disk.sock".into()));
        for wrong in [
            "",
            "vhost-user=",
            "vhost-user=a,readonly",
            "a,iops=0",
            "a,mbps=many",
            "a,iops=-1",
            "a,fast",
            "a,serial=123456789012345678901",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
