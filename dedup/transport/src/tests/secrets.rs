//! Private keys stay out of logs.

use super::Realm;
use crate::identity::BranchKey;

#[test]
fn no_private_key_appears_in_debug_output() {
    let realm = Realm::new(3);
    let key = BranchKey::generate();
    let secrets = [
        realm.ca.key_pem(),
        realm.datacenter.key_pem.clone(),
        realm.branch.key_pem.clone(),
        key.key_pem(),
    ];
    let printed = format!(
        "{:?} {:?} {:?} {:?} {:?}",
        realm.ca,
        realm.datacenter,
        realm.branch,
        key,
        realm.client()
    );
    assert!(!printed.contains("PRIVATE KEY"), "{printed}");
    for secret in &secrets {
        for line in secret.lines().filter(|line| !line.starts_with('-')) {
            assert!(!printed.contains(line), "{printed}");
        }
    }
}

#[test]
fn the_https_configuration_checks_its_files() {
    let realm = Realm::new(3);
    assert!(crate::tls::https_server_config(&realm.datacenter).is_ok());
    let torn = crate::identity::CertAndKey {
        cert_pem: realm.datacenter.cert_pem.clone(),
        key_pem: realm.branch.key_pem.clone(),
    };
    assert!(crate::tls::https_server_config(&torn).is_err());
}

/// What a branch's portal shows browsers opens no link, in either role.
#[test]
fn a_portal_s_certificate_is_for_browsers_alone() {
    let realm = Realm::new(3);
    let names = ["desk.example.com".to_owned(), "192.0.2.7".to_owned()];
    let day = std::time::Duration::from_secs(86_400);
    let mut portal = realm.ca.issue_portal(&names, day).expect("good names");
    assert!(crate::tls::portal_server_config(&portal).is_ok());
    assert!(portal.identity().is_err(), "it names nobody of the realm");
    assert!(realm.ca.issue_portal(&[], day).is_err());
    assert!(realm.ca.issue_portal(&["a b".to_owned()], day).is_err());
    // What public authorities hand out: those above it behind it.
    portal.cert_pem.push_str(&realm.ca.cert_pem());
    assert_eq!(portal.above().expect("it is PEM").len(), 1);
    assert!(crate::tls::portal_server_config(&portal).is_ok());
    portal.key_pem = realm.branch.key_pem.clone();
    assert!(crate::tls::portal_server_config(&portal).is_err());
}
