//! One request: parsed from its chain, then served.

use std::io::Read;

use virtio_queue::{Reader, Writer};
use vm_memory::GuestMemoryMmap;

use super::Chain;
use crate::{BlockDevice, BlockError, BlockErrorKind};

/// Sectors are counted in these whatever the block size.
pub const SECTOR_BYTES: u64 = 512;

/// Most data of one request: what kernels make of the sizes that they are told is far below.
const DATA_BYTES_MAX: usize = 8 << 20;
/// Most ranges of one discard or zeroing.
const RANGES_MAX: usize = 256;
/// Bytes of the answer to "what is your serial number".
const ID_BYTES: usize = 20;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// In a range of a zeroing: its storage may be given back.
const MAY_UNMAP: u32 = 1;

/// How a request ended, as its last byte tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done.
    Error = 1,
    /// Not known.
    Unsupported = 2,
}

/// A chain that is no request: there is no place to tell of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Descriptors outside of memory, in a wrong order, or without end.
    #[error("descriptors that are no chain")]
    Chain,
    /// No room for the status.
    #[error("a request without a place for its status")]
    NoStatus,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// So many bytes from an offset.
    Read {
        /// From where, in bytes.
        offset: u64,
        /// How many.
        len: usize,
    },
    /// These bytes at an offset.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// All that was written is to last.
    Flush,
    /// The disk's serial number.
    Id,
    /// Ranges that are not needed any more: offset and length, bytes.
    Discard(Vec<(u64, u64)>),
    /// Ranges that are to read as zeros, and whether their storage may go.
    WriteZeroes(Vec<(u64, u64, bool)>),
    /// Something else, or something that makes no sense.
    Bad(Status),
}

impl Request {
    /// Bytes of data that it moves.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Read { len, .. } => *len as u64,
            Self::Write { data, .. } => data.len() as u64,
            _ => 0,
        }
    }
}

/// A request with where its answer goes.
pub struct Parsed<'a> {
    /// What is asked for.
    pub request: Request,
    data: Writer<'a>,
    status: Writer<'a>,
}

/// What becomes of a request that cannot be done for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is tried again.
    Again,
    /// It is left: the driver is told nothing, somebody else will do it.
    Leave,
    /// The driver is told that it failed.
    Tell,
}

/// How long a request may wait for what is not there.
pub trait Patience {
    /// Whether it is to wait no longer, and be left.
    fn is_over(&self) -> bool;

    /// Waits a while after it could not be done for a reason that can pass ([`crate::BlockErrorKind::can_pass`]).
    fn wait(&self, error: &BlockError) -> Next;
}

/// A request's end.
#[derive(Debug)]
pub struct Served {
    /// Bytes written into the guest's memory.
    pub written: u32,
    /// What failed.
    pub error: Option<BlockError>,
}

impl<'a> Parsed<'a> {
    /// Reads a request. Of a write, its data too.
    ///
    /// # Errors
    /// There is no place for a status, so the driver cannot be told anything.
    pub fn read(memory: &'a GuestMemoryMmap<()>, chain: Chain<'a>) -> Result<Self, Unusable> {
        let mut reader = Reader::new(memory, chain.clone()).map_err(|_| Unusable::Chain)?;
        let mut data = Writer::new(memory, chain).map_err(|_| Unusable::Chain)?;
        let room = data.available_bytes().checked_sub(1);
        let room = room.ok_or(Unusable::NoStatus)?;
        let status = data.split_at(room).map_err(|_| Unusable::Chain)?;
        let request = parse(&mut reader, room).unwrap_or_else(Request::Bad);
        Ok(Self {
            request,
            data,
            status,
        })
    }

    /// Does what is asked for and tells the driver how it went. `serial` is the disk's serial number; `buffer` is kept from request to request.
    pub fn serve(mut self, device: &dyn BlockDevice, serial: &str, buffer: &mut Vec<u8>) -> Served {
        let done = self.act(device, serial, buffer, &|| false);
        self.tell(done)
    }

    /// As [`Parsed::serve`], but what cannot be done for now waits as `patience` says. `None`: it was left.
    pub fn serve_patiently(
        mut self,
        device: &dyn BlockDevice,
        serial: &str,
        buffer: &mut Vec<u8>,
        patience: &dyn Patience,
    ) -> Option<Served> {
        loop {
            // Nothing was put into the guest's memory by an attempt that failed.
            let done = self.act(device, serial, buffer, &|| patience.is_over());
            let next = match &done {
                Err(error) if error.kind == BlockErrorKind::ShuttingDown && patience.is_over() => {
                    Next::Leave
                }
                Err(error) if error.kind.can_pass() => patience.wait(error),
                _ => Next::Tell,
            };
            match next {
                Next::Again => {}
                Next::Leave => return None,
                Next::Tell => return Some(self.tell(done)),
            }
        }
    }

