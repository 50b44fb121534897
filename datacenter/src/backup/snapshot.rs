//! The catalog as one file: every row as it was at one moment.
//!
//! Pure: rows in, bytes out, and back. Little-endian: a header of 32 bytes (magic `SPLCATB\0`, format, 6 zero bytes, realm), then for each
//! row the lengths of key and row (4 bytes each), key and row; then `FFFFFFFF FFFFFFFF` and the number of rows (8 bytes). Whether the bytes
//! are those that were written is for the manifest to say; a [`Decoder`] refuses what no [`Encoder`] writes, and never holds more than
//! one row and what it was fed. Documented in `docs/disk-formats/backup.md`.

/// Longest key, in bytes: names are far shorter.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest row, in bytes. The longest that are written are chunks' kin, some megabytes.
pub const ROW_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"SPLCATB\0";
const FORMAT: u16 = 1;
const HEADER_LEN: usize = 32;
const LENGTHS_LEN: usize = 8;
const END: u32 = u32::MAX;

/// Why bytes are no catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// They do not begin as one.
    #[error("it does not begin as a catalog")]
    Magic,
    /// A later program wrote them.
    #[error("its format is {0}, this program reads {FORMAT}; use the newer program")]
    Format(u16),
    /// Another realm's.
    #[error("it is another realm's catalog")]
    Realm,
    /// Longer than any key or row.
    #[error("row {row} claims a key of {key_len} and a row of {row_len} bytes")]
    TooLong {
        /// Which, counted from 0.
        row: u64,
        /// As it says.
        key_len: u32,
        /// As it says.
        row_len: u32,
    },
    /// It ends too early.
    #[error("it ends after {rows} rows, before its end mark")]
    Short {
        /// Whole rows before that.
        rows: u64,
    },
    /// Its end mark counts other rows.
    #[error("it holds {rows} rows and says {said}")]
    Count {
        /// Those that are there.
        rows: u64,
        /// As it says.
        said: u64,
    },
    /// Something follows its end mark.
    #[error("something follows its end mark")]
    Trailing,
}

/// Writes a catalog.
#[derive(Debug, Default)]
pub struct Encoder {
    rows: u64,
}

impl Encoder {
    /// Begins one of `realm` at the end of `out`.
    pub fn begin(realm: [u8; 16], out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&realm);
        Self { rows: 0 }
    }

    /// Appends a row. False: it is longer than any may be, and was left out.
    #[must_use]
    pub fn row(&mut self, key: &[u8], row: &[u8], out: &mut Vec<u8>) -> bool {
        if key.len() > KEY_BYTES_MAX || row.len() > ROW_BYTES_MAX {
            return false;
        }
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(row.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(row);
        self.rows += 1;
        true
    }

    /// Appends the end.
    pub fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&END.to_le_bytes());
        out.extend_from_slice(&END.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
    }
}

/// Reads a catalog that comes in pieces.
#[derive(Debug)]
pub struct Decoder {
    realm: [u8; 16],
    /// What was fed and not used yet.
    waiting: Vec<u8>,
    begun: bool,
    rows: u64,
    ended: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

impl Decoder {
    /// Of a catalog of `realm`.
    pub fn new(realm: [u8; 16]) -> Self {
        Self {
            realm,
            waiting: Vec::new(),
            begun: false,
            rows: 0,
            ended: false,
        }
    }

    /// Takes the next bytes and shows every row that is whole now.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), SnapshotError> {
        self.waiting.extend_from_slice(bytes);
        let waiting = std::mem::take(&mut self.waiting);
        let used = self.take(&waiting, row)?;
        self.waiting = waiting;
        self.waiting.drain(..used);
        Ok(())
    }

