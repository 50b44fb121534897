//! Rows of channels and rollouts. `docs/disk-formats/catalog.md` tells their bytes.
//!
//! Invariant: a rollout's row and the pools that it decides about change in one transaction, so that none of them tells of a step that the others do not know.

use dedup::VersionId;
use serde::{Deserialize, Serialize};

use super::backend::Table;
use super::rows::{NewestFirst, Row, RowKey};
use crate::rollouts::machine::Rollout;

/// A channel of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelKey {
    /// The image.
    pub image: String,
    /// The channel's name.
    pub channel: String,
}

impl ChannelKey {
    /// What the keys of all channels of `image` begin with. Names have no zero byte.
    pub fn prefix(image: &str) -> Vec<u8> {
        let mut bytes = image.as_bytes().to_vec();
        bytes.push(0);
        bytes
    }
}

impl RowKey for ChannelKey {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::prefix(&self.image);
        bytes.extend_from_slice(self.channel.as_bytes());
        bytes
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let zero = bytes.iter().position(|byte| *byte == 0)?;
        Some(Self {
            image: String::decode(&bytes[..zero])?,
            channel: String::decode(&bytes[zero + 1..])?,
        })
    }
}

/// Which version a channel is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRow {
    /// What pools that begin to follow it run.
    pub version: VersionId,
    /// Since when, unix seconds.
    pub since_unix_s: u64,
}

impl Row for ChannelRow {
    const TABLE: Table = Table::Channels;
    type Key = ChannelKey;
}

/// Something that a rollout came by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// When, unix seconds.
    pub unix_s: u64,
    /// What, for people.
    pub text: String,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRow {
    /// The image.
    pub image: String,
    /// Number of the version that it brings.
    pub number: u32,
    /// The channel that is at that version once it is done.
    pub channel: Option<String>,
    /// Who began it.
    pub who: String,
    /// Why, in his words.
    pub reason: String,
    /// When it began, unix seconds.
    pub created_unix_s: u64,
    /// When it ended.
    pub ended_unix_s: Option<u64>,
    /// Where it stands.
    pub rollout: Rollout,
    /// How it came there, oldest first.
    pub history: Vec<HistoryRow>,
}

impl Row for RolloutRow {
    const TABLE: Table = Table::Rollouts;
    type Key = NewestFirst;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use dedup::BranchId;

    use super::super::rows::{decode, encode};
    use super::*;
    use crate::rollouts::health::Gate;
    use crate::rollouts::machine::{Cause, Site, SiteState, Stage};

    #[test]
    fn golden_rows() {
        let version = VersionId([0xaa; 32]);
        let channel = ChannelRow {
            version,
            since_unix_s: 300,
        };
        assert_eq!(
            hex::encode(encode(&channel)),
            format!("01{}ac02", "aa".repeat(32))
        );
        let row = RolloutRow {
            image: "deb".into(),
            number: 2,
            channel: Some("lts".into()),
            who: "al".into(),
            reason: "r".into(),
            created_unix_s: 1,
            ended_unix_s: Some(300),
            rollout: Rollout {
                target: version,
                gate: Gate {
                    boot: true,
                    log_in: false,
                    alive: true,
                    desktops: 1,
                    boot_s: 2,
                    soak_s: 3,
                    wait_s: 4,
                    failures: 5,
                },
                waves: 1,
                wave: 0,
                stage: Stage::Returned(Cause::Unhealthy),
                patience_unix_s: 6,
                sites: vec![Site {
                    branch: BranchId([0xbb; 16]),
                    pool: "p".into(),
                    wave: 0,
                    from: VersionId([0xcc; 32]),
                    had_from: true,
                    had_target: false,
                    state: SiteState::Returned,
                    since_unix_s: 7,
                    healthy: BTreeSet::new(),
                    failed: BTreeSet::from(["a".into()]),
                }],
            },
            history: vec![HistoryRow {
                unix_s: 8,
                text: "h".into(),
            }],
        };
        let (aa, bb, cc) = ("aa".repeat(32), "bb".repeat(16), "cc".repeat(32));
        let golden = format!(
            "01 03646562 02 01036c7473 02616c 0172 01 01ac02 {aa} 010001 01 02 03 04 05 01 00 0401 06 \
             01 {bb} 0170 00 {cc} 01 00 05 07 00 01 0161 01 08 0168"
        );
        let golden = golden.replace(' ', "");
        assert_eq!(hex::encode(encode(&row)), golden);
        assert_eq!(decode::<RolloutRow>(&encode(&row)).unwrap(), row);
    }

    #[test]
    fn channels_are_found_by_their_image() {
        let key = ChannelKey {
            image: "deb".into(),
            channel: "lts".into(),
        };
        assert_eq!(hex::encode(key.encode()), "646562006c7473");
        assert_eq!(ChannelKey::decode(&key.encode()), Some(key));
        assert_eq!(ChannelKey::decode(b"deb"), None);
    }
}
