//! Viewers of a desktop's screen, and the agent of its clipboard.

use crate::Seeds;

/// A message of the guest's agent in one chunk.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0, 20 + body.len() as u8, 0, 0, 0];
    bytes.extend([1, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([body.len() as u8, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

pub fn write(seeds: &Seeds) {
    let mut viewer = b"RFB 003.008\n\x01\x01".to_vec();
    // A format, encodings, an update, a key, pointers, texts, continuous updates, a fence, a size and a key by its place.
    viewer.extend([
        0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
    ]);
    viewer.extend([2, 0, 0, 2, 0, 0, 0, 7, 0xff, 0xff, 0xfe, 0xc4]);
    viewer.extend([3, 1, 0, 0, 0, 0, 4, 0, 3, 0]);
    viewer.extend([4, 1, 0, 0, 0, 0, 0xff, 0x0d]);
    viewer.extend([5, 0x81, 0, 9, 0, 9, 1]);
    viewer.extend(b"\x06\0\0\0\0\0\0\x05hello");
    viewer.extend([6, 0, 0, 0, 0xff, 0xff, 0xff, 0xfc, 8, 0, 0, 1]);
    viewer.extend([150, 1, 0, 0, 0, 0, 4, 0, 3, 0]);
    viewer.extend([248, 0, 0, 0, 0x80, 0, 0, 1, 2, 7, 8]);
    viewer.extend([251, 0, 4, 0, 3, 0, 1, 0]);
    viewer.extend([0; 16]);
    viewer.extend([255, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, 0x1e]);
    for step in [3, 20] {
        let pieces = viewer.chunks(step);
        let pieces = pieces.map(|piece| [&[piece.len() as u8 - 1][..], piece].concat());
        let pieces: Vec<_> = pieces.collect();
        let name = format!("every-message-{step}");
        seeds.write("rfb_client", &name, &pieces.concat());
    }

    let text = b"\0\0\0\0\x01\0\0\0text";
    let says = [
        message(6, &[1, 0, 0, 0, 0x60, 0, 0, 0]),
        message(7, &text[..8]),
        message(4, text),
        message(8, &text[..8]),
        message(9, &text[..4]),
    ];
    let mut script = Vec::new();
    for (step, say) in says.iter().enumerate() {
        script.extend([3, say.len() as u8]);
        script.extend(say);
        // A viewer pastes, and what is there for the guest is taken.
        script.extend([1, step as u8, 2, 0]);
        // The machine is saved and goes on.
        script.extend([7, 0]);
    }
    seeds.write("clipboard", "copy-and-paste", &script);
}