    /// How many of the bytes were used.
    fn take(
        &mut self,
        bytes: &[u8],
        row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<usize, SnapshotError> {
        let mut at = 0;
        if !self.begun {
            if bytes.len() < HEADER_LEN {
                return Ok(0);
            }
            self.header(&bytes[..HEADER_LEN])?;
            self.begun = true;
            at = HEADER_LEN;
        }
        while !self.ended && bytes.len() - at >= LENGTHS_LEN {
            let (key_len, row_len) = (u32_at(bytes, at), u32_at(bytes, at + 4));
            let body = at + LENGTHS_LEN;
            if (key_len, row_len) == (END, END) {
                let Some(count) = bytes.get(body..body + 8) else {
                    break;
                };
                let mut said = [0; 8];
                said.copy_from_slice(count);
                self.end(u64::from_le_bytes(said))?;
                at = body + 8;
                break;
            }
            if key_len as usize > KEY_BYTES_MAX || row_len as usize > ROW_BYTES_MAX {
                return Err(SnapshotError::TooLong {
                    row: self.rows,
                    key_len,
                    row_len,
                });
            }
            let middle = body + key_len as usize;
            let end = middle + row_len as usize;
            if end > bytes.len() {
                break;
            }
            row(&bytes[body..middle], &bytes[middle..end]);
            self.rows += 1;
            at = end;
        }
        if self.ended && at < bytes.len() {
            return Err(SnapshotError::Trailing);
        }
        Ok(at)
    }

    fn header(&self, bytes: &[u8]) -> Result<(), SnapshotError> {
        if bytes[..8] != MAGIC {
            return Err(SnapshotError::Magic);
        }
        let format = u16::from_le_bytes([bytes[8], bytes[9]]);
        if format != FORMAT {
            return Err(SnapshotError::Format(format));
        }
        if bytes[10..16] != [0; 6] {
            return Err(SnapshotError::Magic);
        }
        if bytes[16..] != self.realm {
            return Err(SnapshotError::Realm);
        }
        Ok(())
    }

    fn end(&mut self, said: u64) -> Result<(), SnapshotError> {
        if said != self.rows {
            return Err(SnapshotError::Count {
                rows: self.rows,
                said,
            });
        }
        self.ended = true;
        Ok(())
    }

    /// Ends the reading; answers how many rows there were.
    pub fn finish(self) -> Result<u64, SnapshotError> {
        match (self.ended, self.waiting.is_empty()) {
            (true, true) => Ok(self.rows),
            (true, false) => Err(SnapshotError::Trailing),
            (false, _) => Err(SnapshotError::Short { rows: self.rows }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn encode(rows: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::begin([7; 16], &mut out);
        for (key, row) in rows {
            assert!(encoder.row(key, row, &mut out));
        }
        encoder.end(&mut out);
        out
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Rows, SnapshotError> {
        let mut decoder = Decoder::new([7; 16]);
        let mut rows = Rows::new();
        for part in bytes.chunks(piece) {
            decoder.feed(part, &mut |key, row| {
                rows.push((key.to_vec(), row.to_vec()))
            })?;
        }
        let count = decoder.finish()?;
        assert_eq!(count, rows.len() as u64);
        Ok(rows)
    }

    /// The bytes of format 1.
    #[test]
    fn golden_bytes() {
        let bytes = encode(&[(vec![2, b'a'], vec![1])]);
        let expected = [
            b"SPLCATB\0\x01\0\0\0\0\0\0\0".as_slice(),
            &[7; 16],
            &[2, 0, 0, 0, 1, 0, 0, 0, 2, b'a', 1],
            &[0xFF; 8],
            &[1, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_nobody_wrote_is_refused() {
        let good = encode(&[(vec![1], vec![2]), (vec![3], vec![])]);
        let bent = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes, 5)
        };
        assert_eq!(bent(0, 0), Err(SnapshotError::Magic));
        assert_eq!(bent(8, 2), Err(SnapshotError::Format(2)));
        assert_eq!(bent(12, 2), Err(SnapshotError::Magic));
        assert_eq!(bent(16, 8), Err(SnapshotError::Realm));
        assert!(matches!(bent(35, 1), Err(SnapshotError::TooLong { .. })));
        let count = good.len() - 8;
        assert_eq!(
            bent(count, 3),
            Err(SnapshotError::Count { rows: 2, said: 3 })
        );
        for len in 0..good.len() {
            let cut = decode(&good[..len], 3);
            assert!(matches!(cut, Err(SnapshotError::Short { .. })), "{len}");
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(decode(&longer, 4096), Err(SnapshotError::Trailing));
        assert_eq!(decode(&longer, 1), Err(SnapshotError::Trailing));
        let mut out = Vec::new();
        let mut encoder = Encoder::begin([0; 16], &mut out);
        assert!(!encoder.row(&[0; KEY_BYTES_MAX + 1], &[], &mut out));
    }

    proptest! {
        #[test]
        fn rows_come_back_whatever_the_pieces(
            rows in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            piece in 1usize..300,
        ) {
            prop_assert_eq!(decode(&encode(&rows), piece), Ok(rows));
        }
    }
}
