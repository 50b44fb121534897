//! `--net`: a tap's name, or the descriptor as which it was handed in, and options behind commas.

use std::str::FromStr;

use vmm::virtio::net;

/// One `--net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOption {
    /// The tap's name, or in its place a descriptor: [`net::inherited`].
    pub tap: String,
    /// The card's address, if it was given.
    pub mac: Option<net::Mac>,
    /// What it may do.
    pub limits: net::Limits,
}

impl FromStr for NetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut this = Self {
            tap: parts.next().unwrap_or_default().into(),
            mac: None,
            limits: net::Limits::default(),
        };
        if this.tap.starts_with("fd=") && net::inherited(&this.tap).is_none() {
            return Err(format!(
                "{:?}: fd=N is a tap that was handed in as descriptor N, 3 or more",
                this.tap
            ));
        }
        for part in parts {
            match part.split_once('=') {
                Some(("mac", address)) => this.mac = Some(mac(address)?),
                Some((name @ ("mbps" | "pps"), number)) => {
                    let number = positive(number);
                    let number = number.ok_or_else(|| format!("{part:?}: a number above 0"))?;
                    if name == "pps" {
                        this.limits.packets_per_s = Some(number);
                    } else {
                        this.limits.bytes_per_s = Some(number * (1_000_000 / 8));
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown option {part:?}: mac=ADDRESS, mbps=N and pps=N are known"
                    ));
                }
            }
        }
        Ok(this)
    }
}

/// A number of a limit.
pub fn positive(number: &str) -> Option<u64> {
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    // Far beyond any device, far below what cannot be counted.
    Some(number.min(u64::from(u32::MAX)))
}

fn mac(text: &str) -> Result<net::Mac, String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        })
        .collect();
    let bytes: Option<net::Mac> = bytes.and_then(|bytes| bytes.try_into().ok());
    match bytes {
        // The lowest bit of the first byte is of groups.
        Some(bytes) if bytes[0] & 1 == 0 => Ok(bytes),
        _ => Err(format!(
            "{text:?} is no hardware address of a card, such as 52:54:00:12:34:56"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_addresses_and_limits() {
        let card: NetOption = "tap0,mac=52:54:00:00:00:01,mbps=8,pps=1000"
            .parse()
            .expect("all are known");
        assert_eq!(card.tap, "tap0");
        assert_eq!(card.mac, Some([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(card.limits.bytes_per_s, Some(1_000_000));
        assert_eq!(card.limits.packets_per_s, Some(1000));
        let card: NetOption = "fd=7,mbps=8".parse().expect("a tap that was handed in");
        assert_eq!(net::inherited(&card.tap), Some(7));
        assert_eq!(card.limits.bytes_per_s, Some(1_000_000));
        for wrong in [
            "tap0,mbps=0",
            "tap0,pps=",
            "tap0,fast",
            "tap0,mac=1",
            "tap0,",
            "fd=",
            "fd=2",
            "fd=x,mbps=8",
        ] {
            let parsed: Result<NetOption, String> = wrong.parse();
            assert!(parsed.is_err(), "{wrong:?}");
        }
    }
}
