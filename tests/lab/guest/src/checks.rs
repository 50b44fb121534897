//! The checks, each as a person would do it.

use std::path::Path;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmm_api::{Answer, Command, MachineState};

use crate::vm::{Lab, Options, wait};

/// Emulated twice, a boot to the login prompt takes a minute or more.
pub const BOOT: Duration = Duration::from_secs(300);
pub const SHELL: Duration = Duration::from_secs(60);

type Check = fn(&Lab, &str) -> Result<Vec<String>>;

/// By name, in the order in which they run.
pub const ALL: &[(&str, Check)] = &[
    ("boot", boot),
    ("disk", disk),
    ("reboot", reboot),
    ("power-button", power_button),
    ("pause", pause),
    ("balloon", balloon),
    ("snapshot", snapshot),
    ("net", crate::network::net),
    ("x", crate::picture::x),
    ("differential", crate::differential::differential),
    ("figures", crate::figures::figures),
    ("xfce", crate::xfce::xfce),
];

/// Those that take an hour or a disk of their own, and run only when they are named.
pub const BY_NAME: &[&str] = &["xfce"];

/// An unmodified Debian boots to its login prompt, and what it finds is what was given.
fn boot(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let options = Options {
        disk: Some(lab.fresh_disk()?),
        vcpus: 2,
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    let seconds = vm.boot_and_log_in(BOOT)?;
    let processors = vm.run("nproc", SHELL)?;
    ensure!(processors.trim() == "2", "{processors:?} processors");
    let clock = vm.run("date +%s", SHELL)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let off = clock.trim().parse::<u64>()?.abs_diff(now.as_secs());
    ensure!(off < 120, "the guest's clock is {off} s off");
    vm.run("ls /dev/hwrng && head -c 64 /dev/hwrng | wc -c", SHELL)?;
    let errors = vm.run("dmesg -l emerg,alert,crit,err", SHELL)?;
    let (all, own) = vm.resident_kib()?;
    vm.run("systemctl poweroff", SHELL)?;
    let end = vm.wait_end(SHELL)?;
    ensure!(end.success(), "{end} after powering off");
    Ok(vec![
        format!("login prompt after {seconds:.1} s"),
        format!("resident {all} KiB, {own} KiB beside the guest's memory"),
        format!("kernel errors: {:?}", errors.trim()),
    ])
}

/// What a guest has synced is there after the machine was ended without warning.
fn disk(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let disk = lab.fresh_disk()?;
    let options = Options {
        disk: Some(disk),
        ..Options::default()
    };
    let sum;
    {
        let mut vm = lab.launch(name, &options)?;
        vm.boot_and_log_in(BOOT)?;
        vm.run("mount -o remount,rw /", SHELL)?;
        vm.run(
            "dd if=/dev/urandom of=/root/data bs=64k count=64 conv=fsync 2>/dev/null",
            SHELL,
        )?;
        sum = vm.run("sha256sum /root/data", SHELL)?;
        vm.run("sync; fstrim -v / || true", SHELL)?;
        ensure!(vm.ask(&Command::Quit)? == Answer::Done);
    }
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    let again = vm.run("sha256sum /root/data", SHELL)?;
    ensure!(sum.trim() == again.trim(), "{sum} became {again}");
    Ok(Vec::new())
}

/// A guest that reboots starts anew in the same process.
fn reboot(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let options = Options {
        disk: Some(lab.fresh_disk()?),
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    vm.type_line("systemctl reboot")?;
    vm.boot_and_log_in(BOOT)?;
    ensure!(vm.status()?.resets == 1);
    Ok(Vec::new())
}

/// The power button shuts a guest down in order.
fn power_button(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let options = Options {
        disk: Some(lab.fresh_disk()?),
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    ensure!(vm.ask(&Command::PowerButton)? == Answer::Done);
    vm.wait_for("Power down", BOOT)?;
    let end = vm.wait_end(SHELL)?;
    ensure!(end.success(), "{end} after the power button");
    Ok(Vec::new())
}

/// A paused machine does nothing, and goes on as if nothing had been.
fn pause(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let options = Options {
        disk: Some(lab.fresh_disk()?),
        vcpus: 2,
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    vm.type_line("while sleep 0.2; do echo tick; done")?;
    vm.wait_for("tick", SHELL)?;
    ensure!(vm.ask(&Command::Pause)? == Answer::Done);
    ensure!(vm.status()?.state == MachineState::Paused);
    let len = || std::fs::metadata(vm.log()).map(|log| log.len());
    let before = len()?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(len()? == before, "a paused guest prints");
    ensure!(vm.ask(&Command::Resume)? == Answer::Done);
    wait("the guest to go on", SHELL, || {
        let more = std::fs::metadata(vm.log())?.len() > before + 20;
        Ok(more.then_some(()))
    })?;
    Ok(Vec::new())
}

/// Memory that the balloon takes is the host's again.
fn balloon(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let options = Options {
        disk: Some(lab.fresh_disk()?),
        memory_mib: 640,
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    // Memory that was used once: what was never touched takes nothing of the host's anyway.
    vm.run(
        "dd if=/dev/zero of=/dev/shm/filled bs=1M count=256 2>/dev/null",
        SHELL,
    )?;
    let (before, _) = vm.resident_kib()?;
    vm.run("rm /dev/shm/filled", SHELL)?;
    ensure!(vm.ask(&Command::Balloon { mib: 256 })? == Answer::Done);
    wait("the guest to give 256 MiB", SHELL, || {
        Ok((vm.status()?.balloon_mib >= 256).then_some(()))
    })?;
    let (after, _) = vm.resident_kib()?;
    ensure!(
        after + 128 * 1024 < before,
        "{before} KiB before, {after} KiB with a balloon of 256 MiB"
    );
    ensure!(vm.ask(&Command::Balloon { mib: 0 })? == Answer::Done);
    wait("the guest to take it back", SHELL, || {
        Ok((vm.status()?.balloon_mib == 0).then_some(()))
    })?;
    vm.run("true", SHELL)?;
    Ok(vec![format!("resident {before} KiB, then {after} KiB")])
}

/// A desktop that was saved goes on in other processes, with what it had in memory and on its disk, at the right time, with new
/// randomness; each of them goes its own way.
fn snapshot(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let disk = lab.fresh_disk()?;
    let dir = std::env::temp_dir().join("desktop.snapshot");
    let _ = std::fs::remove_dir_all(&dir);
    // The cloud kernel of the small image has no driver for the machine's generation. One processor, as the machine around it has: two that
    // wait for each other's memory there take minutes.
    let mut options = Options {
        system: "generic",
        disk: Some(disk.clone()),
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    vm.boot_and_log_in(BOOT)?;
    vm.run("mount -o remount,rw /", SHELL)?;
    vm.run("echo before >/root/file && sync", SHELL)?;
    vm.run("kept=in-memory-$$", SHELL)?;
    let kept = vm.run("echo $kept", SHELL)?;
    let boot = vm.run("cat /proc/sys/kernel/random/boot_id", SHELL)?;
    let begun = Instant::now();
    let said = lab.snapshot(&vm, &dir)?;
    let saving = begun.elapsed().as_secs_f64();
    let end = vm.wait_end(SHELL)?;
    ensure!(end.success(), "{end} after the snapshot");
    drop(vm);
    let mut notes = vec![format!(
        "saved in {saving:.1} s, {} on the disk{said}",
        used(&dir)?
    )];

    let copy = disk.with_extension("copy");
    let copied = Program::new("cp")
        .arg("--sparse=always")
        .arg(&disk)
        .arg(&copy)
        .status()?;
    ensure!(copied.success(), "copying the disk");
    options.resume = Some(dir.clone());
    for (disk, what) in [(disk, "first"), (copy.clone(), "second")] {
        options.disk = Some(disk);
        let begun = Instant::now();
        let mut vm = lab.launch(name, &options)?;
        let said = vm.run("echo $kept", SHELL)?;
        let answered = begun.elapsed().as_secs_f64();
        // The kernel may say something at the console in between.
        ensure!(said.contains(kept.trim()), "{kept:?} became {said:?}");
        let same = vm.run("cat /proc/sys/kernel/random/boot_id", SHELL)?;
        ensure!(same.trim() == boot.trim(), "it has booted");
        let file = vm.run("echo 3 >/proc/sys/vm/drop_caches; cat /root/file", SHELL)?;
        ensure!(file.contains("before"), "the file has {file:?}");
        vm.run(
            &format!("echo {what} >/root/file && sync && sleep 1"),
            SHELL,
        )?;
        let clock = vm.run("date +%s", SHELL)?.trim().parse::<u64>()?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let off = clock.abs_diff(now.as_secs());
        ensure!(off < 120, "the guest's clock is {off} s off");
        let reseeded = vm.run("dmesg | grep -c 'due to virtual machine fork'", SHELL)?;
        ensure!(reseeded.trim() == "1", "reseeded {} times", reseeded.trim());
        let errors = vm.run("dmesg -l emerg,alert,crit,err", SHELL)?;
        notes.push(format!(
            "{what} machine answered after {answered:.1} s; kernel errors: {:?}",
            errors.trim()
        ));
        if what == "first" {
            // As long as a working set is recorded.
            wait("the working set", Duration::from_secs(60), || {
                let kept = std::fs::metadata(dir.join("working-set"))?;
                Ok((kept.len() > 0).then_some(()))
            })?;
        }
        notes.extend(vm.said()?);
        vm.run("systemctl poweroff", SHELL)?;
        let end = vm.wait_end(BOOT)?;
        ensure!(end.success(), "{end} after powering off");
    }
    std::fs::remove_dir_all(&dir)?;
    std::fs::remove_file(copy)?;
    Ok(notes)
}

/// What a folder takes on the disk, for people.
fn used(dir: &Path) -> Result<String> {
    let said = Program::new("du").arg("-sh").arg(dir).output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(said.split_whitespace().next().unwrap_or("?").to_owned())
}
