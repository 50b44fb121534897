//! What messages carry.

use super::{CONFIG_BYTES_MAX, REGIONS_MAX};

/// Takes numbers off the front of bytes whose length was checked.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(N);
        self.0 = rest;
        taken.try_into().expect("as many as were taken")
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// A part of guest memory and where it lies in the file that comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest address.
    pub guest: u64,
    /// Bytes.
    pub len: u64,
    /// Address by which the front-end speaks of rings in it.
    pub user: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

const REGION_BYTES: usize = 32;
const TABLE_HEAD_BYTES: usize = 8;

impl Region {
    fn parse(fields: &mut Fields<'_>) -> Self {
        Self {
            guest: fields.u64(),
            len: fields.u64(),
            user: fields.u64(),
            offset: fields.u64(),
        }
    }

    /// The body of a memory table.
    #[must_use]
    pub fn table(regions: &[Self]) -> Vec<u8> {
        let mut body = (regions.len() as u64).to_le_bytes().to_vec();
        for region in regions {
            for word in [region.guest, region.len, region.user, region.offset] {
                body.extend(word.to_le_bytes());
            }
        }
        body
    }
}

/// A queue and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// Queue.
    pub index: u32,
    /// Number.
    pub num: u32,
}

impl VringState {
    /// Its bytes.
    #[must_use]
    pub fn body(self) -> Vec<u8> {
        [self.index.to_le_bytes(), self.num.to_le_bytes()].concat()
    }

    /// Parses it.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = (body.len() == 8).then_some(Fields(body))?;
        Some(Self {
            index: fields.u32(),
            num: fields.u32(),
        })
    }
}

/// Where a queue's rings are, by addresses of the front-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddresses {
    /// Queue.
    pub index: u32,
    /// Descriptor table.
    pub descriptors: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub available: u64,
}

impl VringAddresses {
    /// Its bytes.
    #[must_use]
    pub fn body(self) -> Vec<u8> {
        let mut body = u64::from(self.index).to_le_bytes().to_vec();
        // The last is where writes would be logged.
        for word in [self.descriptors, self.used, self.available, 0] {
            body.extend(word.to_le_bytes());
        }
        body
    }

    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = (body.len() == 40).then_some(Fields(body))?;
        let (index, _flags) = (fields.u32(), fields.u32());
        Some(Self {
            index,
            descriptors: fields.u64(),
            used: fields.u64(),
            available: fields.u64(),
        })
    }
}

/// What memory for requests in flight is for, and where it lies in the file that comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightPlace {
    /// Bytes.
    pub len: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
}

/// With and without the padding that a C compiler adds: both are in use.
const INFLIGHT_BYTES: [usize; 2] = [24, 20];

impl InflightPlace {
    /// Its bytes, as long as QEMU has them.
    #[must_use]
    pub fn body(self) -> Vec<u8> {
        let mut body = self.len.to_le_bytes().to_vec();
        body.extend(self.offset.to_le_bytes());
        body.extend(self.queues.to_le_bytes());
        body.extend(self.queue_size.to_le_bytes());
        body.resize(INFLIGHT_BYTES[0], 0);
        body
    }

    /// Parses it.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let fits = INFLIGHT_BYTES.contains(&body.len());
        let mut fields = fits.then_some(Fields(body))?;
        Some(Self {
            len: fields.u64(),
            offset: fields.u64(),
            queues: fields.u16(),
            queue_size: fields.u16(),
        })
    }
}

/// A part of the configuration that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigPart {
    /// From where.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

/// Bytes before the part itself.
pub const CONFIG_HEAD_BYTES: usize = 12;

impl ConfigPart {
    /// The body with these bytes, as many as are asked for.
    #[must_use]
    pub fn body(self, bytes: &[u8]) -> Vec<u8> {
        let mut body = self.offset.to_le_bytes().to_vec();
        body.extend(self.len.to_le_bytes());
        body.extend([0; 4]); // flags
        body.extend(bytes);
        body
    }

    /// Parses it; the bytes lie behind [`CONFIG_HEAD_BYTES`], exactly as many as it says.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let rest = body.len().checked_sub(CONFIG_HEAD_BYTES)?;
        let mut fields = Fields(body);
        let (offset, len) = (fields.u32(), fields.u32());
        let inside = offset.checked_add(len)? <= CONFIG_BYTES_MAX;
        (inside && len as usize == rest).then_some(Self { offset, len })
    }
}

/// In the body of a kick or call: there is no event.
pub(super) const NO_EVENT: u64 = 1 << 8;
/// In it: the queue.
pub(super) const EVENT_QUEUE: u64 = 0xff;

/// The body that goes with a queue's event, or with none.
#[must_use]
pub fn event_body(queue: u8, has_event: bool) -> Vec<u8> {
    let none = if has_event { 0 } else { NO_EVENT };
    (u64::from(queue) | none).to_le_bytes().to_vec()
}

/// The regions of a memory table.
pub(super) fn table(body: &[u8]) -> Option<Vec<Region>> {
    let rest = body.len().checked_sub(TABLE_HEAD_BYTES)?;
    let mut fields = Fields(body);
    let (count, _padding) = (fields.u32() as usize, fields.u32());
    // QEMU sends the table as long as the regions in it; others send it whole.
    if count > REGIONS_MAX || rest < count * REGION_BYTES {
        return None;
    }
    Some((0..count).map(|_| Region::parse(&mut fields)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn small_tables_never_lie_about_their_length(count in any::<u32>(), rest in 0..100usize) {
            let mut body = count.to_le_bytes().to_vec();
            body.resize(TABLE_HEAD_BYTES + rest, 0);
            let regions = table(&body);
            prop_assert_eq!(regions.is_some(), (count as usize) * REGION_BYTES <= rest && count <= 32);
        }
    }
}
