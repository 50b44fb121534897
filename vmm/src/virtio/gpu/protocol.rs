//! Commands and answers in their wire form (virtio 1.2, section 5.7.6). Parsing says what a guest wants, not whether it may.

use super::format::Format;
use super::limits::ENTRIES_MAX;

/// Bytes of the header that commands and answers begin with.
pub(super) const HEADER_BYTES: usize = 24;
/// Bytes of one backing entry.
pub(super) const ENTRY_BYTES: usize = 16;
/// Bytes of the longest command: backing with all entries it may have.
pub(super) const COMMAND_BYTES_MAX: usize = HEADER_BYTES + 8 + ENTRIES_MAX * ENTRY_BYTES;
/// Outputs that an answer about displays has room for.
const SCANOUTS: usize = 16;
/// Bytes that an answer with an EDID has for it.
const EDID_BYTES_MAX: usize = 1024;

/// The answer echoes fence and context.
const FLAG_FENCE: u32 = 1 << 0;

mod kind {
    pub(super) const GET_DISPLAY_INFO: u32 = 0x0100;
    pub(super) const RESOURCE_CREATE_2D: u32 = 0x0101;
    pub(super) const RESOURCE_UNREF: u32 = 0x0102;
    pub(super) const SET_SCANOUT: u32 = 0x0103;
    pub(super) const RESOURCE_FLUSH: u32 = 0x0104;
    pub(super) const TRANSFER_TO_HOST_2D: u32 = 0x0105;
    pub(super) const RESOURCE_ATTACH_BACKING: u32 = 0x0106;
    pub(super) const RESOURCE_DETACH_BACKING: u32 = 0x0107;
    pub(super) const GET_EDID: u32 = 0x010a;
    pub(super) const UPDATE_CURSOR: u32 = 0x0300;
    pub(super) const MOVE_CURSOR: u32 = 0x0301;

    pub(super) const OK_NODATA: u32 = 0x1100;
    pub(super) const OK_DISPLAY_INFO: u32 = 0x1101;
    pub(super) const OK_EDID: u32 = 0x1104;
}

/// Why a command was not done, as the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not a command, or none that is known, or not now.
    Unspecified = 0x1200,
    /// A limit of ours.
    OutOfMemory = 0x1201,
    /// There is one output.
    ScanoutId = 0x1202,
    /// No such resource, or one that is there already.
    ResourceId = 0x1203,
    /// Cut short, or out of bounds.
    Parameter = 0x1205,
}

/// A rectangle as guests give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct GuestRect {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl GuestRect {
    /// Whether it lies inside of `width` by `height`.
    pub fn is_inside(self, width: u32, height: u32) -> bool {
        let fits = |at: u32, len: u32, all: u32| at.checked_add(len).is_some_and(|end| end <= all);
        fits(self.x, self.width, width) && fits(self.y, self.height, height)
    }
}

/// What a command begins with, and its answer repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    kind: u32,
    flags: u32,
    fence: u64,
    context: u32,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    GetDisplayInfo,
    GetEdid {
        scanout: u32,
    },
    Create {
        resource: u32,
        format: Format,
        width: u32,
        height: u32,
    },
    Unref {
        resource: u32,
    },
    SetScanout {
        rect: GuestRect,
        scanout: u32,
        resource: u32,
    },
    Flush {
        rect: GuestRect,
        resource: u32,
    },
    Transfer {
        rect: GuestRect,
        offset: u64,
        resource: u32,
    },
    /// Guest addresses and lengths.
    AttachBacking {
        resource: u32,
        entries: Vec<(u64, u32)>,
    },
    DetachBacking {
        resource: u32,
    },
    UpdateCursor {
        scanout: u32,
        x: u32,
        y: u32,
        resource: u32,
        hot_x: u32,
        hot_y: u32,
    },
    MoveCursor {
        scanout: u32,
        x: u32,
        y: u32,
    },
}

