//! Devices on their bus, configured in any way that a guest can, and from states that anybody may have made up.

use proptest::prelude::*;

use super::{devices, kvm};
use crate::legacy::serial::SerialLine;
use crate::machine::board::Board;
use crate::machine::bus::{Registers, lock};
use crate::machine::event::Events;
use crate::machine::memory;
use crate::pci::Function;
use crate::virtio::state::TransportState;
use crate::virtio::{F_RINGS, F_VERSION_1};

fn board(kvm: &kvm_ioctls::Kvm) -> Board {
    let memory = memory::create(64).expect("memory");
    let (events, _) = Events::new();
    Board::new(
        kvm,
        memory,
        devices(1 << 20),
        SerialLine::default(),
        &events,
    )
    .expect("a board")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever a guest has written into a device's registers, the device that takes up its state is like it.
    #[test]
    fn transports_come_back_as_they_were(
        index in 0usize..6,
        configured in prop::collection::vec((0usize..0x100, any::<[u8; 4]>()), 0..8),
        written in prop::collection::vec(
            (prop_oneof![0u64..0x38, 0x2000u64..0x2010, 0x4000u64..0x4030], any::<u32>(), prop_oneof![Just(1usize), Just(2), Just(4)]), 0..40),
    ) {
        let Some(kvm) = kvm() else { return Ok(()) };
        let (before, after) = (board(&kvm), board(&kvm));
        let mut device = lock(&before.devices[index]);
        for (offset, data) in configured {
            device.write_config(offset & !3, &data);
        }
        for (offset, value, len) in written {
            // The driver is not ready: devices at work are another test.
            let value = if offset == 0x14 { value & 0b1011 } else { value };
            Registers::write(&mut *device, offset, &value.to_le_bytes()[..len]);
        }
        let saved = device.save().expect("at rest");
        let bytes = postcard::to_stdvec(&saved).expect("bytes");
        let parsed: TransportState = postcard::from_bytes(&bytes).expect("the same");
        prop_assert_eq!(&parsed, &saved);
        let mut other = lock(&after.devices[index]);
        other.lift().expect("lifted");
        other.restore(parsed).expect("a device like it");
        prop_assert_eq!(other.save().expect("at rest"), saved);
    }

    /// No state that a file may hold makes a device panic; one that is taken up is the one that is saved next.
    #[test]
    fn hostile_states_are_refused_or_taken_up(
        index in 0usize..6,
        status: u8, features: u64, started: bool,
        vectors in prop::collection::vec(any::<u16>(), 0..6),
        rings in prop::collection::vec(any::<[u64; 3]>(), 4),
        places in prop::collection::vec(any::<[u16; 2]>(), 4),
    ) {
        let Some(kvm) = kvm() else { return Ok(()) };
        let board = board(&kvm);
        let mut device = lock(&board.devices[index]);
        let mut state = device.save().expect("at rest");
        state.status = status;
        // Those of rings, which every device has.
        state.driver_features = features & F_RINGS | F_VERSION_1;
        state.is_started = started;
        state.vectors = vectors;
        for (at, queue) in state.queues.iter_mut().enumerate() {
            queue.ready = true;
            queue.rings = [rings[at % 4][0] & !15, rings[at % 4][1] & !1, rings[at % 4][2] & !3];
            [queue.next_available, queue.next_used] = places[at % 4];
        }
        device.lift().expect("lifted");
        if device.restore(state).is_ok() {
            device.go_on();
            device.suspend();
            let _ = device.save();
        }
    }
}
