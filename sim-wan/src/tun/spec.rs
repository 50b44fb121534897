//! A link's description as text: `name=branch-a,dc-ns=dc,branch-ns=a,dc-addr=10.77.1.1/30,branch-addr=10.77.1.2/30`.

use std::net::IpAddr;
use std::str::FromStr;

use super::TunError;

/// One link between a datacenter namespace and a branch namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// Its name, also the name of the TUN device at both ends: 1 to 15 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// The datacenter's namespace.
    pub dc_namespace: String,
    /// The branch's namespace.
    pub branch_namespace: String,
    /// The datacenter's address and prefix length.
    pub dc_address: (IpAddr, u8),
    /// The branch's address and prefix length.
    pub branch_address: (IpAddr, u8),
    /// A profile of its own, instead of the command's.
    pub profile: Option<String>,
    /// A seed of its own.
    pub seed: Option<u64>,
}

impl FromStr for LinkSpec {
    type Err = TunError;

    fn from_str(text: &str) -> Result<Self, TunError> {
        let error = |problem: String| TunError::Spec {
            spec: text.to_owned(),
            problem,
        };
        let mut name = None;
        let mut dc_namespace = None;
        let mut branch_namespace = None;
        let mut dc_address = None;
        let mut branch_address = None;
        let mut profile = None;
        let mut seed = None;
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| error(format!("{part:?} must be key=value")))?;
            let slot = match key {
                "name" => &mut name,
                "dc-ns" => &mut dc_namespace,
                "branch-ns" => &mut branch_namespace,
                "dc-addr" => &mut dc_address,
                "branch-addr" => &mut branch_address,
                "profile" => &mut profile,
                "seed" => &mut seed,
                _ => {
                    let known = "name, dc-ns, branch-ns, dc-addr, branch-addr, profile, seed";
                    return Err(error(format!("unknown key {key:?}; known keys: {known}")));
                }
            };
            if slot.replace(value).is_some() {
                return Err(error(format!("{key} is given twice")));
            }
        }
        let required = |key: &str, value: Option<&str>| match value {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(error(format!("{key} is missing"))),
        };
        let name = required("name", name)?;
        if name.len() > 15 || !is_plain(&name) {
            return Err(error(
                "name must be 1 to 15 letters, digits, '.', '_' or '-'".to_owned(),
            ));
        }
        let namespace = |key: &str, value| {
            required(key, value).and_then(|ns| {
                if is_plain(&ns) {
                    Ok(ns)
                } else {
                    Err(error(format!("{key} is not a namespace name")))
                }
            })
        };
        let address = |key: &str, value: Option<&str>| {
            let value = required(key, value)?;
            parse_address(&value).ok_or_else(|| {
                error(format!(
                    "{key} must be address/prefix, such as 10.77.1.1/30, not {value:?}"
                ))
            })
        };
        let spec = Self {
            dc_namespace: namespace("dc-ns", dc_namespace)?,
            branch_namespace: namespace("branch-ns", branch_namespace)?,
            dc_address: address("dc-addr", dc_address)?,
            branch_address: address("branch-addr", branch_address)?,
            profile: profile.map(str::to_owned),
            seed: match seed {
                None => None,
                Some(text) => Some(
                    text.parse()
                        .map_err(|_| error("seed must be a whole number".to_owned()))?,
                ),
            },
            name,
        };
        if spec.dc_namespace == spec.branch_namespace {
            return Err(error(
                "dc-ns and branch-ns must differ: one kernel would answer itself".to_owned(),
            ));
        }
        if spec.dc_address.0 == spec.branch_address.0 {
            return Err(error("dc-addr and branch-addr must differ".to_owned()));
        }
        if spec.dc_address.0.is_ipv4() != spec.branch_address.0.is_ipv4() {
            return Err(error(
                "dc-addr and branch-addr must both be IPv4 or both IPv6".to_owned(),
            ));
        }
        Ok(spec)
    }
}

fn is_plain(name: &str) -> bool {
    name != "."
        && name != ".."
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn parse_address(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let most = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= most).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "name=a,dc-ns=dc,branch-ns=b,dc-addr=10.77.1.1/30,branch-addr=10.77.1.2/30,profile=dsl,seed=7";

    #[test]
    fn a_full_description_is_understood() {
        let spec: LinkSpec = GOOD.parse().unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.dc_namespace.as_str()),
            ("a", "dc")
        );
        assert_eq!(spec.branch_address, ("10.77.1.2".parse().unwrap(), 30));
        assert_eq!((spec.profile.as_deref(), spec.seed), (Some("dsl"), Some(7)));
    }

    #[test]
    fn each_mistake_is_named() {
        let cases = [
            (GOOD.replace("name=a,", ""), "name is missing"),
            (
                GOOD.replace("name=a", "name=a name that is long"),
                "1 to 15",
            ),
            (GOOD.replace("dc-ns", "dc"), "unknown key \"dc\""),
            (
                GOOD.replace("branch-ns=b", "branch-ns=../b"),
                "not a namespace name",
            ),
            (GOOD.replace("branch-ns=b", "branch-ns=dc"), "must differ"),
            (GOOD.replace("10.77.1.1/30", "10.77.1.1"), "address/prefix"),
            (
                GOOD.replace("10.77.1.1/30", "10.77.1.1/33"),
                "address/prefix",
            ),
            (GOOD.replace("10.77.1.1/30", "fd00::1/64"), "both be IPv4"),
            (GOOD.replace("seed=7", "seed=x"), "whole number"),
            (GOOD.replace("seed=7", "name=b"), "given twice"),
        ];
        for (text, problem) in cases {
            let message = text.parse::<LinkSpec>().unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }
}
