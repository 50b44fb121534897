//! Text that people give: names, versions, ids, sizes, durations, roles, and lines of exported audit logs.
#![no_main]

use datacenter_api::audit::{Verifier, hex, parse_kept};
use datacenter_api::units::{format_duration, format_size, parse_duration, parse_size};
use datacenter_api::{AuditLine, Grant, VersionRef, check_name};
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
    if let Ok(grant) = text.parse::<Grant>() {
        assert_eq!(grant.to_string().parse().as_ref(), Ok(&grant));
    }
    if let Ok(line) = text.parse::<AuditLine>() {
        assert_eq!(line.to_string().parse().as_ref(), Ok(&line));
        // Whatever it says, one line is either believed or refused.
        let mut verifier = Verifier::new(None);
        let _ = verifier.take(&line).and_then(|()| verifier.take(&line));
        let _ = verifier.finish();
    }
    if let Ok((id, hash)) = parse_kept(text) {
        assert_eq!(parse_kept(&format!("{id}:{}", hex(hash))), Ok((id, hash)));
    }
    if let Ok(bytes) = parse_size(text) {
        assert!(!format_size(bytes).is_empty());
    }
    if let Ok(duration) = parse_duration(text) {
        assert!(!format_duration(duration.as_secs()).is_empty());
    }
});
