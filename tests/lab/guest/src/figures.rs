//! The check `figures`: splice-vmm beside QEMU on the same KVM, with the same kernel, memory and files, in turn.
//!
//! In a machine that is emulated, times say nothing of hardware; that both are slowed alike makes their ratio worth a look. They are
//! reported, not demanded: a busy host may double any of them. Written as `figures.json` beside the report.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::checks::{BOOT, SHELL};
use crate::vm::{Engine, Lab, Options, Vm};

/// How often each is measured.
const ROUNDS: usize = 5;
/// What the kernel prints when it has started everything of its own.
const AT_INIT: &str = "as init process";
/// The file that is read, which the host then has in memory, and the reads of 4 KiB in one round.
const DATA_BYTES: u64 = 32 << 20;
const READS: u32 = 4_000;

/// One measurement of both.
struct Pair {
    splice: Vec<f64>,
    qemu: Vec<f64>,
}

impl Pair {
    fn new() -> Self {
        Self {
            splice: Vec::new(),
            qemu: Vec::new(),
        }
    }

    fn add(&mut self, engine: Engine, value: f64) {
        match engine {
            Engine::Splice => self.splice.push(value),
            Engine::Qemu => self.qemu.push(value),
        }
    }

    fn ratio(&self) -> f64 {
        median(&self.splice) / median(&self.qemu)
    }

    fn json(&self, unit: &str) -> Value {
        json!({
            "unit": unit,
            "splice-vmm": self.splice,
            "qemu": self.qemu,
            "median": { "splice-vmm": median(&self.splice), "qemu": median(&self.qemu) },
            "splice-vmm/qemu": self.ratio(),
        })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// See the module.
pub fn figures(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let boot = boots(lab, name)?;
    let reads = reads(lab, name)?;
    let all = json!({
        "where": "KVM in a machine that QEMU emulates (TCG, AMD-V), one processor, both machines with one and 512 MiB",
        "boot_to_init": boot.json("s, from the start of the program"),
        "read_4k_hits": reads.json("reads/s, direct, one at a time, of a file that the host has in memory"),
    });
    let text = serde_json::to_string_pretty(&all)?;
    fs::write(lab.out.join("figures.json"), text + "\n")?;
    Ok(vec![
        format!(
            "boot to init {:.2} s, QEMU {:.2} s: {:.2} of it (at most 1.1 is wanted)",
            median(&boot.splice),
            median(&boot.qemu),
            boot.ratio()
        ),
        format!(
            "{:.0} reads of 4 KiB a second, QEMU {:.0}: {:.2} of it (at least 1.0 is wanted)",
            median(&reads.splice),
            median(&reads.qemu),
            reads.ratio()
        ),
    ])
}

/// From the start of the program until the kernel has no more to do for itself.
fn boots(lab: &Lab, name: &str) -> Result<Pair> {
    let mut pair = Pair::new();
    for _ in 0..ROUNDS {
        for engine in [Engine::Splice, Engine::Qemu] {
            let options = Options {
                engine,
                data: Some(lab.guest.join("disk")),
                ..Options::default()
            };
            let begun = Instant::now();
            let mut vm = lab.launch(name, &options)?;
            vm.wait_for(AT_INIT, BOOT)?;
            pair.add(engine, begun.elapsed().as_secs_f64());
        }
    }
    Ok(pair)
}

/// Both are up, and read in turn.
fn reads(lab: &Lab, name: &str) -> Result<Pair> {
    let data = lab.guest.join("data");
    fill(&data)?;
    let start = |engine: Engine| -> Result<Vm> {
        let check = format!("{name}-{}", engine.name().to_lowercase());
        let disk = lab.fresh_disk()?;
        // Its own copy: the other one's is in use.
        let own = disk.with_file_name(format!("{check}.disk"));
        fs::rename(&disk, &own)?;
        let options = Options {
            engine,
            disk: Some(own),
            data: Some(data.clone()),
            ..Options::default()
        };
        let mut vm = lab.launch(&check, &options)?;
        vm.boot_and_log_in(BOOT)?;
        vm.run("systemctl is-system-running --wait || true", BOOT)?;
        Ok(vm)
    };
    let mut machines = Vec::new();
    for engine in [Engine::Splice, Engine::Qemu] {
        machines.push((engine, start(engine)?));
    }
    let command = format!("dd if=/dev/vdb of=/dev/null bs=4k count={READS} iflag=direct 2>&1");
    let mut pair = Pair::new();
    for round in 0..=ROUNDS {
        for (engine, vm) in &mut machines {
            let said = vm.run(&command, SHELL * 5)?;
            let seconds = seconds_of(&said).with_context(|| said.clone())?;
            // The first one may find things that are done once.
            if round > 0 {
                pair.add(*engine, f64::from(READS) / seconds);
            }
        }
    }
    drop(machines);
    for engine in [Engine::Splice, Engine::Qemu] {
        let disk = format!("{name}-{}.disk", engine.name().to_lowercase());
        fs::remove_file(lab.guest.join(disk))?;
    }
    fs::remove_file(data)?;
    Ok(pair)
}

/// Makes the file, and reads it once so that the host has it in memory.
fn fill(path: &Path) -> Result<()> {
    let random = File::open("/dev/urandom")?;
    let mut file = File::create(path)?;
    io::copy(&mut io::Read::take(random, DATA_BYTES), &mut file)?;
    file.sync_all()?;
    let read = io::copy(&mut File::open(path)?, &mut io::sink())?;
    ensure!(read == DATA_BYTES, "{read} bytes of data");
    Ok(())
}

/// The seconds that dd tells.
fn seconds_of(said: &str) -> Option<f64> {
    let (_, after) = said.split_once("copied, ")?;
    let seconds = after.split_whitespace().next()?.parse().ok()?;
    (seconds > 0.0).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dd_s_words_are_understood() {
        let said = "4000+0 records in\r\n4000+0 records out\r\n16384000 bytes (16 MB, 16 MiB) copied, 2.5 s, 6.6 MB/s\r\n";
        assert_eq!(seconds_of(said), Some(2.5));
        for wrong in ["", "copied, ", "copied, x s", "copied, 0 s", "copied, -1 s"] {
            assert_eq!(seconds_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_ratio_is_of_medians() {
        let pair = Pair {
            splice: vec![3.0, 1.0, 2.0],
            qemu: vec![4.0, 400.0, 1.0],
        };
        assert!((pair.ratio() - 0.5).abs() < 1e-9);
        let json = pair.json("s");
        assert_eq!(json["median"]["qemu"], 4.0);
        assert_eq!(json["splice-vmm"][0], 3.0);
        assert!(median(&[]).is_nan());
    }
}
