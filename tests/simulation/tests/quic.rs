//! Two hundred worlds over real QUIC connections and a line of packets that loses, reorders, duplicates and is cut, with either end killed
//! at any moment; every one must end with identical bytes. They take ten to twenty seconds of a core.

#![allow(clippy::unwrap_used, missing_docs)]

mod worlds;

use worlds::Worlds;

const WORLDS: Worlds = Worlds {
    test: "quic",
    seeds: 200,
    run: simulation::run_over_quic,
};

#[test]
fn every_world_ends_with_identical_bytes() {
    let Some((seeds, total)) = WORLDS.all() else {
        return;
    };
    // Worlds without trouble would have proven nothing: of every kind of it there was some.
    assert!(total.compared > seeds && total.cuts > seeds && total.demanded > seeds);
    assert!(total.site_deaths > seeds / 2 && total.master_deaths > seeds / 4);
    let quic = total.quic;
    assert!(quic.packets > 1_000 * seeds && quic.lost > 10 * seeds && quic.cut_off > seeds);
    assert!(quic.reordered > 10 * seeds && quic.duplicated > 10 * seeds && quic.oversized > 0);
    assert!(quic.timeouts > seeds / 4 && quic.resets > seeds / 10 && quic.closed > seeds / 10);
    assert!(quic.rebound > seeds / 10 && quic.blocked > seeds);
}

/// But for the bytes of ephemeral keys, which nothing depends on.
#[test]
fn a_seed_is_one_run() {
    WORLDS.repeat(&[1, 77, 4_242]);
}
