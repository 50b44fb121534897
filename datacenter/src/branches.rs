//! Branches: inviting, enrolling, renewing, revoking, and what they report.
//!
//! Invariant: a join token pays for one certificate, and every certificate that a token pays for begins a new identity; when a
//! server replaces another, the identity before it is revoked in the same transaction.

use datacenter_api::{
    Branch, BranchKind as Kind, BranchState, BranchStatus, TokenRequest, TokenResponse, check_name,
};
use dedup::BranchId;
use dedup_protocol::join::JoinToken;
use dedup_transport::identity::IdentityError;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::catalog::rows::{
    AssignmentRow, BranchKind, BranchNameRow, BranchRow, BranchStatusRow, CertificateRow,
    JoinTokenRow, PoolKey, PoolRow, SecretHash, TokenUse,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::{ManageError, describe};
use crate::realm::random;

/// How long a join token may be used unless asked otherwise, in seconds: a day.
pub const TOKEN_VALIDITY_S: u64 = 86_400;
/// The longest that may be asked for, in seconds: 30 days.
pub const TOKEN_VALIDITY_S_MAX: u64 = 30 * 86_400;
/// Longest status report kept, in bytes of JSON: 200 desktops and 100 versions take a quarter of it.
pub const STATUS_BYTES_MAX: usize = 256 * 1024;

/// A branch that has just joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedBranch {
    /// Its id.
    pub branch: BranchId,
    /// Its name.
    pub name: String,
    /// Its certificate.
    pub cert_der: Vec<u8>,
}

