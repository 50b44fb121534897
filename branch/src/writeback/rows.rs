//! What is durable of a volume's line at a branch, beside its overlay: the right to it, and how far it was sent.
//!
//! Invariant: a row is durable before any message that depends on it is sent, and before its overlay is touched because of it. A row
//! begins with its version; one of a later release is refused.

use dedup_protocol::state::Generation;
use dedup_protocol::state::authority::HoldRow;
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::writeback::SendRow;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::catalog::CatalogError;

/// Version of both rows.
const VERSION: u8 = 1;

/// Whose writes the overlay in a volume's place holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverlayOf {
    /// Those from before the volume's first lease, if there are any. It is the only copy, and nothing but the volume's end takes it away.
    Unleased,
    /// Those under this generation.
    Under(Generation),
    /// Nobody's: it was given back or settled, and removed.
    Gone,
}

/// A branch's right to a volume, as the catalog keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptHold {
    /// Where it stands.
    pub row: HoldRow,
    /// The newest lease as it was signed, while it is held.
    pub lease: Option<Vec<u8>>,
    /// What the overlay is.
    pub overlay: OverlayOf,
}

/// Where rows are kept.
pub trait Rows: Send + Sync {
    /// Keeps the right to a volume; durable on return.
    ///
    /// # Errors
    /// It is not kept.
    fn keep_hold(&self, kept: &KeptHold) -> Result<(), CatalogError>;

    /// Keeps how far a volume was sent; durable on return.
    ///
    /// # Errors
    /// It is not kept.
    fn keep_send(&self, row: &SendRow) -> Result<(), CatalogError>;

    /// Opens a lease that came.
    ///
    /// # Errors
    /// It is not signed for this realm.
    fn open_lease(&self, envelope: &[u8], now_unix_s: u64) -> Result<Lease, CatalogError>;
}

/// A row's bytes.
pub fn write_row(row: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(row, vec![VERSION]).expect("rows serialise without failing")
}

/// Reads a row.
///
/// # Errors
/// What is wrong with it.
pub fn read_row<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes {
        [VERSION, body @ ..] => match postcard::take_from_bytes(body) {
            Ok((row, [])) => Ok(row),
            Ok((_, rest)) => Err(format!("{} bytes behind its end", rest.len())),
            Err(error) => Err(error.to_string()),
        },
        [version, ..] => Err(format!(
            "it has version {version}; start the release that wrote it"
        )),
        [] => Err("it is empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use dedup::DesktopId;
    use dedup_protocol::state::authority::Stage;
    use dedup_protocol::state::{Head, Line, Nonce, Position};

    use super::*;

    #[test]
    fn rows_have_their_golden_bytes_and_others_are_refused() {
        let kept = KeptHold {
            row: HoldRow {
                desktop: DesktopId([1; 16]),
                stage: Stage::Idle {
                    last: Generation(2),
                },
                asking: Some(Nonce([3; 16])),
                seen_unix_s: 300,
            },
            lease: None,
            overlay: OverlayOf::Under(Generation(2)),
        };
        let bytes = write_row(&kept);
        let golden = format!("01{}000201{}ac02000102", "01".repeat(16), "03".repeat(16));
        assert_eq!(hex::encode(&bytes), golden);
        assert_eq!(read_row::<KeptHold>(&bytes), Ok(kept));
        let send = SendRow {
            line: Line {
                desktop: DesktopId([1; 16]),
                generation: Generation(2),
                fork: None,
            },
            acked: Position {
                seq: 5,
                head: Head([4; 32]),
            },
            sealed: None,
        };
        let bytes = write_row(&send);
        let golden = format!("01{}020005{}00", "01".repeat(16), "04".repeat(32));
        assert_eq!(hex::encode(&bytes), golden);
        assert_eq!(read_row::<SendRow>(&bytes), Ok(send));
        let mut later = bytes.clone();
        later[0] = 2;
        assert!(
            read_row::<SendRow>(&later)
                .unwrap_err()
                .contains("version 2")
        );
        let longer = [&bytes[..], &[0]].concat();
        read_row::<SendRow>(&longer).unwrap_err();
        for len in 0..bytes.len() {
            read_row::<SendRow>(&bytes[..len]).unwrap_err();
        }
    }
}
