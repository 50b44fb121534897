//! `splice-vmm run`: a machine from command-line options.
//!
//! All that has a name on the host is opened first, then the sandbox is entered, then machines are built and run inside.

mod confinement;
mod devices;
mod options;
mod signals;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use vmm::control::Control;
use vmm::legacy::serial::SerialLine;
use vmm::machine::boot::BootSource;
use vmm::machine::{self, End, Machine, MachineSpec};
use vmm::sandbox::Reachable;
use vmm::threads::Service;
use vmm::virtio::balloon::BalloonSize;
use vmm::virtio::net::inherited;
use vmm_api::SandboxReport;

pub use confinement::Confinement;
pub use options::Arguments;
use signals::Signals;

/// Longest file that `splice-vmm sandbox` may write: its report, where its output is a file.
const TOLD_BYTES_MAX: u64 = 1 << 20;

/// Runs a machine; resets start it anew.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sandbox = arguments.confinement.sandbox(arguments.memory)?;
    let mut handed_in: Vec<_> = arguments
        .net
        .iter()
        .filter_map(|net| inherited(&net.tap))
        .collect();
    handed_in.sort_unstable();
    if let Some(twice) = handed_in.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("fd={}: a tap has one network card", twice[0]);
    }
    sandbox.close_inherited(&handed_in)?;
    let signals = Signals::hold();
    let mut services = vec![signals.service()];
    let serial = serial(arguments, &mut services)?;
    if let Some(path) = &arguments.control {
        let control = Control::listen(path);
        let control = control.with_context(|| format!("control socket {}", path.display()))?;
        let signals = signals.clone();
        services.push(control.serve(move || signals.machine()));
    }
    let kvm = machine::open_kvm()?;
    let boot = BootSource::open(
        &arguments.kernel,
        arguments.initrd.as_deref(),
        &arguments.command_line,
    )?;
    let balloon = BalloonSize::default();
    let display = arguments.display(&mut services)?;
    let opened = arguments.devices(&balloon, display.as_ref())?;

    let file_bytes = opened.file_bytes_max().max(arguments.memory << 20);
    let inside = sandbox.enter(&opened.reachable(), file_bytes)?;
    for part in &inside.lacking {
        tracing::warn!("not in force: {part}");
    }
    for service in services {
        service.start()?;
    }
    let mut devices = opened.connect(arguments.vcpus.into(), inside.clerk.as_ref())?;
    for resets in 0.. {
        let spec = MachineSpec {
            memory_mib: arguments.memory,
            vcpus: arguments.vcpus,
            boot: &boot,
            devices,
            serial: serial.clone(),
            balloon: Some(balloon.clone()),
        };
        let machine = Machine::build(&kvm, spec)?;
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

/// Enters a sandbox and tells what of it is not in force.
pub fn sandbox(confinement: &Confinement) -> Result<ExitCode> {
    // Limits that are too small for a guest are somebody else's mistake.
    let sandbox = confinement.sandbox(0)?;
    sandbox.close_inherited(&[])?;
    let inside = sandbox.enter(&Reachable::default(), TOLD_BYTES_MAX)?;
    let lacking = inside.lacking;
    println!("{}", serde_json::to_string(&SandboxReport { lacking })?);
    Ok(ExitCode::SUCCESS)
}

fn serial(arguments: &Arguments, services: &mut Vec<Service>) -> Result<SerialLine> {
    let serial = SerialLine::default();
    if let Some(path) = &arguments.serial_log {
        let opened = serial.log_to(path);
        opened.with_context(|| format!("serial log {}", path.display()))?;
    }
    if let Some(path) = &arguments.serial_socket {
        let listens = serial.listen(path);
        services.push(listens.with_context(|| format!("serial console {}", path.display()))?);
    }
    if arguments.serial_stdout {
        serial.to_stdout();
    }
    Ok(serial)
}
