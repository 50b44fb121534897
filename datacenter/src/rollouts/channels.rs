//! Channels: named places among an image's versions that pools follow.
//!
//! A channel says which version a pool runs that begins to follow it. Invariant: putting a channel elsewhere moves no pool; a rollout does, and puts the
//! channel there when it is done. A channel that is followed is not removed.

use std::collections::HashMap;

use datacenter_api::reference::VersionRefError;
use datacenter_api::{AssignRequest, Channel, ChannelRequest, VersionRef, check_name};
use dedup::VersionId;

use crate::assign::resolve;
use crate::catalog::rollouts::{ChannelKey, ChannelRow};
use crate::catalog::rows::{PoolRow, VersionRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Most channels of an image: they are for people to choose from.
const CHANNELS_MAX: usize = 32;
/// More than there are.
const ALL: usize = usize::MAX / 2;

impl Datacenter {
    /// The channels of an image, in the order of their names.
    pub fn channels(&self, image: &str) -> Result<Vec<Channel>, ManageError> {
        self.image(image)?;
        self.catalog().read(|tx| {
            let followers = followers(tx, image)?;
            let rows = tx.list::<ChannelRow>(&ChannelKey::prefix(image), None, CHANNELS_MAX)?;
            rows.iter()
                .map(|(key, row)| shown(tx, key, row, &followers))
                .collect()
        })
    }

    /// Puts a channel at a version; it is made if it is not there.
    pub fn set_channel(
        &self,
        image: &str,
        channel: &str,
        request: &ChannelRequest,
    ) -> Result<Channel, ManageError> {
        check_name("a channel", channel)?;
        let now = self.now_unix_s();
        let set = self.catalog().transact(|tx| {
            let (_, _, version) = resolve(tx, &format!("{image}@{}", request.number))?;
            let key = ChannelKey {
                image: image.to_owned(),
                channel: channel.to_owned(),
            };
            let prefix = ChannelKey::prefix(image);
            if tx.get::<ChannelRow>(&key)?.is_none()
                && tx.list::<ChannelRow>(&prefix, None, CHANNELS_MAX)?.len() == CHANNELS_MAX
            {
                return Err(ManageError::conflict(
                    format!("image {image:?} has {CHANNELS_MAX} channels already"),
                    format!("remove one first: `splice channel remove {image} NAME`"),
                ));
            }
            let row = ChannelRow {
                version,
                since_unix_s: now,
            };
            tx.put(&key, &row);
            let followers = followers(tx, image)?;
            shown(tx, &key, &row, &followers)
        })?;
        tracing::info!(image, channel, version = %set.version, "channel set");
        Ok(set)
    }

    /// Removes a channel that no pool follows.
    pub fn delete_channel(&self, image: &str, channel: &str) -> Result<(), ManageError> {
        self.catalog().transact(|tx| {
            require_channel(tx, image, channel)?;
            let following = followers(tx, image)?.get(channel).copied().unwrap_or(0);
            if following > 0 {
                return Err(ManageError::conflict(
                    format!("{following} pools follow channel {channel:?} of image {image:?}"),
                    "assign them with --channel of another one, or with --no-channel",
                ));
            }
            tx.delete::<ChannelRow>(&ChannelKey {
                image: image.to_owned(),
                channel: channel.to_owned(),
            });
            Ok(())
        })
    }
}

/// How many pools follow each channel of an image.
fn followers(tx: &mut Tx<'_>, image: &str) -> Result<HashMap<String, u64>, CatalogError> {
    let mut following = HashMap::new();
    for (_, pool) in tx.list::<PoolRow>(&[], None, ALL)? {
        if let Some(channel) = pool.channel.filter(|_| pool.image == image) {
            *following.entry(channel).or_default() += 1;
        }
    }
    Ok(following)
}

fn shown(
    tx: &mut Tx<'_>,
    key: &ChannelKey,
    row: &ChannelRow,
    followers: &HashMap<String, u64>,
) -> Result<Channel, ManageError> {
    let version: Option<VersionRow> = tx.get(&row.version)?;
    Ok(Channel {
        image: key.image.clone(),
        name: key.channel.clone(),
        version: version.map_or_else(
            || row.version.to_string(),
            |version| format!("{}@{}", version.image, version.number),
        ),
        version_id: row.version.to_string(),
        since_unix_s: row.since_unix_s,
        pools: followers.get(&key.channel).copied().unwrap_or(0),
    })
}

/// A channel of an image, or the error that says there is none.
pub(super) fn require_channel(
    tx: &mut Tx<'_>,
    image: &str,
    channel: &str,
) -> Result<ChannelRow, ManageError> {
    let key = ChannelKey {
        image: image.to_owned(),
        channel: channel.to_owned(),
    };
    tx.get(&key)?.ok_or_else(|| {
        ManageError::not_found(
            "channel",
            channel,
            format!(
                "`splice channel list {image}` shows those of the image; `splice channel set {image} {channel} NUMBER` makes one"
            ),
        )
    })
}

/// What a pool is to run, and which channel it follows: image, version, channel.
pub(crate) fn choose(
    tx: &mut Tx<'_>,
    request: &AssignRequest,
    before: Option<&PoolRow>,
) -> Result<(String, VersionId, Option<String>), ManageError> {
    let reference: VersionRef = request
        .version
        .parse()
        .map_err(|e: VersionRefError| ManageError::invalid(e.to_string()))?;
    let kept = before.filter(|row| row.image == reference.image);
    let channel = match request.channel.as_deref() {
        None => kept.and_then(|row| row.channel.clone()),
        Some("") => None,
        Some(name) => Some(name.to_owned()),
    };
    let Some(name) = channel else {
        let (image, _, version) = resolve(tx, &request.version)?;
        return Ok((image, version, None));
    };
    let row = require_channel(tx, &reference.image, &name)?;
    let version = if request.version.contains('@') {
        resolve(tx, &request.version)?.2
    } else {
        row.version
    };
    Ok((reference.image, version, Some(name)))
}
