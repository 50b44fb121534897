//! Packets in their wire form (virtio 1.2, section 5.10.6).

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// Most bytes of data in one packet, as Linux has it.
pub(super) const PACKET_BYTES_MAX: usize = 64 << 10;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// Connections are streams: there is no other kind here.
pub(super) const STREAM: u16 = 1;

/// What a packet is for.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RESET: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const DATA: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// In the flags of a shutdown: the sender takes no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// And: the sender sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data behind it.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Room that the sender has for this connection in all.
    pub buf_alloc: u32,
    /// Bytes that it has passed on since the beginning.
    pub fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// What tells the sender of this one that there is no such connection.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: STREAM,
            op: op::RESET,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let mut bytes = [0; HEADER_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.dst_cid.to_le_bytes(), bytes[8..16]);
        assert_eq!(header.dst_port.to_le_bytes(), bytes[20..24]);
        assert_eq!(header.op.to_le_bytes(), bytes[30..32]);
        assert_eq!(header.fwd_cnt.to_le_bytes(), bytes[40..44]);
        assert_eq!(header.bytes(), bytes);
    }
}
