//! What a generation begins with, read by the branch that holds it as versions are read.
//!
//! The row is there from the grant until the generation is forgotten, and never changes: generations are granted once. Nobody but the holder of the
//! newest generation is told of it.

use std::sync::Arc;

use dedup::{BranchId, ChunkerParams};
use dedup_protocol::records::VersionRecord;
use dedup_protocol::server::PublishedVersion;
use dedup_protocol::state::authority::AuthorityRow;
use dedup_protocol::state::began::{StateName, StateRecord};

use crate::catalog::CatalogError;
use crate::catalog::rows::BranchRow;
use crate::catalog::volumes::{BeginRow, GenerationKey, VolumeRow};
use crate::datacenter::Datacenter;

/// Where the row of such a state is.
pub(super) fn begin_key(state: StateName) -> GenerationKey {
    GenerationKey {
        volume: state.desktop,
        generation: state.generation,
    }
}

impl Datacenter {
    /// Whether a branch may read what a generation began with: it holds that generation, which is the newest.
    pub fn may_read_state(&self, branch: BranchId, state: StateName) -> Result<bool, CatalogError> {
        self.catalog().read(|tx| {
            let has_joined = tx
                .get::<BranchRow>(&branch)?
                .is_some_and(|row| row.revoked_unix_s.is_none() && row.joined_unix_s.is_some());
            let authority: Option<AuthorityRow> = tx.get(&state.desktop)?;
            let holder = authority
                .filter(|row| row.last == state.generation)
                .and_then(|row| row.holder);
            Ok(has_joined && holder.is_some_and(|holder| holder.branch == branch))
        })
    }

    /// What a generation began with, as answers to requests for versions take it. Of the volume's version it has the image, so that a branch is told
    /// what differs from a version of that, and nothing else.
    pub(crate) fn state_as_version(
        &self,
        state: StateName,
    ) -> Result<Option<PublishedVersion>, CatalogError> {
        let found = self.catalog().read(|tx| {
            let begin: Option<BeginRow> = tx.get(&begin_key(state))?;
            let volume: Option<VolumeRow> = tx.get(&state.desktop)?;
            Ok::<_, CatalogError>(begin.zip(volume))
        })?;
        let Some((begin, volume)) = found else {
            return Ok(None);
        };
        // One that is deleted is nobody's parent either.
        let version = volume
            .version
            .and_then(|version| self.version(version).ok().flatten());
        let image = version.and_then(|signed| signed.open_own().ok());
        let record = StateRecord {
            realm: self.realm(),
            desktop: state.desktop,
            generation: state.generation,
            base: begin.head,
            disk: begin.tree,
        };
        let signed = self.publisher().sign(&record).to_bytes();
        Ok(Some(PublishedVersion {
            signed: signed.into(),
            record: Arc::new(VersionRecord {
                realm: record.realm,
                image: image.map_or_else(String::new, |version| version.image),
                number: 0,
                parent: None,
                created_unix_s: 0,
                disk: begin.tree,
                params: ChunkerParams::default(),
                boot: None,
                os: None,
                data_bytes: 0,
            }),
        }))
    }
}
