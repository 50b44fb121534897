//! `splice-vmm run`: a machine from command-line options.

mod devices;
mod options;
mod signals;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use vmm::control::Control;
use vmm::legacy::serial::SerialLine;
use vmm::machine::boot::BootSource;
use vmm::machine::bus::lock;
use vmm::machine::{self, End, Machine, MachineSpec};
use vmm::virtio::balloon::BalloonSize;

pub use options::Arguments;
use signals::Signals;

/// Runs a machine; resets start it anew.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let serial = SerialLine::default();
    if let Some(path) = &arguments.serial_log {
        let opened = serial.log_to(path);
        opened.with_context(|| format!("serial log {}", path.display()))?;
    }
    if let Some(path) = &arguments.serial_socket {
        let listens = serial.listen(path);
        listens.with_context(|| format!("serial console {}", path.display()))?;
    }
    if arguments.serial_stdout {
        serial.to_stdout();
    }
    let signals = Signals::watch()?;
    if let Some(path) = &arguments.control {
        let control = Control::listen(path);
        let control = control.with_context(|| format!("control socket {}", path.display()))?;
        let running = Arc::clone(&signals.0);
        control.serve(move || lock(&running).clone())?;
    }
    let kvm = machine::open_kvm()?;
    let boot = BootSource::open(
        &arguments.kernel,
        arguments.initrd.as_deref(),
        &arguments.command_line,
    )?;
    let balloon = BalloonSize::default();
    let display = arguments.display()?;
    let mut devices = arguments.devices(&balloon, display.as_ref())?;
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
