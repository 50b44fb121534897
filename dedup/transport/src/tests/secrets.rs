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
