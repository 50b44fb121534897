//! Both ends of the control stream, fed frames of which each is a piece of the input.
#![no_main]

use dedup::BranchId;
use dedup_protocol::control::{BranchAction, BranchControl, DatacenterControl};
use dedup_protocol::trust::TrustAnchor;
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::REALM;
use splice_fuzz::script::Script;

fuzz_target!(|data: &[u8]| {
    let anchor = TrustAnchor {
        realm: REALM,
        root: [9; 32],
    };
    let mut branch = BranchControl::new(BranchId([1; 16]), anchor, Vec::new(), 0);
    let mut datacenter = DatacenterControl::new();
    let mut script = Script::new(data);
    loop {
        let frame = script.piece();
        if frame.is_empty() {
            return;
        }
        let followed = branch.handle(frame, 1_780_000_000);
        assert!(
            !matches!(
                followed,
                Ok(BranchAction::Follow(..)
                    | BranchAction::Admit(..)
                    | BranchAction::CheckedOut(..)
                    | BranchAction::Wipe(..))
            ),
            "nobody signed an assignment, a roster, a checkout or a wipe"
        );
        let _ = datacenter.handle(frame);
    }
});