    /// As [`Parsed::serve`], but only if that needs no waiting and moves at most `bytes_max` bytes. `None` says that nothing was done: the
    /// request is to be read and served again where it may wait.
    pub fn try_serve(
        mut self,
        device: &dyn BlockDevice,
        serial: &str,
        buffer: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Option<Served> {
        let done = match &self.request {
            Request::Read { offset, len } if *len <= bytes_max => {
                buffer.resize(*len, 0);
                match device.try_read(*offset, buffer) {
                    Ok(true) => Ok(put(&mut self.data, buffer)),
                    Ok(false) => return None,
                    Err(error) if error.kind.can_pass() => return None,
                    Err(error) => Err(error),
                }
            }
            Request::Write { offset, data } if data.len() <= bytes_max => {
                match device.try_write(*offset, data) {
                    Ok(true) => Ok(Status::Ok),
                    Ok(false) => return None,
                    Err(error) if error.kind.can_pass() => return None,
                    Err(error) => Err(error),
                }
            }
            Request::Id | Request::Bad(_) => self.act(device, serial, buffer, &|| false),
            _ => return None,
        };
        Some(self.tell(done))
    }

    /// Tells the driver that the request failed.
    pub fn fail(self) -> Served {
        self.tell(Ok(Status::Error))
    }

    fn tell(mut self, done: Result<Status, BlockError>) -> Served {
        let (status, error) = match done {
            Ok(status) => (status, None),
            Err(error) if error.kind == BlockErrorKind::Unsupported => {
                (Status::Unsupported, Some(error))
            }
            Err(error) => (Status::Error, Some(error)),
        };
        // Behind a failed read nothing is said of how much of it is there.
        let told = self.status.write_obj(status as u8);
        let written = self.data.bytes_written() + usize::from(told.is_ok());
        Served {
            written: u32::try_from(written).unwrap_or(u32::MAX),
            error,
        }
    }

    fn act(
        &mut self,
        device: &dyn BlockDevice,
        serial: &str,
        buffer: &mut Vec<u8>,
        enough: &dyn Fn() -> bool,
    ) -> Result<Status, BlockError> {
        match &self.request {
            Request::Read { offset, len } => {
                buffer.resize(*len, 0);
                device.read_until(*offset, buffer, enough)?;
                return Ok(put(&mut self.data, buffer));
            }
            Request::Write { offset, data } => device.write(*offset, data, false)?,
            Request::Flush => device.flush()?,
            Request::Id => {
                let mut id = [0; ID_BYTES];
                let len = serial.len().min(ID_BYTES);
                id[..len].copy_from_slice(&serial.as_bytes()[..len]);
                return Ok(put(&mut self.data, &id));
            }
            Request::Discard(ranges) => {
                for (offset, len) in ranges {
                    device.discard(*offset, *len)?;
                }
            }
            Request::WriteZeroes(ranges) => {
                for (offset, len, may_unmap) in ranges {
                    device.write_zeroes(*offset, *len, *may_unmap, false)?;
                }
            }
            Request::Bad(status) => return Ok(*status),
        }
        Ok(Status::Ok)
    }
}

fn put(writer: &mut Writer<'_>, bytes: &[u8]) -> Status {
    match std::io::Write::write_all(writer, bytes) {
        Ok(()) => Status::Ok,
        Err(_) => Status::Error,
    }
}

fn bytes_of(sectors: u64) -> Result<u64, Status> {
    sectors.checked_mul(SECTOR_BYTES).ok_or(Status::Error)
}

/// Reads a request's head and data; `room` is what it has for data that is read.
fn parse(reader: &mut Reader<'_>, room: usize) -> Result<Request, Status> {
    let mut head = [0; 16];
    reader.read_exact(&mut head).map_err(|_| Status::Error)?;
    let kind = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
    let given = reader.available_bytes();
    match kind {
        TYPE_IN | TYPE_OUT => {
            let len = if kind == TYPE_IN { room } else { given };
            if len > DATA_BYTES_MAX || !(len as u64).is_multiple_of(SECTOR_BYTES) {
                return Err(Status::Error);
            }
            let offset = bytes_of(sector)?;
            if kind == TYPE_IN {
                return Ok(Request::Read { offset, len });
            }
            let mut data = vec![0; len];
            reader.read_exact(&mut data).map_err(|_| Status::Error)?;
            Ok(Request::Write { offset, data })
        }
        TYPE_FLUSH => Ok(Request::Flush),
        TYPE_GET_ID if room >= ID_BYTES => Ok(Request::Id),
        TYPE_DISCARD => {
            let ranges = ranges(reader)?;
            // Discards know no flags.
            if ranges.iter().any(|(_, _, flags)| *flags != 0) {
                return Err(Status::Unsupported);
            }
            let plain = ranges.into_iter().map(|(offset, len, _)| (offset, len));
            Ok(Request::Discard(plain.collect()))
        }
        TYPE_WRITE_ZEROES => {
            let ranges = ranges(reader)?;
            if ranges.iter().any(|(_, _, flags)| flags & !MAY_UNMAP != 0) {
                return Err(Status::Unsupported);
            }
            let told = ranges
                .into_iter()
                .map(|(offset, len, flags)| (offset, len, flags & MAY_UNMAP != 0));
            Ok(Request::WriteZeroes(told.collect()))
        }
        TYPE_GET_ID => Err(Status::Error),
        _ => Err(Status::Unsupported),
    }
}

fn ranges(reader: &mut Reader<'_>) -> Result<Vec<(u64, u64, u32)>, Status> {
    const RANGE_BYTES: usize = 16;
    let len = reader.available_bytes();
    if len == 0 || !len.is_multiple_of(RANGE_BYTES) || len / RANGE_BYTES > RANGES_MAX {
        return Err(Status::Error);
    }
    let mut ranges = Vec::new();
    for _ in 0..len / RANGE_BYTES {
        let mut range = [0; RANGE_BYTES];
        reader.read_exact(&mut range).map_err(|_| Status::Error)?;
        let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
        let sectors = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(range[12..].try_into().expect("four bytes"));
        ranges.push((bytes_of(sector)?, bytes_of(sectors.into())?, flags));
    }
    Ok(ranges)
}
