//! A branch that synchronises a tree with a datacenter which answers honestly, with some bytes changed, with something of
//! its own making, or not at all. Nothing false is ever let in, and once the datacenter is honest again the tree arrives.
#![no_main]

use std::collections::HashMap;

use bytes::Bytes;
use dedup::NodeId;
use dedup_protocol::client::{AnswerRefused, Step, TreeSync};
use dedup_protocol::records::Tree;
use dedup_protocol::server::Responder;
use dedup_protocol::wire::{Leaves, Message};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::{Fixed, Version};
use splice_fuzz::script::Script;

/// More rounds than an honest synchronisation of the content takes; an input may spoil as many more.
const ROUNDS_MAX: usize = 8;

struct Branch<'a> {
    content: &'static Fixed,
    version: &'a Version,
    sync: TreeSync,
    held: HashMap<NodeId, Bytes>,
}

impl Branch<'_> {
    fn take(&mut self, message: &Message) -> Result<(), AnswerRefused> {
        match message {
            Message::Outline(part) => self.sync.outline(part),
            Message::Leaves(part) => {
                let held = &self.held;
                let leaves = self.sync.leaves(part, |id| held.get(&id).cloned())?;
                for (id, bytes) in leaves {
                    assert_eq!(self.content.key.node_id(&bytes), id);
                    assert!(
                        self.version.disk.leaves.contains(&id),
                        "a leaf of this tree"
                    );
                    self.held.insert(id, bytes.into());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// One request and its answer. `true` when the tree is whole.
    fn round(&mut self, script: &mut Script<'_>) -> bool {
        let held = &self.held;
        let ask = match self.sync.next(|id| held.contains_key(&id)) {
            Step::Ask(ask) => ask,
            Step::Done(disk) => {
                assert_eq!(disk, self.version.disk);
                assert!(disk.leaves.iter().all(|id| self.held.contains_key(id)));
                return true;
            }
        };
        let answer = Responder::new(self.content, &ask, |_| true);
        let mut answer = answer.expect("a branch's own request is answered");
        let mut end = matches!(ask, Message::GetOutline(_));
        while let Some(frame) = answer.next_frame().expect("the content is all there") {
            let message = match script.byte().unwrap_or(0) & 7 {
                // The link is cut.
                7 => {
                    end = false;
                    break;
                }
                // Changed.
                3 | 4 => {
                    let mut bytes = frame.encode();
                    script.edit(&mut bytes);
                    Message::decode(&bytes)
                }
                // Foreign leaves, so packed that they unpack.
                5 => Ok(foreign_leaves(script)),
                // Foreign altogether.
                6 => Message::decode(script.piece()),
                _ => Ok(frame),
            };
            // Whatever was refused, the rest of this answer is not read.
            if !message.is_ok_and(|message| self.take(&message).is_ok()) {
                end = false;
                break;
            }
        }
        if end && self.sync.outline_end().is_ok() {
            return false;
        }
        self.sync.restart_outline();
        false
    }
}

fn foreign_leaves(script: &mut Script<'_>) -> Message {
    let count = usize::from(script.byte().unwrap_or(0) & 3);
    let (mut entries, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let is_delta = script.byte().unwrap_or(0) & 1 == 1;
        let leaf = script.piece();
        entries.push((is_delta, leaf.len() as u32));
        plain.extend_from_slice(leaf);
    }
    Message::Leaves(Leaves {
        entries,
        packed: zstd::bulk::compress(&plain, 1).expect("a small buffer compresses"),
    })
}

fuzz_target!(|data: &[u8]| {
    let content = Fixed::content();
    let mut script = Script::new(data);
    let choice = script.byte().unwrap_or(0);
    let (base, version) = (&content.versions[0], &content.versions[1]);
    let parent = (choice & 1 == 1).then(|| (base.id, base.disk.clone()));
    let held = if parent.is_some() {
        base.disk.leaves.as_slice()
    } else {
        &[]
    };
    let held = held
        .iter()
        .map(|id| (*id, content.node(*id).expect("kept")));
    let mut branch = Branch {
        content,
        version,
        held: held.collect(),
        sync: TreeSync::new(
            content.key.clone(),
            version.id,
            Tree::Disk,
            version.published.record.disk,
            parent,
        )
        .expect("the disk is small"),
    };
    for _ in 0..ROUNDS_MAX {
        if branch.round(&mut script) {
            return;
        }
    }
    // What is left of the input is not read any more: from here on the datacenter is honest.
    let mut honest = Script::new(&[]);
    for _ in 0..ROUNDS_MAX {
        if branch.round(&mut honest) {
            return;
        }
    }
    panic!("an honest datacenter does not bring the tree home");
});
