//! Handshakes on loopback, with right and with deliberately wrong credentials.
//!
//! These live inside the crate because wrong credentials cannot be made, and not be presented, through the public API.
#![allow(clippy::unwrap_used, missing_docs)]

mod hostile;
mod join;
mod refusals;
mod secrets;

use std::time::Duration;

use dedup::{BranchId, RealmId};
use time::OffsetDateTime;

use crate::identity::{BranchKey, CertAndKey, RealmCa, Validity, certificate_from_pem};
use crate::link::{Accepted, Link, LinkClient, LinkError, LinkServer, LinkTuning};
use crate::tls::{JOIN_PROTOCOL_NAME, LINK_PROTOCOL_NAME};
use crate::verify::Authority;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const BRANCH: BranchId = BranchId([0xB1; 16]);
/// Longer than any handshake on loopback takes, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(10);

/// A realm with everything a handshake needs.
pub(crate) struct Realm {
    pub(crate) id: RealmId,
    pub(crate) ca: RealmCa,
    pub(crate) datacenter: CertAndKey,
    pub(crate) branch: CertAndKey,
}

impl Realm {
    pub(crate) fn new(number: u8) -> Self {
        let id = RealmId([number; 16]);
        let ca = RealmCa::create(id).unwrap();
        let datacenter = ca
            .issue_datacenter(&["localhost".to_owned(), "127.0.0.1".to_owned()], DAY)
            .unwrap();
        let branch = branch_of(&ca, None);
        Self {
            id,
            ca,
            datacenter,
            branch,
        }
    }

    pub(crate) fn server(&self) -> LinkServer {
        self.server_showing(&self.datacenter)
    }

    pub(crate) fn server_showing(&self, identity: &CertAndKey) -> LinkServer {
        LinkServer::bind_unchecked(
            "127.0.0.1:0".parse().unwrap(),
            identity,
            certificate_from_pem(&self.ca.cert_pem(), "test").unwrap(),
            &LinkTuning::default(),
            vec![LINK_PROTOCOL_NAME, JOIN_PROTOCOL_NAME],
        )
        .unwrap()
    }

    pub(crate) fn client(&self) -> LinkClient {
        self.client_showing(&self.branch)
    }

    pub(crate) fn client_showing(&self, identity: &CertAndKey) -> LinkClient {
        LinkClient::new_unchecked(
            identity,
            self.authority(),
            &LinkTuning::default(),
            LINK_PROTOCOL_NAME,
        )
        .unwrap()
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority::new(&certificate_from_pem(&self.ca.cert_pem(), "test").unwrap()).unwrap()
    }
}

pub(crate) fn branch_of(ca: &RealmCa, validity: Option<Validity>) -> CertAndKey {
    let key = BranchKey::generate();
    let der = match validity {
        Some(validity) => ca.issue_branch_at(BRANCH, key.csr_der(), validity),
        None => ca.issue_branch(BRANCH, key.csr_der(), DAY),
    };
    key.with_certificate(&der.unwrap()).unwrap()
}

/// A validity from so many days ago or ahead to so many days ago or ahead.
pub(crate) fn days(from: i64, to: i64) -> Validity {
    let now = OffsetDateTime::now_utc();
    Validity {
        not_before: now + time::Duration::days(from),
        not_after: now + time::Duration::days(to),
    }
}

/// One attempt, seen from both ends.
pub(crate) async fn meet(
    server: &LinkServer,
    client: &LinkClient,
) -> (Result<Accepted, LinkError>, Result<Link, LinkError>) {
    let addr = server.local_addr().to_string();
    tokio::time::timeout(PATIENCE, async {
        tokio::join!(
            async { server.accept().await.unwrap().establish().await },
            client.connect(&addr)
        )
    })
    .await
    .expect("a handshake on loopback ends soon, either way")
}
