//! Boot profiles. The first byte chooses: encoded entries of one or more boots, which are merged; or the content of a signed profile.
#![no_main]

use dedup::VersionId;
use dedup_protocol::profile::{
    AT_MS_MAX, BOOTS_MAX, BootProfile, ENTRIES_MAX, Entries, RECORDING_BYTES_MAX, accept, merge,
};
use dedup_protocol::trust::{SigningKey, TrustAnchor};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::REALM;

fn check(entries: &Entries) {
    assert!(entries.len() <= ENTRIES_MAX);
    let slice = entries.as_slice();
    assert!(slice.is_sorted_by(|a, b| (a.at_ms, a.place) < (b.at_ms, b.place)));
    assert!(slice.iter().all(|e| e.at_ms <= AT_MS_MAX && e.seen > 0));
    assert_eq!(Entries::decode(&entries.encode()).as_ref(), Ok(entries));
    assert_eq!(&Entries::new(slice.to_vec()), entries);
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    if choice & 1 == 1 {
        let (root, _) = SigningKey::generate();
        let anchor = TrustAnchor {
            realm: REALM,
            root: root.public(),
        };
        let asked = VersionId([1; 32]);
        assert!(
            accept(data, asked, 0, &anchor, &[], 1).is_err(),
            "nobody signed this"
        );
        return;
    }
    // The higher bits say into how many boots the rest is cut.
    let boots = usize::from(choice >> 1) % BOOTS_MAX + 1;
    let boots: Vec<Entries> = data
        .chunks(data.len() / boots + 1)
        .filter_map(|part| Entries::decode(part).ok())
        .collect();
    for boot in &boots {
        check(boot);
        let short = boot.clone().within(40);
        assert!(short.encode().len() <= 40);
        assert!(boot.clone().within(RECORDING_BYTES_MAX).len() <= boot.len());
    }
    let merged = merge(&boots, 1);
    check(&merged);
    let mut turned = boots.clone();
    turned.reverse();
    assert_eq!(merge(&turned, 1), merged);
    let profile = BootProfile {
        realm: REALM,
        version: VersionId([1; 32]),
        counter: 1,
        made_unix_s: 1,
        boots: boots.len() as u32,
        carried_from: None,
        entries: merged,
    };
    let (publisher, _) = SigningKey::generate();
    assert_eq!(publisher.sign(&profile).open_own(), Ok(profile));
});
