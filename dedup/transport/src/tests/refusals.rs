//! Every pair of credentials that must not make a link, with the error that each end reports.

use super::{BRANCH, Realm, branch_of, days, meet};
use crate::identity::PeerIdentity;
use crate::link::{Accepted, LinkClient, LinkError, LinkServer, LinkTuning, Party};
use crate::tls::{JOIN_PROTOCOL_NAME, LINK_PROTOCOL_NAME};

#[tokio::test]
async fn both_ends_of_a_realm_accept_each_other() {
    let realm = Realm::new(1);
    let server = LinkServer::bind(
        "127.0.0.1:0".parse().unwrap(),
        &realm.datacenter,
        &realm.ca.cert_pem(),
        &LinkTuning::default(),
    )
    .unwrap();
    let client = LinkClient::new(
        &realm.branch,
        &realm.ca.cert_pem(),
        realm.id,
        &LinkTuning::default(),
    )
    .unwrap();
    let (accepted, link) = meet(&server, &client).await;
    let link = link.unwrap();
    assert_eq!(
        link.peer(),
        Some(PeerIdentity::Datacenter { realm: realm.id })
    );
    assert!(link.authority_pem().is_none());
    assert!(link.datagram_bytes_max().unwrap() > 1000);
    match accepted.unwrap() {
        Accepted::Branch(branch, there) => {
            assert_eq!(branch, BRANCH);
            assert!(there.datagram_bytes_max().unwrap() > 1000);
            link.send_datagram(bytes::Bytes::from_static(b"repair"))
                .unwrap();
            assert_eq!(there.recv_datagram().await.unwrap(), "repair");
            there.close("maintenance");
        }
        Accepted::Join(_) => panic!("an enrolled branch is not a join"),
    }
    let end = link.closed().await;
    assert_eq!(end.to_string(), "closed by the peer: maintenance");
    assert!(!end.is_permanent());
}

#[tokio::test]
async fn a_branch_told_not_to_come_back_knows_it() {
    let realm = Realm::new(1);
    let server = realm.server();
    let (accepted, link) = meet(&server, &realm.client()).await;
    let Accepted::Branch(_, there) = accepted.unwrap() else {
        panic!("an enrolled branch is not a join");
    };
    there.refuse("this branch was revoked by central IT");
    let end = link.unwrap().closed().await;
    assert_eq!(
        end.to_string(),
        "refused: this branch was revoked by central IT"
    );
    assert!(end.is_permanent());
}

