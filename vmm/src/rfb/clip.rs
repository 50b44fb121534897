//! A viewer's clipboard: plain messages in Latin-1, or the extension by which all of Unicode is told of, asked for and given (rfbproto,
//! "Extended Clipboard Pseudo-Encoding").
//!
//! The extension is announced when the guest's agent answers, not before. A viewer is told of what the guest copies while it looks, not
//! of what was copied before, which would replace its own. Invariant: however often a viewer asks, one answer of each kind is due.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use super::wire::to_client;
use crate::clipboard::{Clipboard, TEXT_BYTES_MAX};

/// What is meant, and what is done with it.
mod flag {
    pub(super) const TEXT: u32 = 1 << 0;
    pub(super) const CAPABILITIES: u32 = 1 << 24;
    pub(super) const REQUEST: u32 = 1 << 25;
    pub(super) const PEEK: u32 = 1 << 26;
    pub(super) const NOTIFY: u32 = 1 << 27;
    pub(super) const PROVIDE: u32 = 1 << 28;
    pub(super) const ACTIONS: u32 = 0xff00_0000;
}

/// See the module.
pub(super) struct Clip {
    clipboard: Clipboard,
    is_extended: bool,
    has_announced: bool,
    /// Number of the guest's text that it knows of.
    known: u64,
    owes_notice: bool,
    owes_text: bool,
    owes_request: bool,
}

impl Clip {
    pub(super) fn new(clipboard: Clipboard) -> Self {
        Self {
            known: clipboard.copied().number,
            clipboard,
            is_extended: false,
            has_announced: false,
            owes_notice: false,
            owes_text: false,
            owes_request: false,
        }
    }

    /// Whether the viewer knows the extension.
    pub(super) fn set_extended(&mut self, extended: bool) {
        self.is_extended = extended;
    }

    /// Plain text of the viewer's.
    pub(super) fn hear_text(&self, latin_1: &[u8]) {
        let text: String = latin_1.iter().map(|byte| char::from(*byte)).collect();
        self.clipboard.paste(&text);
    }

    /// A message of the extension; what makes no sense is passed over.
    pub(super) fn hear(&mut self, content: &[u8]) {
        let Some((flags, content)) = content.split_first_chunk() else {
            return;
        };
        let flags = u32::from_be_bytes(*flags);
        let has_text = flags & flag::TEXT != 0;
        match flags & flag::ACTIONS {
            flag::REQUEST => self.owes_text |= has_text,
            flag::PEEK => self.owes_notice = true,
            flag::NOTIFY => self.owes_request |= has_text && self.clipboard.is_ready(),
            flag::PROVIDE if has_text => {
                if let Some(text) = unpack(content) {
                    self.clipboard.paste(&text);
                }
            }
            // Its capabilities: it gives nothing that it was not asked for, and neither do we.
            _ => {}
        }
    }

    /// What is to be sent now.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.is_extended && !self.has_announced {
            if !self.clipboard.is_ready() {
                return out;
            }
            self.has_announced = true;
            let all = flag::REQUEST | flag::PEEK | flag::NOTIFY | flag::PROVIDE;
            // It is to give no text that was not asked for, however short.
            put(flag::CAPABILITIES | all | flag::TEXT, &[0; 4], &mut out);
        }
        let copied = self.clipboard.copied();
        if std::mem::replace(&mut self.known, copied.number) != copied.number {
            if self.is_extended {
                self.owes_notice = true;
            } else if let Some(text) = &copied.text {
                put_plain(text, &mut out);
            }
        }
        let text = if copied.text.is_some() { flag::TEXT } else { 0 };
        if std::mem::take(&mut self.owes_notice) {
            put(flag::NOTIFY | text, &[], &mut out);
        }
        if std::mem::take(&mut self.owes_request) {
            put(flag::REQUEST | flag::TEXT, &[], &mut out);
        }
        if let (true, Some(text)) = (std::mem::take(&mut self.owes_text), &copied.text) {
            put(flag::PROVIDE | flag::TEXT, &pack(text), &mut out);
        }
        out
    }
}

