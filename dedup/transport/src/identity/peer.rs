//! The name in a certificate: which role, in which realm.
//!
//! ```text
//! splice://<realm, 32 hex digits>/datacenter
//! splice://<realm, 32 hex digits>/branch/<branch, 32 hex digits>
//! splice://<realm, 32 hex digits>/authority        the authority's own certificate; never a peer
//! ```
//! Invariant: a certificate has at most one URI of the scheme; one with two is refused, because whoever checks the first
//! and whoever checks the second would disagree about its holder.

use std::fmt;

use dedup::{BranchId, RealmId};
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::IdentityError;

const SCHEME: &str = "splice://";

/// Who holds a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerIdentity {
    /// The datacenter of a realm.
    Datacenter {
        /// Its realm.
        realm: RealmId,
    },
    /// A branch server.
    Branch {
        /// The realm that enrolled it.
        realm: RealmId,
        /// Which branch.
        branch: BranchId,
    },
}

impl PeerIdentity {
    /// The realm of either role.
    pub fn realm(&self) -> RealmId {
        match self {
            Self::Datacenter { realm } | Self::Branch { realm, .. } => *realm,
        }
    }

    /// The URI that certificates carry.
    pub fn uri(&self) -> String {
        match self {
            Self::Datacenter { realm } => format!("{SCHEME}{realm}/datacenter"),
            Self::Branch { realm, branch } => format!("{SCHEME}{realm}/branch/{branch}"),
        }
    }

    /// Reads the name of a certificate. Says nothing about who signed it.
    pub(crate) fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        match parse(&splice_uri(der)?) {
            Some(Name::Peer(identity)) => Ok(identity),
            _ => Err(IdentityError::NoIdentity {
                what: "certificate",
            }),
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Datacenter { realm } => write!(f, "the datacenter of realm {realm}"),
            Self::Branch { realm, branch } => write!(f, "branch {branch} of realm {realm}"),
        }
    }
}

/// The URI of an authority's certificate.
pub(super) fn authority_uri(realm: RealmId) -> String {
    format!("{SCHEME}{realm}/authority")
}

/// The realm whose authority this certificate claims to be.
pub(crate) fn authority_realm(der: &CertificateDer<'_>) -> Result<RealmId, IdentityError> {
    match parse(&splice_uri(der)?) {
        Some(Name::Authority(realm)) => Ok(realm),
        _ => Err(IdentityError::NoIdentity {
            what: "authority certificate",
        }),
    }
}

enum Name {
    Peer(PeerIdentity),
    Authority(RealmId),
}

fn parse(uri: &str) -> Option<Name> {
    let mut parts = uri.strip_prefix(SCHEME)?.split('/');
    let realm = parts.next()?.parse().ok()?;
    let name = match (parts.next()?, parts.next()) {
        ("datacenter", None) => Name::Peer(PeerIdentity::Datacenter { realm }),
        ("authority", None) => Name::Authority(realm),
        ("branch", Some(branch)) => Name::Peer(PeerIdentity::Branch {
            realm,
            branch: branch.parse().ok()?,
        }),
        _ => return None,
    };
    parts.next().is_none().then_some(name)
}

fn splice_uri(der: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let none = || IdentityError::NoIdentity {
        what: "certificate",
    };
    let certificate = EndEntityCert::try_from(der).map_err(|error| IdentityError::Unreadable {
        what: "certificate",
        reason: error.to_string(),
    })?;
    let mut uris = certificate
        .valid_uri_names()
        .filter(|uri| uri.starts_with(SCHEME));
    let uri = uris.next().ok_or_else(none)?;
    match uris.next() {
        None => Ok(uri.to_owned()),
        Some(_) => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn uris_round_trip_and_strays_are_refused() {
        let realm = RealmId([7; 16]);
        let branch = BranchId([9; 16]);
        for identity in [
            PeerIdentity::Datacenter { realm },
            PeerIdentity::Branch { realm, branch },
        ] {
            match parse(&identity.uri()) {
                Some(Name::Peer(parsed)) => assert_eq!(parsed, identity),
                _ => panic!("{} is not read back", identity.uri()),
            }
        }
        assert!(matches!(
            parse(&authority_uri(realm)),
            Some(Name::Authority(r)) if r == realm
        ));
        for stray in [
            "",
            "splice://",
            "splice://00/datacenter",
            "https://07070707070707070707070707070707/datacenter",
            "splice://07070707070707070707070707070707",
            "splice://07070707070707070707070707070707/",
            "splice://07070707070707070707070707070707/datacenter/",
            "splice://07070707070707070707070707070707/datacenter/x",
            "splice://07070707070707070707070707070707/branch",
            "splice://07070707070707070707070707070707/branch/zz",
            "splice://07070707070707070707070707070707/branch/09090909090909090909090909090909/x",
        ] {
            assert!(parse(stray).is_none(), "{stray:?}");
        }
    }
}