/// Takes fields from the front; what is missing is [`Refusal::Parameter`].
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Refusal::Parameter)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.take().map(u64::from_le_bytes)
    }

    fn rect(&mut self) -> Result<GuestRect, Refusal> {
        Ok(GuestRect {
            x: self.u32()?,
            y: self.u32()?,
            width: self.u32()?,
            height: self.u32()?,
        })
    }
}

impl Header {
    /// The header of a command, if it has one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes.get(..HEADER_BYTES)?);
        Some(Self {
            kind: fields.u32().ok()?,
            flags: fields.u32().ok()?,
            fence: fields.u64().ok()?,
            context: fields.u32().ok()?,
        })
    }
}

impl Command {
    /// What follows the header `header` in a command of these bytes.
    pub fn parse(header: &Header, bytes: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields(bytes.get(HEADER_BYTES..).unwrap_or(&[]));
        let f = &mut fields;
        Ok(match header.kind {
            kind::GET_DISPLAY_INFO => Self::GetDisplayInfo,
            kind::GET_EDID => Self::GetEdid { scanout: f.u32()? },
            kind::RESOURCE_CREATE_2D => {
                let resource = f.u32()?;
                let format = Format::from_wire(f.u32()?);
                let (width, height) = (f.u32()?, f.u32()?);
                Self::Create {
                    resource,
                    format: format.ok_or(Refusal::Parameter)?,
                    width,
                    height,
                }
            }
            kind::RESOURCE_UNREF => Self::Unref { resource: f.u32()? },
            kind::SET_SCANOUT => Self::SetScanout {
                rect: f.rect()?,
                scanout: f.u32()?,
                resource: f.u32()?,
            },
            kind::RESOURCE_FLUSH => Self::Flush {
                rect: f.rect()?,
                resource: f.u32()?,
            },
            kind::TRANSFER_TO_HOST_2D => Self::Transfer {
                rect: f.rect()?,
                offset: f.u64()?,
                resource: f.u32()?,
            },
            kind::RESOURCE_ATTACH_BACKING => {
                let resource = f.u32()?;
                let count = f.u32()? as usize;
                if count > ENTRIES_MAX {
                    return Err(Refusal::OutOfMemory);
                }
                // All of them must be there before room is made for them.
                if f.0.len() < count * ENTRY_BYTES {
                    return Err(Refusal::Parameter);
                }
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push((f.u64()?, f.u32()?));
                    f.u32()?;
                }
                Self::AttachBacking { resource, entries }
            }
            kind::RESOURCE_DETACH_BACKING => Self::DetachBacking { resource: f.u32()? },
            kind::UPDATE_CURSOR => {
                let (scanout, x, y, _) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
                Self::UpdateCursor {
                    scanout,
                    x,
                    y,
                    resource: f.u32()?,
                    hot_x: f.u32()?,
                    hot_y: f.u32()?,
                }
            }
            kind::MOVE_CURSOR => Self::MoveCursor {
                scanout: f.u32()?,
                x: f.u32()?,
                y: f.u32()?,
            },
            _ => return Err(Refusal::Unspecified),
        })
    }
}

/// What a command that was done is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Done {
    Nothing,
    /// The size of the one output.
    Display {
        width: u32,
        height: u32,
    },
    Edid(Vec<u8>),
}