/// A message of the extension.
fn put(flags: u32, content: &[u8], out: &mut Vec<u8>) {
    let len = 4 + content.len() as i32;
    out.extend([to_client::CUT_TEXT, 0, 0, 0]);
    out.extend((-len).to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend_from_slice(content);
}

/// A plain message; what Latin-1 does not have is a question mark.
fn put_plain(text: &str, out: &mut Vec<u8>) {
    let latin_1: Vec<u8> = text
        .chars()
        .map(|character| u8::try_from(u32::from(character)).unwrap_or(b'?'))
        .collect();
    out.extend([to_client::CUT_TEXT, 0, 0, 0]);
    out.extend((latin_1.len() as u32).to_be_bytes());
    out.extend(latin_1);
}

/// A text as the extension has it: its length, lines that end as those of DOS, a zero, all compressed.
fn pack(text: &str) -> Vec<u8> {
    let text = text.replace("\r\n", "\n").replace('\n', "\r\n");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    let len = text.len() as u32 + 1;
    let packed = zlib
        .write_all(&len.to_be_bytes())
        .and_then(|()| zlib.write_all(text.as_bytes()))
        .and_then(|()| zlib.write_all(&[0]))
        .and_then(|()| zlib.finish());
    packed.expect("memory takes everything")
}

/// A viewer's text. Its stream need not end.
fn unpack(packed: &[u8]) -> Option<String> {
    let mut zlib = ZlibDecoder::new(packed);
    let mut len = [0; 4];
    zlib.read_exact(&mut len).ok()?;
    let len = u32::from_be_bytes(len) as usize;
    // Lines of one byte are two here.
    let mut text = vec![0; Some(len).filter(|len| *len <= 2 * TEXT_BYTES_MAX + 1)?];
    zlib.read_exact(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let text = text.trim_end_matches('\0').replace("\r\n", "\n");
    (text.len() <= TEXT_BYTES_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_packed_with_their_lines_and_come_back() {
        for text in ["", "one line", "zwei\nZeilen: ä€", "dos\r\nlines\r\n"] {
            let plain = text.replace("\r\n", "\n");
            assert_eq!(unpack(&pack(text)), Some(plain));
        }
        let mut wire = Vec::new();
        ZlibDecoder::new(pack("a\nb").as_slice())
            .read_to_end(&mut wire)
            .expect("a zlib stream");
        assert_eq!(wire, b"\0\0\0\x05a\r\nb\0");
        let long = "\n".repeat(TEXT_BYTES_MAX);
        assert_eq!(unpack(&pack(&long)), Some(long));
        assert_eq!(unpack(&pack(&"x".repeat(TEXT_BYTES_MAX + 1))), None);
        for wrong in [b"".as_slice(), b"no zlib", &pack("cut")[..9]] {
            assert_eq!(unpack(wrong), None);
        }
    }

    #[test]
    fn a_small_message_that_claims_gigabytes_is_dropped() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
        zlib.write_all(&u32::MAX.to_be_bytes()).expect("memory");
        zlib.write_all(&[b'x'; 10 << 20]).expect("memory");
        assert_eq!(unpack(&zlib.finish().expect("memory")), None);
    }

    #[test]
    fn messages_are_as_documented() {
        let mut out = Vec::new();
        put(flag::NOTIFY | flag::TEXT, &[], &mut out);
        assert_eq!(out, [3, 0, 0, 0, 0xff, 0xff, 0xff, 0xfc, 8, 0, 0, 1]);
        out.clear();
        put_plain("é€", &mut out);
        assert_eq!(out, [3, 0, 0, 0, 0, 0, 0, 2, 0xe9, b'?']);
    }

    #[test]
    fn without_an_agent_nothing_is_said() {
        let mut clip = Clip::new(Clipboard::default());
        clip.set_extended(true);
        clip.hear(&(flag::REQUEST | flag::TEXT).to_be_bytes());
        clip.hear(&[1, 2]);
        clip.hear(&(flag::NOTIFY | flag::TEXT).to_be_bytes());
        assert!(clip.take().is_empty());
    }
}
