//! What the NBD server offers: `desktop/NAME` for each desktop with an open volume, `user/NAME` for its user volume, and read-only `version/ID` and `pool/POOL` for
//! every version that can boot here, so that IT can compare, copy or mount it.

use std::sync::Arc;

use dedup::VersionId;
use dedup_protocol::records::Tree;
use vmm_block::nbd::{Client, Export, ExportSource};
use vmm_block::{BlockDevice, BlockError, BlockErrorKind, Geometry, RangeStatus};

use crate::desktop::Desktops;
use crate::fetch::Fetcher;
use crate::fetch::base::CachedBase;
use crate::versions::Versions;
use crate::volume::Base;

/// See the module.
pub struct Exports {
    versions: Arc<Versions>,
    fetcher: Arc<Fetcher>,
    desktops: Arc<Desktops>,
}

impl Exports {
    /// Offers what these hold.
    pub fn new(versions: Arc<Versions>, fetcher: Arc<Fetcher>, desktops: Arc<Desktops>) -> Self {
        Self {
            versions,
            fetcher,
            desktops,
        }
    }

    fn version(&self, name: &str, id: VersionId) -> Option<Arc<Export>> {
        let tree = match self.versions.tree(id, Tree::Disk) {
            Ok(tree) => tree?,
            Err(error) => {
                tracing::error!(version = %id, error = crate::desktop::error_line(&error), "version cannot be exported");
                return None;
            }
        };
        let device = ReadOnly(CachedBase::new(tree, Arc::clone(&self.fetcher)));
        Export::new(name, "read-only version", Arc::new(device)).ok()
    }
}

impl ExportSource for Exports {
    fn find(&self, name: &str, _client: &Client) -> Option<Arc<Export>> {
        let (kind, rest) = name.split_once('/')?;
        match kind {
            "desktop" => self.desktops.volumes().export(rest),
            "user" => self.desktops.volumes().user_export(rest),
            "version" => self.version(name, rest.parse().ok()?),
            "pool" => self.version(name, self.desktops.pool_version(rest).ok()?.1),
            _ => None,
        }
    }

    fn list(&self, client: &Client) -> Vec<Arc<Export>> {
        let mut exports = self.desktops.volumes().exports();
        let pools = self
            .versions
            .assignment()
            .map(|a| a.pools.clone())
            .unwrap_or_default();
        for pool in pools {
            exports.extend(self.find(&format!("pool/{}", pool.pool), client));
        }
        exports
    }
}

/// A version by itself, without an overlay.
struct ReadOnly(CachedBase);

fn refused(what: &str) -> BlockError {
    let context = format!("{what}: versions never change; start a desktop to write");
    BlockError::new(BlockErrorKind::ReadOnly, context)
}

impl BlockDevice for ReadOnly {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.0.size_bytes(),
            block_bytes_min: 1,
            block_bytes_preferred: 64 << 10,
            read_only: true,
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read(offset, buf)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.0.try_read(offset, buf)
    }

    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Result<(), BlockError> {
        Err(refused("write"))
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), BlockError> {
        Err(refused("write zeroes"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Err(refused("discard"))
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<RangeStatus>, BlockError> {
        Ok(self.0.status(offset, len))
    }
}
