//! What lies on our own disks: packs, overlay logs, cache indexes, backups, templates; and what a bucket for these answers.

#[path = "../../../../branch/src/template/head.rs"]
#[allow(dead_code, missing_docs, reason = "seeds are of the writing half")]
mod head;

use dedup::VersionId;
use head::{BLOCK_PAGES, Block, Content, Extent, Head, Identity, Page};
use splice_fuzz::script::piece;

use crate::Seeds;

/// The pack that every release must read.
const GOLDEN_PACK: &str = include_str!("../../../../dedup/store/tests/golden/pack-v1.hex");

pub fn write(seeds: &Seeds) {
    let digits: String = GOLDEN_PACK
        .chars()
        .filter(char::is_ascii_hexdigit)
        .collect();
    seeds.write("pack", "golden", &hex::decode(digits).unwrap());
    overlays(seeds);
    caches(seeds);
    catalogs(seeds);
    keys(seeds);
    buckets(seeds);
}

fn buckets(seeds: &Seeds) {
    for (name, xml) in [
        (
            "list",
            "<ListBucketResult><Contents><Key>a/b&amp;c</Key></Contents><NextContinuationToken>1/&#x2B;=</NextContinuationToken></ListBucketResult>",
        ),
        (
            "uploads",
            "<R><Upload><Key>a</Key><UploadId>u</UploadId></Upload></R>",
        ),
        (
            "error",
            "<Error><Code>AccessDenied</Code><Message>&lt;no&gt;</Message></Error>",
        ),
    ] {
        seeds.write("s3_answer", name, xml.as_bytes());
    }
    templates(seeds);
}

/// Heads of templates: one of nothing, one with each kind of page and extent.
fn templates(seeds: &Seeds) {
    let nothing = Head {
        identity: Identity {
            version: VersionId([7; 32]),
            memory_mib: 64,
            vcpus: 1,
            card: false,
            vmm: [8; 32],
        },
        made_unix_s: 1,
        agent: false,
        state_bytes: 1,
        blocks: Vec::new(),
        disk_bytes: 1 << 20,
        extents: Vec::new(),
        order: Vec::new(),
    };
    seeds.write("template", "nothing", &nothing.encode());
    let mut pages = [Page::Zero; BLOCK_PAGES];
    (pages[0], pages[1]) = (Page::Own, Page::Image(300));
    let block = |index| Block {
        index,
        name: [9; 32],
        pages,
    };
    let extent = |start, content| Extent {
        start,
        len: 4096,
        content,
    };
    let all = Head {
        blocks: vec![block(0), block(1), block(1023)],
        extents: vec![
            extent(0, Content::Data),
            extent(4096, Content::Zero { hole: true }),
            extent(8192, Content::Zero { hole: false }),
        ],
        order: vec![1, 2, 3],
        ..nothing
    };
    seeds.write("template", "all", &all.encode());
}

/// Headers of both kinds of key files; the target makes the checksums right.
fn keys(seeds: &Seeds) {
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>()
    };
    for purpose in [1, 2, 3] {
        let mut key = b"SPLWRKEY".to_vec();
        key.extend(words(&[1, purpose]));
        key.extend([7; 24]);
        key.extend(words(&[1, 0]));
        key.extend([3; 80]);
        seeds.write("keys", &format!("data-{purpose}"), &key);
    }
    for (mode, parameters) in [(1, 0), (2, 28), (3, 40)] {
        let mut key = b"SPLBRKEY".to_vec();
        key.extend(words(&[1, mode]));
        key.extend([7; 8]);
        key.extend(words(&[parameters, 0]));
        key.extend(vec![1; parameters as usize + 80]);
        seeds.write("keys", &format!("branch-{mode}"), &key);
    }
}

/// A catalog in a backup: the size of the pieces, the header, rows, the end with their number.
fn catalogs(seeds: &Seeds) {
    let header = [b"SPLCATB\0\x01\0\0\0\0\0\0\0".as_slice(), &[7; 16]].concat();
    let row = |key: &[u8], row: &[u8]| {
        let lengths = [key.len() as u32, row.len() as u32].map(u32::to_le_bytes);
        [&lengths.concat()[..], key, row].concat()
    };
    let rows = [
        row(&[1], &[1, 1, 7]),
        row(b"\x02debian", &[1; 40]),
        row(&[], &[]),
    ];
    for count in 0..=rows.len() {
        let end = [&[0xFF; 8][..], &(count as u64).to_le_bytes()].concat();
        let bytes = [&[16][..], &header, &rows[..count].concat(), &end].concat();
        seeds.write("catalog_snapshot", &format!("rows-{count}"), &bytes);
    }
}

/// Fields of records whose checksums the target makes right: kind at 4, disk at 6, offset at 24, length at 32.
fn overlays(seeds: &Seeds) {
    for choice in 0..8u8 {
        let mut log = vec![choice];
        for (kind, disk, offset, len) in [
            (1, 0, 2, 2),
            (1, 1, 16, 8),
            (2, 0, 0, 16),
            (3, 0, 4, 2),
            (1, 0, 0, 4),
        ] {
            let mut record = [0u8; 96];
            (record[4], record[6], record[25], record[33]) = (kind, disk, offset, len);
            log.extend_from_slice(&record);
        }
        seeds.write("overlay", &format!("records-{choice}"), &log);
    }
    // Parts of an index snapshot: kind, length, content. One segment, then two extents of the first disk.
    let mut index = vec![129, 1, 32];
    index.extend_from_slice(&[1u32, 0].map(u32::to_le_bytes).concat());
    index.extend_from_slice(&[1u64, 98, 60 << 10].map(u64::to_le_bytes).concat());
    index.extend_from_slice(&[2, 48]);
    index.extend_from_slice(&[0; 8]);
    for words in [[0, 0, 8, 1, 1], [16u32, 1 << 8, 4, 1, 0]] {
        index.extend_from_slice(&words.map(u32::to_le_bytes).concat());
    }
    seeds.write("overlay", "index", &index);
}

fn caches(seeds: &Seeds) {
    let value = |slab: u32, slot: u32, len: u32, quarantined: bool| {
        let head = [1, if quarantined { 2 } else { 1 }];
        let words = [slab, slot, len, 9].map(u32::to_le_bytes).concat();
        piece(&[&head[..], &words].concat())
    };
    let values = [
        value(0, 0, 4096, false),
        value(0, 1, 9000, false),
        value(1, 0, 262_144, true),
        value(0, 1, 1, false),
        value(1, 1000, 0, false),
    ];
    seeds.write(
        "cache",
        "index",
        &[&1023u16.to_le_bytes()[..], &values.concat()].concat(),
    );
    for magic in [b"SPLCACHE", b"SPLCSLAB"] {
        let mut header = [0u8; 80];
        header[..8].copy_from_slice(magic);
        (header[8], header[64]) = (2, 8);
        seeds.write("cache", std::str::from_utf8(magic).unwrap(), &header);
    }
}
