//! Lines out of a stream of bytes. What it holds is bounded; a line over the limit is passed over whole and told once, at its end.
//!
//! A stream may begin in the midst of a line that an earlier end wrote: that line is malformed, the next one is whole.

/// Longest line without its end, in bytes. The longest [`Report`](crate::Report) has 12 KB.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// A line was longer than [`LINE_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {LINE_BYTES_MAX} bytes")]
pub struct TooLong;

/// See the module.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    is_too_long: bool,
}

impl Lines {
    /// Takes bytes as they come and hands on each line that they complete, without its end. Empty lines say nothing.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Result<&[u8], TooLong>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.hold(&bytes[..end]);
            bytes = &bytes[end + 1..];
            if self.is_too_long {
                each(Err(TooLong));
            } else if !self.line.is_empty() {
                each(Ok(self.line.as_slice()));
            }
            self.forget();
        }
        self.hold(bytes);
    }

    /// Forgets the line that has begun, as when the stream broke.
    pub fn forget(&mut self) {
        self.line.clear();
        self.is_too_long = false;
    }

    fn hold(&mut self, part: &[u8]) {
        if self.is_too_long || self.line.len() + part.len() > LINE_BYTES_MAX {
            self.is_too_long = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(parts: &[&[u8]]) -> Vec<Result<Vec<u8>, TooLong>> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for part in parts {
            lines.push(part, |line| found.push(line.map(<[u8]>::to_vec)));
        }
        found
    }

    #[test]
    fn lines_end_where_they_end() {
        assert_eq!(
            all(&[b"a", b"b\n\ncd\ne"]),
            [Ok(b"ab".to_vec()), Ok(b"cd".to_vec())]
        );
    }

    #[test]
    fn a_line_over_the_limit_is_told_once_and_the_next_is_whole() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(all(&[&long, b"\n"]), [Ok(long.clone())]);
        assert_eq!(
            all(&[&long, b"x", &long, b"\nnext\n"]),
            [Err(TooLong), Ok(b"next".to_vec())]
        );
        let mut lines = Lines::default();
        for _ in 0..100 {
            lines.push(&long, |_| {});
        }
        assert!(lines.line.capacity() <= 2 * LINE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_makes_no_difference(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400), cut in 1usize..50) {
            let parts: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(all(&parts), all(&[&bytes]));
        }
    }
}
