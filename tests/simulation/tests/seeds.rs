//! Ten thousand small worlds, each with its own disks, line, cuts, deaths and guests; every one must end with identical bytes.

#![allow(clippy::unwrap_used, missing_docs)]

mod worlds;

use worlds::Worlds;

const WORLDS: Worlds = Worlds {
    test: "seeds",
    seeds: 10_000,
    run: simulation::run,
};

#[test]
fn every_world_ends_with_identical_bytes() {
    let Some((seeds, total)) = WORLDS.all() else {
        return;
    };
    // Worlds without trouble would have proven nothing.
    assert!(total.compared > seeds && total.cuts > seeds && total.site_deaths > seeds / 2);
    assert!(total.master_deaths > seeds / 4 && total.demanded > seeds);
}

#[test]
fn a_seed_is_one_run() {
    WORLDS.repeat(&[1, 77, 4_242]);
}
