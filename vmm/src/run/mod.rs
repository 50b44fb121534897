//! `splice-vmm run` and `splice-vmm resume`: a machine from command-line options, and one from a snapshot.
//!
//! All that has a name on the host is opened first, then the sandbox is entered, then machines are built and run inside. A snapshot's state
//! is foreign bytes: it is opened outside and read inside.

mod confinement;
mod devices;
mod net_option;
mod options;
mod signals;

use std::os::fd::RawFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use vmm::control::Control;
use vmm::legacy::serial::SerialLine;
use vmm::machine::boot::BootSource;
use vmm::machine::{self, End, Machine, MachineSpec, ResumeSpec};
use vmm::sandbox::Needs;
use vmm::snapshot::{self, Faults, Loading, PagerError, Snapshot, SnapshotFiles};
use vmm::threads::Service;
use vmm::virtio::balloon::BalloonSize;
use vmm_api::SandboxReport;

pub use confinement::Confinement;
pub use options::{Arguments, ResumeArguments};
use options::{HostArguments, Place};
use signals::Signals;

/// Longest file that `splice-vmm sandbox` may write: its report, where its output is a file.
const TOLD_BYTES_MAX: u64 = 1 << 20;

/// Exit status when a guest that has no kernel to boot resets itself.
const RESET: u8 = 3;

/// What the first machine of this process comes from.
enum First {
    /// It boots.
    Boot { memory_mib: u64, vcpus: u8 },
    /// It goes on.
    Snapshot(SnapshotFiles),
}

impl First {
    fn memory_mib(&self) -> u64 {
        match self {
            Self::Boot { memory_mib, .. } => *memory_mib,
            Self::Snapshot(files) => files.memory_mib(),
        }
    }
}

/// What is opened before all else.
struct Source {
    first: First,
    /// What machines boot: the first one, and those after a reset.
    boot: Option<BootSource>,
    /// The guest has been elsewhere, and is there still.
    is_clone: bool,
    /// The order in which it touches its memory is recorded, and disks wait for that.
    records: bool,
}

/// Runs a machine; resets start it anew.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    live(&arguments.host, &[], || {
        Ok(Source {
            first: First::Boot {
                memory_mib: arguments.memory,
                vcpus: arguments.vcpus,
            },
            boot: Some(arguments.boot.open(&arguments.kernel)?),
            is_clone: false,
            records: false,
        })
    })
}

/// Runs a machine that was saved; resets start it anew, if there is a kernel.
pub fn resume(arguments: &ResumeArguments) -> Result<ExitCode> {
    let descriptors = arguments.place.descriptors();
    live(&arguments.host, descriptors, || {
        // Before anything else is opened: their numbers are theirs.
        let files = match &arguments.place {
            Place::Folder(dir) => {
                Snapshot::open(dir).with_context(|| format!("snapshot {}", dir.display()))
            }
            Place::Files(files) => Snapshot::handed_in(*files).context("snapshot"),
        }?;
        let kernel = arguments.kernel.as_deref();
        let boot = kernel.map(|kernel| arguments.boot.open(kernel));
        Ok(Source {
            first: First::Snapshot(files),
            boot: boot.transpose()?,
            is_clone: arguments.is_clone,
            records: arguments.records,
        })
    })
}

/// Enters a sandbox and tells what of it is not in force.
pub fn sandbox(confinement: &Confinement) -> Result<ExitCode> {
    let sandbox = confinement.sandbox();
    sandbox.close_inherited(&[])?;
    let inside = sandbox.enter(&Needs {
        file_bytes: TOLD_BYTES_MAX,
        ..Needs::default()
    })?;
    let lacking = inside.lacking;
    println!("{}", serde_json::to_string(&SandboxReport { lacking })?);
    Ok(ExitCode::SUCCESS)
}