/// The answer to a command with that header.
pub(super) fn answer(header: &Header, result: &Result<Done, Refusal>) -> Vec<u8> {
    let kind = match result {
        Ok(Done::Nothing) => kind::OK_NODATA,
        Ok(Done::Display { .. }) => kind::OK_DISPLAY_INFO,
        Ok(Done::Edid(_)) => kind::OK_EDID,
        Err(refusal) => *refusal as u32,
    };
    let is_fenced = header.flags & FLAG_FENCE != 0;
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((header.flags & FLAG_FENCE).to_le_bytes());
    bytes.extend(if is_fenced { header.fence } else { 0 }.to_le_bytes());
    bytes.extend(if is_fenced { header.context } else { 0 }.to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    match result {
        Ok(Done::Display { width, height }) => {
            let output = [0, 0, *width, *height, 1, 0];
            bytes.extend(output.iter().flat_map(|field| field.to_le_bytes()));
            bytes.resize(HEADER_BYTES + SCANOUTS * 24, 0);
        }
        Ok(Done::Edid(edid)) => {
            bytes.extend((edid.len() as u32).to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(edid);
            bytes.resize(HEADER_BYTES + 8 + EDID_BYTES_MAX, 0);
        }
        _ => {}
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command(kind: u32, fields: &[u32]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Command, Refusal> {
        Command::parse(&Header::parse(bytes).expect("a header"), bytes)
    }

    #[test]
    fn commands_cut_short_are_wrong_parameters() {
        let whole = [
            (kind::GET_EDID, 1),
            (kind::RESOURCE_CREATE_2D, 4),
            (kind::RESOURCE_UNREF, 1),
            (kind::SET_SCANOUT, 6),
            (kind::RESOURCE_FLUSH, 5),
            (kind::TRANSFER_TO_HOST_2D, 7),
            (kind::RESOURCE_ATTACH_BACKING, 6),
            (kind::RESOURCE_DETACH_BACKING, 1),
            (kind::UPDATE_CURSOR, 7),
            (kind::MOVE_CURSOR, 3),
        ];
        for (kind, fields) in whole {
            let bytes = command(kind, &[1; 7][..fields]);
            assert!(parse(&bytes).is_ok(), "{kind:#x}");
            for len in HEADER_BYTES..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Err(Refusal::Parameter), "{kind:#x}");
            }
        }
        assert_eq!(parse(&command(0x0200, &[])), Err(Refusal::Unspecified));
        assert_eq!(Header::parse(&[0; HEADER_BYTES - 1]), None);
    }

    #[test]
    fn backing_of_more_entries_than_there_are_is_refused_without_room_for_it() {
        let none = command(kind::RESOURCE_ATTACH_BACKING, &[1, ENTRIES_MAX as u32]);
        assert_eq!(parse(&none), Err(Refusal::Parameter));
        let many = command(kind::RESOURCE_ATTACH_BACKING, &[1, u32::MAX]);
        assert_eq!(parse(&many), Err(Refusal::OutOfMemory));
        let odd = command(kind::RESOURCE_CREATE_2D, &[1, 5, 9, 9]);
        assert_eq!(parse(&odd), Err(Refusal::Parameter), "format 5");
    }

    #[test]
    fn answers_have_their_sizes_and_echo_fences() {
        let mut bytes = command(kind::GET_DISPLAY_INFO, &[]);
        bytes[4..8].copy_from_slice(&3u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&77u64.to_le_bytes());
        bytes[16..20].copy_from_slice(&5u32.to_le_bytes());
        let header = Header::parse(&bytes).expect("a header");
        let display = Done::Display {
            width: 640,
            height: 480,
        };
        let told = answer(&header, &Ok(display));
        assert_eq!(told.len(), 408);
        assert_eq!(told[..4], 0x1101u32.to_le_bytes());
        assert_eq!(told[4..8], 1u32.to_le_bytes(), "only the fence's flag");
        assert_eq!(told[8..16], 77u64.to_le_bytes());
        assert_eq!(told[16..20], 5u32.to_le_bytes());
        assert_eq!(told[32..36], 640u32.to_le_bytes());
        assert_eq!(told[40..44], 1u32.to_le_bytes(), "enabled");

        bytes[4..8].fill(0);
        let header = Header::parse(&bytes).expect("a header");
        let refused = answer(&header, &Err(Refusal::ResourceId));
        assert_eq!(refused.len(), HEADER_BYTES);
        assert_eq!(refused[..4], 0x1203u32.to_le_bytes());
        assert!(refused[4..].iter().all(|byte| *byte == 0), "no fence");
        assert_eq!(answer(&header, &Ok(Done::Edid(vec![7; 128]))).len(), 1056);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(kind in 0u32..0x400, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut all = command(kind, &[]);
            all.extend(bytes);
            let _ = parse(&all);
        }
    }
}