/// Why a join token was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No such token was ever made here.
    #[error("the join token is not known; make a new one with `splice branch token NAME`")]
    Unknown,
    /// It paid for another server's certificate.
    #[error(
        "the join token of branch {name:?} was used already; make a new one with `splice branch token {name} --replace`"
    )]
    Used {
        /// The branch.
        name: String,
    },
    /// It is too old.
    #[error(
        "the join token of branch {name:?} has expired; make a new one with `splice branch token {name}`"
    )]
    Expired {
        /// The branch.
        name: String,
    },
    /// Another server joined under the name meanwhile.
    #[error(
        "branch {name:?} has joined already; to replace its server, make a token with `splice branch token {name} --replace`"
    )]
    Joined {
        /// The branch.
        name: String,
    },
    /// The certificate request was refused.
    #[error("certificate request")]
    Request(#[from] IdentityError),
    /// The catalog could not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The branch is revoked, or was never here.
    #[error("branch {branch} is not enrolled")]
    NotEnrolled {
        /// The branch.
        branch: BranchId,
    },
    /// The certificate request was refused.
    #[error("certificate request")]
    Request(#[from] IdentityError),
    /// The catalog could not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// SHA-256 of the public key that a request is for.
fn key_hash(csr_der: &[u8]) -> Result<[u8; 32], IdentityError> {
    let (_, request) =
        X509CertificationRequest::from_der(csr_der).map_err(|e| IdentityError::SigningRequest {
            reason: e.to_string(),
        })?;
    let key = request.certification_request_info.subject_pki.raw;
    Ok(SecretHash::of(key).0)
}

fn certificate_row(cert_der: &[u8]) -> Result<CertificateRow, IdentityError> {
    let (_, certificate) =
        X509Certificate::from_der(cert_der).map_err(|e| IdentityError::NotIssued {
            reason: format!("the new certificate is unreadable: {e}"),
        })?;
    let expires = certificate.validity().not_after.timestamp();
    Ok(CertificateRow {
        serial: certificate.raw_serial().to_vec(),
        expires_unix_s: u64::try_from(expires).unwrap_or(0),
    })
}

impl BranchRow {
    fn state(&self) -> BranchState {
        match (self.revoked_unix_s, self.joined_unix_s) {
            (Some(_), _) => BranchState::Revoked,
            (None, Some(_)) => BranchState::Joined,
            (None, None) => BranchState::Invited,
        }
    }
}

impl Datacenter {
    /// Makes a join token for the branch `name`, which need not exist yet. Only the hash of its secret is kept.
    pub fn create_join_token(
        &self,
        name: &str,
        request: &TokenRequest,
    ) -> Result<TokenResponse, ManageError> {
        check_name("a branch", name)?;
        let validity = request.expires_s.unwrap_or(TOKEN_VALIDITY_S);
        if validity == 0 || validity > TOKEN_VALIDITY_S_MAX {
            return Err(ManageError::invalid(format!(
                "a join token cannot hold for {validity} seconds; between 1 second and 30 days are possible"
            )));
        }
        if request.site.as_ref().is_some_and(|site| site.len() > 200) {
            return Err(ManageError::invalid(
                "the site's text is longer than 200 bytes",
            ));
        }
        let now = self.now_unix_s();
        let secret = random::<32>();
        let fresh = BranchId(random());
        let expires_unix_s = now + validity;
        self.catalog().transact(|tx| {
            let known = find_branch(tx, name)?;
            let (id, mut row) = match known {
                Some((_, row)) if row.revoked_unix_s.is_some() => (fresh, row.reinvited(now)),
                Some((_, row)) if row.joined_unix_s.is_some() && !request.replace => {
                    return Err(ManageError::conflict(
                        format!("branch {:?} has joined already", row.name),
                        format!("to replace its server: `splice branch token {name} --replace`"),
                    ));
                }
                Some(known) => known,
                None => (fresh, BranchRow::invited(name, now)),
            };
            if id == fresh
                && let Some((old, _)) = find_branch(tx, name)?
            {
                move_pools(self, tx, old, id, now)?;
            }
            if let Some(site) = &request.site {
                row.site = Some(site.clone());
            }
            if request.laptop && row.kind != BranchKind::Laptop {
                if row.joined_unix_s.is_some() {
                    return Err(ManageError::conflict(
                        format!("branch {:?} has joined as a site", row.name),
                        "invite the laptop under another name",
                    ));
                }
                row.kind = BranchKind::Laptop;
            }
            tx.put(&name.to_owned(), &BranchNameRow { branch: id });
            tx.put(&id, &row);
            tx.put(
                &SecretHash::of(&secret),
                &JoinTokenRow {
                    name: name.to_owned(),
                    created_unix_s: now,
                    expires_unix_s,
                    replace: request.replace,
                    used: None,
                },
            );
            Ok(())
        })?;
        let token = JoinToken {
            realm: self.realm(),
            ca_hash: self.ca().cert_hash(),
            secret,
            address: self.config().address.clone(),
        };
        Ok(TokenResponse {
            token: token.to_string(),
            branch: name.to_owned(),
            expires_unix_s,
        })
    }

    /// Enrols a branch: the token is used, the certificate issued and kept, in one transaction. The same token with a request for
    /// the same key gives the same certificate again, so that an answer lost on the way costs nothing.
    pub fn redeem_join_token(
        &self,
        secret: &[u8; 32],
        csr_der: &[u8],
        now_unix_s: u64,
    ) -> Result<JoinedBranch, JoinError> {
        let hash = SecretHash::of(secret);
        // An unknown token is refused before its bearer's request is looked at.
        if self
            .catalog()
            .read(|tx| tx.get::<JoinTokenRow>(&hash))?
            .is_none()
        {
            return Err(JoinError::Unknown);
        }
        let key_hash = key_hash(csr_der)?;
        let fresh = BranchId(random());
        let validity = self.config().branch_certificate_validity;
        let joined = self.catalog().transact(|tx| {
            let mut token: JoinTokenRow = tx.get(&hash)?.ok_or(JoinError::Unknown)?;
            let name = token.name.clone();
            if let Some(used) = &token.used {
                if used.key_hash != key_hash {
                    return Err(JoinError::Used { name });
                }
                return Ok(JoinedBranch {
                    branch: used.branch,
                    name,
                    cert_der: used.certificate_der.clone(),
                });
            }
            if now_unix_s > token.expires_unix_s {
                return Err(JoinError::Expired { name });
            }
            let (mut id, mut row) = find_branch(tx, &name)?.ok_or(JoinError::Unknown)?;
            if row.revoked_unix_s.is_some() {
                // Revoked after the token was made: the token goes with the branch.
                return Err(JoinError::Unknown);
            }
            if row.joined_unix_s.is_some() {
                if !token.replace {
                    return Err(JoinError::Joined { name });
                }
                let mut replaced = row.clone();
                replaced.revoked_unix_s = Some(now_unix_s);
                tx.put(&id, &replaced);
                move_pools(self, tx, id, fresh, now_unix_s)?;
                id = fresh;
                row = row.reinvited(now_unix_s);
                tx.put(&name, &BranchNameRow { branch: id });
            }
            let cert_der = self.ca().issue_branch(id, csr_der, validity)?;
            row.joined_unix_s = Some(now_unix_s);
            row.certificate = Some(certificate_row(&cert_der)?);
            tx.put(&id, &row);
            token.used = Some(TokenUse {
                unix_s: now_unix_s,
                key_hash,
                branch: id,
                certificate_der: cert_der.clone(),
            });
            tx.put(&hash, &token);
            Ok(JoinedBranch {
                branch: id,
                name,
                cert_der,
            })
        })?;
        tracing::info!(branch = %joined.name, id = %joined.branch, "branch joined");
        self.announce_assignments();
        Ok(joined)
    }

    /// Issues a new certificate to an enrolled branch.
    pub fn renew_branch_certificate(
        &self,
        branch: BranchId,
        csr_der: &[u8],
    ) -> Result<Vec<u8>, RenewError> {
        let validity = self.config().branch_certificate_validity;
        self.catalog().transact(|tx| {
            let row: Option<BranchRow> = tx.get(&branch)?;
            let mut row = row
                .filter(|row| row.state() == BranchState::Joined)
                .ok_or(RenewError::NotEnrolled { branch })?;
            let cert_der = self.ca().issue_branch(branch, csr_der, validity)?;
            row.certificate = Some(certificate_row(&cert_der)?);
            tx.put(&branch, &row);
            Ok(cert_der)
        })
    }

    /// Whether a branch must be refused: it is revoked, has never joined, or is not known at all.
    pub fn is_revoked(&self, branch: BranchId) -> Result<bool, CatalogError> {
        let row = self.catalog().read(|tx| tx.get::<BranchRow>(&branch))?;
        Ok(row.is_none_or(|row| row.state() != BranchState::Joined))
    }

    /// Refuses a branch from now on. Links that are up are for the sync server to cut: it hears of it by
    /// [`Self::assignment_changes`].
    pub fn revoke_branch(&self, name: &str) -> Result<Branch, ManageError> {
        let now = self.now_unix_s();
        self.catalog().transact(|tx| {
            let (id, mut row) = require_branch(tx, name)?;
            if row.revoked_unix_s.is_none() {
                row.revoked_unix_s = Some(now);
                tx.put(&id, &row);
            }
            Ok::<_, ManageError>(())
        })?;
        self.announce_assignments();
        self.branch(name)
    }

    /// Keeps what a branch reports about itself.
    pub fn record_branch_status(
        &self,
        branch: BranchId,
        mut status: BranchStatus,
    ) -> Result<(), ManageError> {
        if let Some(introduction) = status.introduction.take()
            && let Err(error) = self.take_introduction(branch, &introduction)
        {
            tracing::warn!(%branch, error = describe(&error), "what a branch says of itself was not taken");
        }
        let json = serde_json::to_string(&status).expect("text and numbers serialise");
        if json.len() > STATUS_BYTES_MAX {
            return Err(ManageError::invalid(format!(
                "a status report of {} bytes, at most {STATUS_BYTES_MAX} are kept",
                json.len()
            )));
        }
        let received_unix_s = self.now_unix_s();
        let row = BranchStatusRow {
            received_unix_s,
            json,
        };
        self.catalog().transact_relaxed(|tx| {
            tx.put(&branch, &row);
            Ok::<_, CatalogError>(())
        })?;
        let desktops = status.desktops.clone();
        self.statuses().insert(branch, (received_unix_s, status));
        // Behind what it runs: that is what it may read.
        self.register_volumes(branch, &desktops);
        Ok(())
    }

    /// What a branch last reported, and when that came.
    pub fn branch_status(
        &self,
        branch: BranchId,
    ) -> Result<Option<(u64, BranchStatus)>, CatalogError> {
        self.catalog().read(|tx| self.status_of(tx, branch))
    }

    /// The same for who is in a transaction already: a second one in it would wait for a writer that waits for the first.
    pub(crate) fn status_of(
        &self,
        tx: &mut Tx<'_>,
        branch: BranchId,
    ) -> Result<Option<(u64, BranchStatus)>, CatalogError> {
        if let Some(status) = self.statuses().get(&branch) {
            return Ok(Some(status.clone()));
        }
        let row = tx.get::<BranchStatusRow>(&branch)?;
        // A report of another program version that cannot be read is as good as none: the next one comes soon.
        Ok(row.and_then(|row| {
            let status = serde_json::from_str(&row.json).ok()?;
            Some((row.received_unix_s, status))
        }))
    }

    /// One branch.
    pub fn branch(&self, name: &str) -> Result<Branch, ManageError> {
        self.catalog().read(|tx| {
            let (id, row) = require_branch(tx, name)?;
            self.show_branch(tx, id, &row)
        })
    }

    /// At most `limit` branches after the name `after`.
    pub fn branches(&self, after: Option<&str>, limit: usize) -> Result<Vec<Branch>, ManageError> {
        let after = after.map(str::to_owned);
        self.catalog().read(|tx| {
            let names = tx.list::<BranchNameRow>(&[], after.as_ref(), limit)?;
            let mut branches = Vec::with_capacity(names.len());
            for (_, BranchNameRow { branch }) in names {
                if let Some(row) = tx.get::<BranchRow>(&branch)? {
                    branches.push(self.show_branch(tx, branch, &row)?);
                }
            }
            Ok(branches)
        })
    }

    fn show_branch(
        &self,
        tx: &mut Tx<'_>,
        id: BranchId,
        row: &BranchRow,
    ) -> Result<Branch, ManageError> {
        let assignment = tx.get::<AssignmentRow>(&id)?;
        Ok(Branch {
            id: id.to_string(),
            name: row.name.clone(),
            site: row.site.clone(),
            kind: match row.kind {
                BranchKind::Site => Kind::Site,
                BranchKind::Laptop => Kind::Laptop,
            },
            state: row.state(),
            created_unix_s: row.created_unix_s,
            joined_unix_s: row.joined_unix_s,
            revoked_unix_s: row.revoked_unix_s,
            certificate_expires_unix_s: row.certificate.as_ref().map(|c| c.expires_unix_s),
            online: self.link_remote(id).is_some(),
            remote_address: self.link_remote(id).map(|remote| remote.to_string()),
            pools: self.show_pools(tx, id)?,
            policy: crate::policy::show_policy(&crate::policy::policy_of(tx, id)?),
            assignment_counter: assignment.map_or(0, |a| a.counter),
            ahead: crate::restored::show_ahead(tx, id)?,
            status: self.status_of(tx, id)?.map(|(_, status)| status),
        })
    }
}

impl BranchRow {
    /// A branch that nobody has joined as yet.
    pub(crate) fn invited(name: &str, now_unix_s: u64) -> Self {
        Self {
            name: name.to_owned(),
            site: None,
            created_unix_s: now_unix_s,
            joined_unix_s: None,
            certificate: None,
            revoked_unix_s: None,
            kind: BranchKind::Site,
        }
    }

    /// The same branch with a new identity that nobody holds yet.
    fn reinvited(&self, now_unix_s: u64) -> Self {
        Self {
            site: self.site.clone(),
            kind: self.kind,
            ..Self::invited(&self.name, now_unix_s)
        }
    }
}

/// The branch that has `name` now.
pub(crate) fn find_branch(
    tx: &mut Tx<'_>,
    name: &str,
) -> Result<Option<(BranchId, BranchRow)>, CatalogError> {
    let Some(BranchNameRow { branch }) = tx.get(&name.to_owned())? else {
        return Ok(None);
    };
    Ok(tx.get::<BranchRow>(&branch)?.map(|row| (branch, row)))
}

/// As [`find_branch`], or the error that says there is none.
pub(crate) fn require_branch(
    tx: &mut Tx<'_>,
    name: &str,
) -> Result<(BranchId, BranchRow), ManageError> {
    find_branch(tx, name)?.ok_or_else(|| {
        ManageError::not_found(
            "branch",
            name,
            "`splice branch list` shows the branches; `splice branch token NAME` invites one",
        )
    })
}

/// Gives a branch's pools and policy to the identity that replaces it.
fn move_pools(
    datacenter: &Datacenter,
    tx: &mut Tx<'_>,
    from: BranchId,
    to: BranchId,
    now_unix_s: u64,
) -> Result<(), CatalogError> {
    crate::policy::move_policy(tx, from, to)?;
    let pools = tx.list::<PoolRow>(from.as_bytes(), None, crate::assign::POOLS_MAX)?;
    if pools.is_empty() {
        return Ok(());
    }
    for (PoolKey { pool, .. }, row) in pools {
        tx.put(&PoolKey { branch: to, pool }, &row);
    }
    datacenter.sign_assignment(tx, to, now_unix_s)
}