/// The machines of this process, one after another.
fn live(
    host: &HostArguments,
    descriptors: &[RawFd],
    open: impl FnOnce() -> Result<Source>,
) -> Result<ExitCode> {
    let sandbox = host.confinement.sandbox();
    sandbox.close_inherited(&host.handed_in(descriptors)?)?;
    let Source {
        first,
        boot,
        is_clone,
        records,
    } = open()?;
    host.confinement.check_memory(first.memory_mib())?;
    let signals = Signals::hold();
    let mut services = vec![signals.service()];
    let serial = serial(host, &mut services)?;
    if let Some(path) = &host.control {
        let control = Control::listen(path);
        let control = control.with_context(|| format!("control socket {}", path.display()))?;
        let signals = signals.clone();
        services.push(control.serve(move || signals.machine()));
    }
    let kvm = machine::open_kvm()?;
    let balloon = BalloonSize::default();
    let display = host.display(&mut services)?;
    let opened = host.devices(&balloon, display.as_ref(), is_clone)?;

    // Beside what it writes already, a machine may be asked for a snapshot at any time.
    let file_bytes = snapshot::file_bytes_max(first.memory_mib() << 20);
    let needs = Needs {
        servers: opened.servers(),
        services: opened.services(),
        file_bytes: opened.file_bytes_max().max(file_bytes),
        faults: matches!(first, First::Snapshot(_)),
    };
    let inside = sandbox.enter(&needs)?;
    for part in &inside.lacking {
        tracing::warn!("not in force: {part}");
    }
    for service in services {
        service.start()?;
    }
    let (mut saved, memory_mib, vcpus, loading) = match first {
        First::Boot { memory_mib, vcpus } => (None, memory_mib, vcpus, Loading::default()),
        First::Snapshot(files) => {
            let saved = files.read().context("snapshot")?;
            let (memory_mib, vcpus) = (saved.saved.shape.memory_mib, saved.saved.shape.vcpus);
            let loading = Loading::begun();
            if records {
                loading.be_patient();
            }
            (Some(saved), memory_mib, vcpus, loading)
        }
    };
    let mut faults = inside.faults.and_then(told);
    let links = opened.links().to_vec();
    let mut devices = opened.connect(vcpus.into(), inside.clerk.as_ref(), &loading)?;
    for resets in 0.. {
        let (serial, balloon) = (serial.clone(), Some(balloon.clone()));
        let machine = match (saved.take(), &boot) {
            (Some(saved), _) => {
                let spec = ResumeSpec {
                    devices,
                    serial,
                    balloon,
                    links: links.clone(),
                    loading: loading.clone(),
                    faults: faults.take(),
                    on_damage: Box::new(end_damaged),
                };
                Machine::resume(&kvm, saved, spec)?
            }
            (None, Some(boot)) => {
                let spec = MachineSpec {
                    memory_mib,
                    vcpus,
                    boot,
                    devices,
                    serial,
                    balloon,
                    links: links.clone(),
                };
                Machine::build(&kvm, spec)?
            }
            (None, None) => return Ok(ExitCode::from(RESET)),
        };
        signals.end(machine.events());
        let (end, back) = machine.run(resets);
        devices = back;
        match end {
            End::Off => return Ok(ExitCode::SUCCESS),
            End::Reset => {}
            End::Failed(reason) => bail!(reason),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells why memory does not come while the machine runs, if it does not.
fn told(faults: std::io::Result<Faults>) -> Option<Faults> {
    let told = faults.inspect_err(|error| {
        tracing::warn!(%error, "userfaultfd is not to be had: all memory is loaded before the machine goes on");
    });
    told.ok()
}

/// A guest whose memory is damaged must not write one more block: whoever waits for the memory waits until the process is gone.
fn end_damaged(error: PagerError) {
    let error = &error as &dyn std::error::Error;
    tracing::error!(error, "the machine cannot go on");
    std::process::exit(1);
}

fn serial(host: &HostArguments, services: &mut Vec<Service>) -> Result<SerialLine> {
    let serial = SerialLine::default();
    if let Some(path) = &host.serial_log {
        let opened = serial.log_to(path);
        opened.with_context(|| format!("serial log {}", path.display()))?;
    }
    if let Some(path) = &host.serial_socket {
        let listens = serial.listen(path);
        services.push(listens.with_context(|| format!("serial console {}", path.display()))?);
    }
    if host.serial_stdout {
        serial.to_stdout();
    }
    Ok(serial)
}
