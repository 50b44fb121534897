//! Delta tools with both disks at hand: what can be reached by one who knows exactly what the other side has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Program, Usage};
use crate::row::Metric;
use crate::session::Recorder;

/// Most that one slice of zstd's may be: it refuses reference files of 2 GB and more, and its window is 1 GiB.
const SLICE_MIB: u64 = 1024;

/// One run over 10 GiB; xdelta3 needs 110 s on a quiet machine.
const LIMIT: Duration = Duration::from_secs(1200);

/// `zstd --patch-from` slice by slice, as its limits demand; of equal slices nothing is made if `skip_equal`.
///
/// # Errors
/// zstd fails, or what it decodes is not the disk.
pub(crate) fn zstd_patch(
    recorder: &mut Recorder,
    case: &str,
    (before, after): &(PathBuf, PathBuf),
    data_mb: f64,
    scratch: &Path,
    skip_equal: bool,
) -> Result<()> {
    let folder = scratch.join("slices");
    std::fs::create_dir_all(&folder).context("a folder for slices")?;
    let size = std::fs::metadata(after)
        .with_context(|| after.display().to_string())?
        .len();
    let (mut bytes, mut encode, mut decode_s) = (0.0, Usage::default(), 0.0);
    for slice in 0..size.div_ceil(SLICE_MIB << 20) {
        for (disk, name) in [(before, "old"), (after, "new")] {
            Program::new("dd")
                .args([
                    "bs=1M",
                    "conv=sparse",
                    "status=none",
                    &format!("count={SLICE_MIB}"),
                ])
                .arg(format!("skip={}", slice * SLICE_MIB))
                .arg(format!("if={}", disk.display()))
                .arg(format!("of={}", folder.join(name).display()))
                .run(scratch, LIMIT)?;
            // A slice whose end is a hole came out short.
            let file = std::fs::File::options()
                .write(true)
                .open(folder.join(name))
                .context("a slice")?;
            file.set_len((size - slice * (SLICE_MIB << 20)).min(SLICE_MIB << 20))
                .context("a slice")?;
        }
        // An equal slice has a patch of a few bytes; making it would take as long as any.
        let cmp = Program::new("cmp").folder(&folder);
        if skip_equal
            && cmp
                .clone()
                .args(["-s", "old", "new"])
                .run(scratch, LIMIT)
                .is_ok()
        {
            continue;
        }
        let zstd = || {
            Program::new("zstd")
                .folder(&folder)
                .args(["-q", "-f", "--long=30", "--patch-from=old"])
        };
        let done = zstd()
            .args(["-3", "new", "-o", "patch"])
            .run(scratch, LIMIT)?
            .usage;
        encode.cpu_s += done.cpu_s;
        encode.seconds += done.seconds;
        encode.rss_mb = encode.rss_mb.max(done.rss_mb);
        bytes += std::fs::metadata(folder.join("patch"))
            .context("a patch")?
            .len() as f64;
        decode_s += zstd()
            .args(["-d", "patch", "-o", "out"])
            .run(scratch, LIMIT)?
            .usage
            .seconds;
        cmp.args(["new", "out"]).run(scratch, LIMIT)?;
    }
    std::fs::remove_dir_all(&folder).context("the slices")?;
    recorder.put(case, Metric::WireBytes, bytes, None);
    recorder.put(case, Metric::Seconds, encode.seconds, None);
    recorder.put(case, Metric::CpuS, encode.cpu_s, None);
    recorder.put(case, Metric::RssMb, encode.rss_mb, None);
    if !skip_equal {
        recorder.put(case, Metric::MbPerS, data_mb / decode_s, None);
    }
    Ok(())
}

/// xdelta3 with a window of 512 MiB and no compression of its own, then zstd; read back if `decode`.
///
/// # Errors
/// It fails, or what it decodes is not the disk.
pub(crate) fn xdelta3(
    recorder: &mut Recorder,
    case: &str,
    (before, after): &(PathBuf, PathBuf),
    data_mb: f64,
    scratch: &Path,
    decode: bool,
) -> Result<()> {
    let (delta, packed) = (scratch.join("delta"), scratch.join("delta.zst"));
    let make = Program::new("xdelta3")
        .args(["-e", "-f", "-1", "-S", "none", "-B", "536870912", "-s"])
        .args([before, after, &delta])
        .run(scratch, LIMIT)?;
    let pack = Program::new("zstd")
        .args(["-q", "-f", "-3"])
        .arg(&delta)
        .arg("-o")
        .arg(&packed)
        .run(scratch, LIMIT)?;
    let bytes = std::fs::metadata(&packed)
        .context("the packed delta")?
        .len();
    if decode {
        let script = "set -o pipefail; zstd -qdc \"$0\" | xdelta3 -d -c -B 536870912 -s \"$1\" | cmp - \"$2\"";
        let done = Program::new("bash")
            .args(["-c", script])
            .args([&packed, before, after])
            .run(scratch, LIMIT)?;
        recorder.put(case, Metric::MbPerS, data_mb / done.usage.seconds, None);
    }
    for file in [delta, packed] {
        std::fs::remove_file(&file).context("a delta")?;
    }
    recorder.put(case, Metric::WireBytes, bytes as f64, None);
    recorder.put(
        case,
        Metric::Seconds,
        make.usage.seconds + pack.usage.seconds,
        None,
    );
    recorder.put(
        case,
        Metric::CpuS,
        make.usage.cpu_s + pack.usage.cpu_s,
        None,
    );
    recorder.put(case, Metric::RssMb, make.usage.rss_mb, None);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_patch_of_a_real_pair_is_small_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = (folder.path().join("before"), folder.path().join("after"));
        let mut bytes: Vec<u8> = (0..3_000_000u32)
            .flat_map(|n| (n ^ (n >> 3)).wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        std::fs::write(&before, &bytes).unwrap();
        bytes[5_000_000..5_000_100].fill(9);
        bytes.resize(14_000_000, 0);
        std::fs::write(&after, &bytes).unwrap();
        let mut recorder = Recorder::of("zstd-patch");
        zstd_patch(
            &mut recorder,
            "v1-v2",
            &(before, after),
            12.0,
            folder.path(),
            true,
        )
        .unwrap();
        let wire = recorder
            .samples()
            .iter()
            .find(|s| s.metric == Metric::WireBytes)
            .unwrap()
            .value;
        assert!(wire < 20_000.0, "{wire}");
    }
}
