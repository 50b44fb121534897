//! Text that people give: names, versions, ids, sizes and durations.
#![no_main]

use datacenter_api::units::{format_duration, format_size, parse_duration, parse_size};
use datacenter_api::{VersionRef, check_name};
use dedup::{BranchId, ChunkId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(version) = text.parse::<VersionRef>() {
        assert_eq!(version.to_string().parse().as_ref(), Ok(&version));
        assert_eq!(check_name("an image", &version.image), Ok(()));
        assert!(!version.image.contains(['/', '%', '\0']) && version.image != "..");
    }
    if let Ok(id) = text.parse::<ChunkId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(id) = text.parse::<BranchId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(bytes) = parse_size(text) {
        assert!(!format_size(bytes).is_empty());
    }
    if let Ok(duration) = parse_duration(text) {
        assert!(!format_duration(duration.as_secs()).is_empty());
    }
});
