//! Every device against a driver that does what no driver should: it never panics, ends with every chain, writes only where it may, and
//! takes no more of the host's memory than it says.

#![allow(clippy::unwrap_used, missing_docs)]

mod again;
mod chains;
mod endless;
mod memory;
mod restless;

use proptest::prelude::*;
use vmm::virtio::hostile::{KINDS, Kind, run};

pub fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(&KINDS[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_a_script_that_ends(kind in kind(), script in prop::collection::vec(any::<u8>(), 0..600)) {
        run(kind, &script);
    }

    #[test]
    fn registers_and_configuration_take_anything(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        vmm::virtio::hostile::configuration(&bytes);
        // False: there is no KVM here.
        let _ = vmm::virtio::hostile::transport(&bytes);
    }
}
