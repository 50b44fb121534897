//! Repair datagrams and the stream that they repair: datagrams of any bytes and pieces of a stream at any offset, in turns, never break
//! the assembly of frames, and what it gives is no longer than what was asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splice_fuzz::script::Script;

/// The transport's own files, without QUIC, which they do not need.
#[allow(dead_code, unused_imports)]
#[path = "../../../../dedup/transport/src/link"]
mod link {
    /// The one error that they can make.
    #[derive(Debug)]
    pub enum LinkError {
        TooFarAhead { bytes_max: usize },
        FrameTooLarge { bytes: u64, bytes_max: usize },
    }

    #[path = "repair"]
    pub mod repair {
        mod assembly;
        mod code;
        mod datagram;

        pub(super) use assembly::Assembly;
        use datagram::Repair;

        /// Feeds an assembly with what the script says.
        pub fn run(mut script: splice_fuzz::script::Script<'_>) {
            let mut assembly = Assembly::default();
            while let Some(choice) = script.byte() {
                if choice & 1 == 0 {
                    let offset = u64::from(script.word());
                    let len = usize::from(script.byte().unwrap_or(0));
                    // Too far ahead ends the stream; here it goes on with what it has.
                    let _ = assembly.insert(offset, script.take(len));
                } else {
                    let len = usize::from(script.word());
                    let datagram = bytes::Bytes::copy_from_slice(script.take(len));
                    if let Some(repair) = Repair::decode(&datagram) {
                        assert_eq!(repair.encode(), datagram);
                        assembly.repair(&repair);
                    }
                }
                if choice & 2 == 0
                    && let Ok(Some(frame)) = assembly.take_frame(4096)
                {
                    assert!(frame.len() <= 4096);
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    link::repair::run(Script::new(data));
});