#[tokio::test]
async fn an_expired_datacenter_is_refused() {
    let realm = Realm::new(1);
    let expired = realm.ca.issue_datacenter_at(&[], days(-20, -10)).unwrap();
    let server = realm.server_showing(&expired);
    let (accepted, link) = meet(&server, &realm.client()).await;
    for error in [accepted.unwrap_err(), link.unwrap_err()] {
        assert!(
            matches!(
                error,
                LinkError::CertificateExpired {
                    holder: Party::Datacenter,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn an_expired_or_future_branch_is_refused() {
    let realm = Realm::new(1);
    for (validity, word) in [(days(-20, -10), "ended"), (days(10, 20), "begins")] {
        let stale = branch_of(&realm.ca, Some(validity));
        let (accepted, link) = meet(&realm.server(), &realm.client_showing(&stale)).await;
        let (there, here) = (accepted.unwrap_err(), link.unwrap_err());
        assert!(there.to_string().contains(word), "{there}");
        for error in [there, here] {
            assert!(
                matches!(
                    error,
                    LinkError::CertificateExpired {
                        holder: Party::Branch,
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains("enrol the branch again"));
        }
    }
}

#[tokio::test]
async fn a_datacenter_of_another_realm_is_named() {
    let (ours, theirs) = (Realm::new(1), Realm::new(2));
    let (accepted, link) = meet(&theirs.server(), &ours.client()).await;
    let error = link.unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::ForeignRealm { holder: Party::Datacenter, expected, actual }
                if expected == ours.id && actual == theirs.id
        ),
        "{error}"
    );
    assert!(error.is_permanent());
    assert!(accepted.is_err());
}

#[tokio::test]
async fn a_branch_of_another_realm_is_named() {
    let (ours, theirs) = (Realm::new(1), Realm::new(2));
    let (accepted, link) = meet(&ours.server(), &ours.client_showing(&theirs.branch)).await;
    let error = accepted.unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::ForeignRealm { holder: Party::Branch, expected, actual }
                if expected == ours.id && actual == theirs.id
        ),
        "{error}"
    );
    let error = link.unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::WrongAuthority {
                holder: Party::Branch
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_authority_that_only_claims_our_realm_is_refused() {
    let (ours, forger) = (Realm::new(1), Realm::new(1));
    // Towards the branch.
    let (_, link) = meet(&forger.server(), &ours.client()).await;
    let error = link.unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::WrongAuthority {
                holder: Party::Datacenter
            }
        ),
        "{error}"
    );
    // Towards the datacenter.
    let (accepted, link) = meet(&ours.server(), &ours.client_showing(&forger.branch)).await;
    for error in [accepted.unwrap_err(), link.unwrap_err()] {
        assert!(
            matches!(
                error,
                LinkError::WrongAuthority {
                    holder: Party::Branch
                }
            ),
            "{error}"
        );
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn a_branch_cannot_pose_as_the_datacenter() {
    let realm = Realm::new(1);
    let (accepted, link) = meet(&realm.server_showing(&realm.branch), &realm.client()).await;
    let error = link.unwrap_err();
    assert_eq!(
        error.to_string(),
        "refused: the certificate presented is not a datacenter's"
    );
    assert!(accepted.is_err());
    assert!(
        LinkServer::bind(
            "127.0.0.1:0".parse().unwrap(),
            &realm.branch,
            &realm.ca.cert_pem(),
            &LinkTuning::default()
        )
        .is_err()
    );
}

#[tokio::test]
async fn the_datacenters_certificate_opens_no_branch_link() {
    let realm = Realm::new(1);
    let (accepted, link) = meet(&realm.server(), &realm.client_showing(&realm.datacenter)).await;
    assert_eq!(
        accepted.unwrap_err().to_string(),
        "refused: the certificate presented is not a branch's"
    );
    let error = link.unwrap_err();
    assert!(matches!(error, LinkError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_link_without_a_certificate_is_refused() {
    let realm = Realm::new(1);
    let server = realm.server();
    let addr = server.local_addr().to_string();
    let tuning = LinkTuning::default();
    let (accepted, link) = tokio::join!(
        async { server.accept().await.unwrap().establish().await },
        LinkClient::join_speaking(&addr, realm.ca.cert_hash(), &tuning, LINK_PROTOCOL_NAME)
    );
    for error in [accepted.unwrap_err(), link.unwrap_err()] {
        assert_eq!(
            error.to_string(),
            "refused: no branch certificate was presented"
        );
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn no_common_protocol_version_is_said_plainly() {
    let realm = Realm::new(1);
    let client = LinkClient::new_unchecked(
        &realm.branch,
        realm.authority(),
        &LinkTuning::default(),
        "splice/9",
    )
    .unwrap();
    let (accepted, link) = meet(&realm.server(), &client).await;
    assert_eq!(
        link.unwrap_err().to_string(),
        "this branch speaks splice/1, the datacenter does not: upgrade the older of the two, the datacenter first"
    );
    let error = accepted.unwrap_err();
    assert_eq!(
        error.to_string(),
        "this datacenter speaks splice/1, the program that called does not: upgrade that branch"
    );
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_datacenter_without_enrolment_refuses_joins_by_protocol() {
    let realm = Realm::new(1);
    let server = LinkServer::bind_unchecked(
        "127.0.0.1:0".parse().unwrap(),
        &realm.datacenter,
        crate::identity::certificate_from_pem(&realm.ca.cert_pem(), "test").unwrap(),
        &LinkTuning::default(),
        vec![LINK_PROTOCOL_NAME],
    )
    .unwrap();
    let addr = server.local_addr().to_string();
    let tuning = LinkTuning::default();
    let (_, link) = tokio::join!(
        async { server.accept().await.unwrap().establish().await },
        LinkClient::join_speaking(&addr, realm.ca.cert_hash(), &tuning, JOIN_PROTOCOL_NAME)
    );
    assert!(matches!(
        link.unwrap_err(),
        LinkError::ProtocolVersion {
            here: Party::Branch
        }
    ));
}

#[tokio::test]
async fn wrong_files_are_found_before_dialling() {
    let (ours, theirs) = (Realm::new(1), Realm::new(2));
    let tuning = LinkTuning::default();
    let new = |identity, ca: &Realm, realm| {
        LinkClient::new(identity, &ca.ca.cert_pem(), realm, &tuning).map(|_| ())
    };
    assert!(matches!(
        new(&ours.branch, &theirs, ours.id),
        Err(LinkError::ForeignRealm {
            holder: Party::Datacenter,
            ..
        })
    ));
    assert!(matches!(
        new(&theirs.branch, &ours, ours.id),
        Err(LinkError::ForeignRealm {
            holder: Party::Branch,
            ..
        })
    ));
    assert!(matches!(
        new(&ours.datacenter, &ours, ours.id),
        Err(LinkError::Identity(_))
    ));
    let torn = crate::identity::CertAndKey {
        cert_pem: ours.branch.cert_pem.clone(),
        key_pem: theirs.branch.key_pem.clone(),
    };
    assert_eq!(
        new(&torn, &ours, ours.id).unwrap_err().to_string(),
        "the certificate and its private key do not belong together"
    );
}
