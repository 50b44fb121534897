//! Which network desktops have here: the branch's choice, and its pools' where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::subnet::{self, Subnet};

/// Longest name of an interface, bytes.
const NAME_BYTES_MAX: usize = 15;

/// A desktop's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Choice {
    /// No card.
    #[default]
    None,
    /// A card at the branch's own bridge: desktops reach what the host reaches, and neither each other nor the branch's ports.
    Nat,
    /// A card at a bridge that somebody else has made.
    Bridge(String),
}

/// A pool whose choice is not the branch's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolChoice {
    /// The pool.
    pub pool: String,
    /// Its choice.
    pub choice: Choice,
}

/// A name that an interface can have here: no option of `ip` or word of `nft`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceName(pub String);

/// All that is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// For pools that are not named.
    pub default: Choice,
    /// For those that are.
    pub pools: BTreeMap<String, Choice>,
    /// The name of the NAT's bridge.
    pub nat_bridge: String,
    /// Its addresses.
    pub nat_subnet: Subnet,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default: Choice::None,
            pools: BTreeMap::new(),
            nat_bridge: "splice0".into(),
            nat_subnet: subnet::DEFAULT,
        }
    }
}

impl Settings {
    /// The choice for a pool.
    pub fn of(&self, pool: &str) -> &Choice {
        self.pools.get(pool).unwrap_or(&self.default)
    }

    /// A bridge of somebody else's at which desktops of more than one pool may be, where they reach each other. Behind the NAT they do not.
    pub fn shared_bridge(&self) -> Option<&str> {
        if let Choice::Bridge(name) = &self.default {
            return Some(name);
        }
        let mut seen = BTreeSet::new();
        self.pools.values().find_map(|choice| match choice {
            Choice::Bridge(name) if !seen.insert(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether any pool may be behind the NAT.
    pub fn has_nat(&self) -> bool {
        self.default == Choice::Nat || self.pools.values().any(|choice| *choice == Choice::Nat)
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Nat => f.write_str("nat"),
            Self::Bridge(bridge) => write!(f, "bridge={bridge}"),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "nat" => Ok(Self::Nat),
            Some(("bridge", name)) => Ok(Self::Bridge(name.parse::<InterfaceName>()?.0)),
            _ => Err(format!("{text:?}: none, nat and bridge=NAME are known")),
        }
    }
}

impl FromStr for PoolChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((pool, choice)) if !pool.is_empty() => Ok(Self {
                pool: pool.into(),
                choice: choice.parse()?,
            }),
            _ => Err(format!("{text:?}: POOL=none|nat|bridge=NAME is needed")),
        }
    }
}

impl std::fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = text.bytes();
        let begins = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if begins && bytes.all(plain) && text.len() <= NAME_BYTES_MAX {
            return Ok(Self(text.into()));
        }
        Err(format!(
            "{text:?}: an interface's name is 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', and begins with a letter"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn choices_are_words_and_bridges_have_names() {
        for text in ["none", "nat", "bridge=br0", "bridge=br-lan.7"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "Nat",
            "bridge",
            "bridge=",
            "bridge=-x",
            "bridge=a b",
            "bridge=a;b",
            "bridge=0123",
            "bridge=abcdefghijklmnop",
            "nat=1",
        ] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong:?}");
        }
        let pool: PoolChoice = "office=bridge=br0".parse().unwrap();
        assert_eq!(pool.pool, "office");
        assert_eq!(pool.choice, Choice::Bridge("br0".into()));
        assert!("=nat".parse::<PoolChoice>().is_err());
        assert!("office".parse::<PoolChoice>().is_err());
    }

    #[test]
    fn a_pool_has_its_own_choice_or_the_branch_s() {
        let mut settings = Settings::default();
        assert!(!settings.has_nat());
        settings.pools.insert("office".into(), Choice::Nat);
        assert!(settings.has_nat());
        assert_eq!(settings.of("office"), &Choice::Nat);
        assert_eq!(settings.of("lab"), &Choice::None);
    }

    #[test]
    fn pools_share_a_bridge_that_two_have_or_that_is_everybody_s() {
        let mut settings = Settings {
            default: Choice::Nat,
            ..Settings::default()
        };
        let bridge = |name: &str| Choice::Bridge(name.to_owned());
        settings.pools.insert("office".into(), bridge("br0"));
        settings.pools.insert("home".into(), bridge("br1"));
        assert_eq!(settings.shared_bridge(), None);
        settings.pools.insert("lab".into(), bridge("br0"));
        assert_eq!(settings.shared_bridge(), Some("br0"));
        settings.pools.clear();
        settings.default = bridge("br2");
        assert_eq!(settings.shared_bridge(), Some("br2"));
    }
}
