//! A realm, a server and a link between them, for the tests of this folder.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

use dedup::{BranchId, RealmId};
use dedup_transport::identity::{BranchKey, CertAndKey, RealmCa};
use dedup_transport::link::{Accepted, Link, LinkClient, LinkServer, LinkTuning};

const DAY: Duration = Duration::from_secs(86_400);

pub struct Realm {
    pub id: RealmId,
    pub ca: RealmCa,
    pub datacenter: CertAndKey,
    pub branch: CertAndKey,
}

impl Realm {
    pub fn new() -> Self {
        let id = RealmId([4; 16]);
        let ca = RealmCa::create(id).unwrap();
        let key = BranchKey::generate();
        let cert = ca
            .issue_branch(BranchId([5; 16]), key.csr_der(), DAY)
            .unwrap();
        Self {
            id,
            datacenter: ca.issue_datacenter(&[], DAY).unwrap(),
            branch: key.with_certificate(&cert).unwrap(),
            ca,
        }
    }

    pub fn server(&self, addr: SocketAddr, tuning: &LinkTuning) -> LinkServer {
        LinkServer::bind(addr, &self.datacenter, &self.ca.cert_pem(), tuning).unwrap()
    }

    pub fn client(&self, tuning: &LinkTuning) -> LinkClient {
        LinkClient::new(&self.branch, &self.ca.cert_pem(), self.id, tuning).unwrap()
    }
}

/// Both ends of an established link.
pub struct Pair {
    pub branch: Link,
    pub datacenter: Link,
    pub server: LinkServer,
    pub realm: Realm,
}

/// Any free port of loopback.
pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub async fn pair(tuning: &LinkTuning) -> Pair {
    let realm = Realm::new();
    let server = realm.server(loopback(), tuning);
    let addr = server.local_addr();
    pair_through(realm, server, addr, tuning).await
}

/// Links through `addr`, which leads to the server.
pub async fn pair_through(
    realm: Realm,
    server: LinkServer,
    addr: SocketAddr,
    tuning: &LinkTuning,
) -> Pair {
    let client = realm.client(tuning);
    let addr = addr.to_string();
    let (accepted, branch) = tokio::join!(accept(&server), client.connect(&addr));
    Pair {
        branch: branch.unwrap(),
        datacenter: accepted,
        server,
        realm,
    }
}

pub async fn accept(server: &LinkServer) -> Link {
    match server.accept().await.unwrap().establish().await.unwrap() {
        Accepted::Branch(_, link) => link,
        Accepted::Join(_) => panic!("an enrolled branch is not a join"),
    }
}
