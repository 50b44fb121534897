//! The rules of a NAT, as nftables takes them. Pure: one text for a bridge and its subnet, put in force as a whole or not at all.
//!
//! Two tables of our own name; those of others are neither read nor changed, and what one of theirs drops stays dropped. In `bridge` each
//! place's tap may send only with its own hardware and IP address, and nothing from tap to tap. In `inet` desktops get DHCP, names and
//! ping from the branch, its other ports not; they reach what the host reaches, and only answers come back.

use std::fmt::Write;

use super::subnet::{Subnet, mac_of, mac_text, tap_of};

/// Before filters of others, which stand at 0: nothing of ours undoes theirs.
const PRIORITY: i32 = -5;

/// The name of both tables.
pub(super) fn table(bridge: &str) -> String {
    format!("splice_{bridge}")
}

/// Takes both tables away, whether they are there or not.
pub(super) fn removal(bridge: &str) -> String {
    let table = table(bridge);
    ["inet", "bridge"]
        .map(|family| format!("add table {family} {table}\ndelete table {family} {table}\n"))
        .concat()
}

/// Both tables, in the place of what is there under their names.
pub(super) fn ruleset(bridge: &str, subnet: Subnet) -> String {
    removal(bridge) + &between_networks(bridge, subnet) + &between_desktops(bridge, subnet)
}

fn between_networks(bridge: &str, subnet: Subnet) -> String {
    let (table, gateway) = (table(bridge), subnet.gateway());
    format!(
        "table inet {table} {{
	chain input {{
		type filter hook input priority {PRIORITY}; policy accept;
		iifname \"{bridge}\" jump desktops
	}}
	chain desktops {{
		ct state established,related accept
		ip daddr {gateway} udp dport 53 accept
		ip daddr {gateway} tcp dport 53 accept
		ip daddr {gateway} udp dport 67 accept
		ip daddr 255.255.255.255 udp dport 67 accept
		ip daddr {gateway} icmp type echo-request accept
		drop
	}}
	chain forward {{
		type filter hook forward priority {PRIORITY}; policy accept;
		iifname \"{bridge}\" oifname \"{bridge}\" drop
		iifname \"{bridge}\" meta nfproto ipv6 drop
		iifname \"{bridge}\" ip saddr != {subnet} drop
		oifname \"{bridge}\" ct state established,related accept
		oifname \"{bridge}\" drop
	}}
	chain postrouting {{
		type nat hook postrouting priority 100; policy accept;
		ip saddr {subnet} oifname != \"{bridge}\" masquerade
	}}
}}
"
    )
}

fn between_desktops(bridge: &str, subnet: Subnet) -> String {
    let (mut ports, mut cards, mut chains) = (String::new(), String::new(), String::new());
    for place in subnet.places() {
        let (tap, mac) = (tap_of(place), mac_text(mac_of(place)));
        let _ = write!(ports, "\"{tap}\", ");
        let _ = write!(cards, "\"{tap}\" : jump card_{tap}, ");
        let _ = write!(
            chains,
            "	chain card_{tap} {{
		ether saddr != {mac} drop
		ip saddr {place} accept
		arp saddr ether {mac} arp saddr ip {place} accept
		goto beginner
	}}
"
        );
    }
    let table = table(bridge);
    // A beginner has no address yet: it asks for one, and whether somebody else has it.
    format!(
        "table bridge {table} {{
	set ports {{
		type ifname
		elements = {{ {ports} }}
	}}
	map cards {{
		type ifname : verdict
		elements = {{ {cards} }}
	}}
	chain beginner {{
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
		arp saddr ip 0.0.0.0 accept
		drop
	}}
{chains}	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname vmap @cards
	}}
	chain forward {{
		type filter hook forward priority {PRIORITY}; policy accept;
		iifname @ports oifname @ports drop
	}}
}}
",
        ports = ports.trim_end_matches(", "),
        cards = cards.trim_end_matches(", "),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn each_place_may_speak_for_itself_only() {
        let rules = ruleset("splice0", "192.168.7.0/29".parse().unwrap());
        assert_eq!(rules.matches("chain card_").count(), 5);
        let chain = "	chain card_spc0a80703 {
		ether saddr != 52:53:c0:a8:07:03 drop
		ip saddr 192.168.7.3 accept
		arp saddr ether 52:53:c0:a8:07:03 arp saddr ip 192.168.7.3 accept
		goto beginner
	}
";
        assert!(rules.contains(chain), "{rules}");
        assert!(rules.contains("\"spc0a80703\" : jump card_spc0a80703, "));
        assert!(rules.contains("\"spc0a80706\" : jump card_spc0a80706 }"));
        assert!(rules.contains("oifname @ports drop"));
    }

    #[test]
    fn what_is_there_under_our_names_is_replaced_and_nothing_else_named() {
        let rules = ruleset("splice0", super::super::subnet::DEFAULT);
        assert!(rules.starts_with("add table inet splice_splice0\ndelete table inet splice_splice0\nadd table bridge splice_splice0\ndelete"));
        let tables = rules.lines().filter(|line| line.contains("table "));
        assert!(
            tables.clone().count() == 6
                && tables.clone().all(|line| line.contains("splice_splice0"))
        );
        assert!(!rules.contains("flush"));
        let open = rules.matches('{').count();
        assert_eq!(open, rules.matches('}').count());
    }
}
