//! Devices that take up what a snapshot may hold: it comes from a file that anybody may have written.

use super::driver::{Driver, MEMORY_BYTES};
use super::subject::{KINDS, Kind, make};
use crate::machine::memory;
use crate::virtio::state::DeviceState;

/// What a snapshot has of a device whose driver was ready, and has said nothing yet.
///
/// # Panics
/// The host has no room.
pub fn saved(kind: Kind) -> Vec<u8> {
    let (device, _host) = make(kind);
    let mut driver = Driver::new(device);
    driver.start(0, u32::MAX).expect("all its queues are there");
    driver.stop();
    let memory = driver.memory().clone();
    let state = driver.device().save(&memory);
    let state = state.expect("a device at rest is saved");
    postcard::to_stdvec(&state).expect("a state is bytes")
}

/// Has a device take up a state of these bytes, the first of which says which device. One that does is saved again, can be used and reset,
/// and another one takes up what was saved.
///
/// # Panics
/// It is not so.
pub fn take_up(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let Ok(state) = postcard::from_bytes::<DeviceState>(bytes) else {
        return;
    };
    let memory = memory::small(MEMORY_BYTES).expect("the host has memory");
    let (mut device, _host) = make(kind);
    if device.restore(state, &memory).is_err() {
        return;
    }
    let again = device.save(&memory).expect("a device at rest is saved");
    let mut driver = Driver::new(device);
    driver.start(0, u32::MAX).expect("all its queues are there");
    driver.stop();
    driver.start(0, u32::MAX).expect("and again, reset before");
    driver.stop();
    drop(driver);
    let (mut next, _host) = make(kind);
    let taken_up = next.restore(again, &memory);
    taken_up.expect("what was saved is taken up");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_takes_up_its_own_state_and_no_other() {
        for (number, kind) in (0..).zip(KINDS) {
            let bytes = saved(kind);
            take_up(&[&[number][..], &bytes].concat());
            let state: DeviceState = postcard::from_bytes(&bytes).expect("a state");
            let memory = memory::small(MEMORY_BYTES).expect("memory");
            for other in KINDS {
                let (mut device, _host) = make(other);
                let is_like = std::mem::discriminant(&state)
                    == std::mem::discriminant(&device.save(&memory).expect("saved"));
                let taken_up = device.restore(state.clone(), &memory);
                assert_eq!(taken_up.is_ok(), is_like, "{kind:?} by {other:?}");
            }
        }
    }
}
