//! JSON bodies of both management APIs. The first byte chooses the type; what parses is written back and parses again.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn parses<T: DeserializeOwned + Serialize>(json: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(json) {
        let text = serde_json::to_string(&value).expect("our own types serialise");
        // Not compared: the last bit of a fraction may change on the way through decimal digits.
        serde_json::from_str::<T>(&text).expect("what we wrote parses");
    }
}

fn same<T: DeserializeOwned + Serialize + PartialEq + Debug>(json: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(json) {
        let text = serde_json::to_string(&value).expect("our own types serialise");
        assert_eq!(
            serde_json::from_str::<T>(&text).expect("what we wrote parses"),
            value
        );
    }
}

const TYPES: [fn(&[u8]); 38] = [
    // Answers and reports, in the order of the modules.
    parses::<datacenter_api::BranchStatus>,
    parses::<datacenter_api::BranchList>,
    same::<datacenter_api::TokenRequest>,
    parses::<datacenter_api::TokenResponse>,
    same::<datacenter_api::AssignRequest>,
    same::<datacenter_api::PoolList>,
    same::<datacenter_api::CreateImage>,
    same::<datacenter_api::ImageList>,
    same::<datacenter_api::PublishRequest>,
    same::<datacenter_api::VersionList>,
    same::<datacenter_api::VersionDiff>,
    parses::<datacenter_api::Operation>,
    parses::<datacenter_api::OperationList>,
    parses::<datacenter_api::OperationResult>,
    same::<datacenter_api::DamagedItem>,
    parses::<datacenter_api::VerifyResult>,
    parses::<datacenter_api::PublishResult>,
    same::<datacenter_api::Problem>,
    parses::<datacenter_api::DatacenterStatus>,
    same::<branch_api::StartDesktop>,
    same::<branch_api::StopDesktop>,
    same::<branch_api::Desktop>,
    same::<branch_api::DesktopList>,
    same::<branch_api::Problem>,
    same::<branch_api::Prepare>,
    same::<branch_api::Prepared>,
    same::<branch_api::CacheReport>,
    // New ones at the end, so that seeds keep their meaning.
    same::<datacenter_api::BackupRequest>,
    same::<datacenter_api::BackupResult>,
    same::<datacenter_api::LogInRequest>,
    same::<datacenter_api::UserRequest>,
    same::<datacenter_api::ApiTokenRequest>,
    same::<datacenter_api::SetupRequest>,
    same::<datacenter_api::AuditList>,
    same::<branch_api::LogIn>,
    same::<datacenter_api::RolloutRequest>,
    same::<datacenter_api::RolloutPrice>,
    same::<datacenter_api::RolloutList>,
];

fuzz_target!(|data: &[u8]| {
    if let Some((&choice, json)) = data.split_first() {
        TYPES[usize::from(choice) % TYPES.len()](json);
    }
});
