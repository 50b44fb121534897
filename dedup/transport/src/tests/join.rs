//! Enrolment: from a CA hash to a link of one's own.

use super::{BRANCH, DAY, Realm, meet};
use crate::identity::{BranchKey, IdentityError, RealmCa, expires_at};
use crate::link::{Accepted, Class, LinkClient, LinkError, LinkTuning};

#[tokio::test]
async fn join_then_connect_with_the_issued_certificate() {
    let realm = Realm::new(7);
    let server = realm.server();
    let addr = server.local_addr().to_string();
    let tuning = LinkTuning::default();

    // The branch knows an address and a hash.
    let (accepted, link) = tokio::join!(
        async { server.accept().await.unwrap().establish().await },
        LinkClient::join(&addr, realm.ca.cert_hash(), &tuning)
    );
    let (link, Accepted::Join(there)) = (link.unwrap(), accepted.unwrap()) else {
        panic!("a join is not a branch");
    };
    assert_eq!(there.peer(), None);
    let authority = link.authority_pem().unwrap();
    assert_eq!(authority, realm.ca.cert_pem());

    let key = BranchKey::generate();
    let (issued, ()) = tokio::join!(
        async {
            let (mut send, mut recv) = link.open(Class::Demand).await.unwrap();
            send.send(key.csr_der()).await.unwrap();
            send.finish().unwrap();
            recv.recv(8192).await.unwrap().unwrap()
        },
        async {
            let (mut send, mut recv) = there.accept().await.unwrap();
            let csr = recv.recv(8192).await.unwrap().unwrap();
            let cert = realm.ca.issue_branch(BRANCH, &csr, DAY).unwrap();
            send.send(&cert).await.unwrap();
            send.finish().unwrap();
            send.delivered().await.unwrap();
        }
    );
    let identity = key.with_certificate(&issued).unwrap();
    link.close_and_wait("enrolled").await;
    assert_eq!(
        there.closed().await.to_string(),
        "closed by the peer: enrolled"
    );

    // From here on it is a branch.
    let client = LinkClient::new(&identity, &authority, realm.id, &tuning).unwrap();
    let (accepted, link) = meet(&server, &client).await;
    assert!(link.is_ok());
    assert!(matches!(accepted.unwrap(), Accepted::Branch(id, _) if id == BRANCH));
}

#[tokio::test]
async fn a_token_of_another_datacenter_is_refused() {
    // The other authority even claims the same realm; the hash tells them apart.
    let (ours, other) = (Realm::new(7), Realm::new(7));
    let server = other.server();
    let addr = server.local_addr().to_string();
    let tuning = LinkTuning::default();
    let (accepted, link) = tokio::join!(
        async { server.accept().await.unwrap().establish().await },
        LinkClient::join(&addr, ours.ca.cert_hash(), &tuning)
    );
    let error = link.unwrap_err();
    assert!(matches!(error, LinkError::WrongJoinAuthority), "{error}");
    assert!(error.is_permanent());
    assert!(accepted.is_err());
}

#[tokio::test]
async fn showing_the_right_authority_without_its_signature_is_not_enough() {
    // A man in the middle can copy the authority's certificate, not sign with it.
    let (ours, forger) = (Realm::new(7), Realm::new(7));
    let server = ours.server_showing(&forger.datacenter);
    let addr = server.local_addr().to_string();
    let tuning = LinkTuning::default();
    let (_, link) = tokio::join!(
        async { server.accept().await.unwrap().establish().await },
        LinkClient::join(&addr, ours.ca.cert_hash(), &tuning)
    );
    let error = link.unwrap_err();
    assert!(matches!(error, LinkError::WrongAuthority { .. }), "{error}");
}

#[test]
fn signing_requests_are_checked() {
    let realm = Realm::new(7);
    let issue = |csr: &[u8]| realm.ca.issue_branch(BRANCH, csr, DAY);
    let key = BranchKey::generate();
    assert!(issue(key.csr_der()).is_ok());

    let mut forged = key.csr_der().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for bad in [&forged[..], &key.csr_der()[..40], b"", &[0; 9000]] {
        assert!(matches!(
            issue(bad),
            Err(IdentityError::SigningRequest { .. })
        ));
    }

    // P-384 is sound, but not what we agreed on.
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&other)
        .unwrap();
    assert!(issue(csr.der()).is_err());

    // A certificate for somebody else's key cannot be adopted.
    let cert = issue(key.csr_der()).unwrap();
    assert!(matches!(
        BranchKey::generate().with_certificate(&cert),
        Err(IdentityError::KeyMismatch { .. })
    ));
}

#[test]
fn names_in_a_request_are_not_taken_over() {
    let realm = Realm::new(7);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![rcgen::SanType::URI(
        format!("splice://{}/datacenter", realm.id)
            .try_into()
            .unwrap(),
    )];
    let csr = params.serialize_request(&key).unwrap();
    let der = realm.ca.issue_branch(BRANCH, csr.der(), DAY).unwrap();
    let issued = crate::identity::CertAndKey {
        cert_pem: crate::identity::cert_pem(&der),
        key_pem: zeroize::Zeroizing::new(key.serialize_pem()),
    };
    assert_eq!(
        issued.identity().unwrap().to_string(),
        format!("branch {BRANCH} of realm {}", realm.id)
    );
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());
}

#[test]
fn an_authority_survives_its_files() {
    let realm = Realm::new(7);
    let again = RealmCa::from_pem(&realm.ca.cert_pem(), &realm.ca.key_pem()).unwrap();
    assert_eq!(again.cert_hash(), realm.ca.cert_hash());
    assert_eq!(again.realm(), realm.id);
    assert!(again.issue_datacenter(&[], DAY).is_ok());

    let other = RealmCa::create(realm.id).unwrap();
    assert!(matches!(
        RealmCa::from_pem(&realm.ca.cert_pem(), &other.key_pem()),
        Err(IdentityError::KeyMismatch { .. })
    ));
    assert!(RealmCa::from_pem(&realm.datacenter.cert_pem, &realm.datacenter.key_pem).is_err());
    assert!(RealmCa::from_pem("", "").is_err());
    assert!(matches!(
        realm.ca.issue_datacenter(&["not a name".to_owned()], DAY),
        Err(IdentityError::BadName { .. })
    ));
}

#[test]
fn expiry_is_read_back() {
    let realm = Realm::new(7);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let until = expires_at(&realm.branch.cert_pem).unwrap();
    assert!(until.abs_diff(now + DAY.as_secs()) < 60, "{until} {now}");
    assert!(expires_at("nonsense").is_err());
}
