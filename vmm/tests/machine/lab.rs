//! A machine around the guest, and what the guest said.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use tempfile::TempDir;
use vmm::legacy::serial::SerialLine;
use vmm::machine::boot::BootSource;
use vmm::machine::event::{Event, Events};
use vmm::machine::{self, Devices, End, Machine, MachineSpec};
use vmm::virtio::Device;

/// How long a guest may take; on the busiest machine it takes less.
const PATIENCE: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(5);

pub struct Lab {
    kvm: Kvm,
    folder: TempDir,
    serial: SerialLine,
    devices: Devices,
    kernel: PathBuf,
}

/// What a guest said, and how it ended.
pub struct Said {
    pub end: End,
    pub text: String,
}

/// What a guest has said up to now, for another thread.
#[derive(Clone)]
pub struct Listener(PathBuf);

impl Lab {
    /// `None`, and a line that says so: there is no KVM here.
    pub fn new() -> Option<Self> {
        let kvm = match machine::open_kvm() {
            Ok(kvm) => kvm,
            Err(error) => {
                eprintln!("SKIPPED: {error}: no guest was run");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("guest.elf");
        std::fs::write(&kernel, test_guest::IMAGE).unwrap();
        let serial = SerialLine::default();
        serial.log_to(&folder.path().join("serial")).unwrap();
        Some(Self {
            kvm,
            folder,
            serial,
            devices: Devices::new(),
            kernel,
        })
    }

    pub fn add(&mut self, name: &str, device: impl Device + 'static) {
        self.devices.push((name.into(), Box::new(device)));
    }

    /// A file of this machine.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn listener(&self) -> Listener {
        Listener(self.file("serial"))
    }

    /// Runs a guest with these words to its end.
    pub fn run(&mut self, words: &str) -> Said {
        self.run_with(words, |_| {})
    }

    /// As [`Lab::run`]; `meanwhile` gets the machine's events just before it starts.
    pub fn run_with(&mut self, words: &str, meanwhile: impl FnOnce(Events)) -> Said {
        let boot = BootSource::open(&self.kernel, None, words).unwrap();
        let spec = MachineSpec {
            memory_mib: 64,
            vcpus: 1,
            boot: &boot,
            devices: std::mem::take(&mut self.devices),
            serial: self.serial.clone(),
            balloon: None,
            links: Vec::new(),
        };
        let machine = Machine::build(&self.kvm, spec).unwrap();
        let events = machine.events();
        meanwhile(events.clone());
        // A guest that hangs is ended.
        let (done, ended) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                events.put(Event::Failed("the guest does not end".into()));
            }
        });
        let (end, devices) = machine.run(0);
        drop(done);
        watchdog.join().unwrap();
        self.devices = devices;
        let text = self.listener().text();
        Said { end, text }
    }
}

impl Said {
    /// The guest has said this line, and has ended the machine.
    #[track_caller]
    pub fn has(&self, line: &str) {
        let said = self.text.lines().any(|said| said == line);
        assert!(said, "no {line:?}; {:?} after:\n{}", self.end, self.text);
        assert_eq!(self.end, End::Off, "{}", self.text);
    }
}

impl Listener {
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.0).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest has said a line so many times.
    #[track_caller]
    pub fn wait(&self, line: &str, times: usize) {
        let end = Instant::now() + PATIENCE;
        while self.text().lines().filter(|said| *said == line).count() < times {
            assert!(Instant::now() < end, "no {line:?} in:\n{}", self.text());
            std::thread::sleep(TICK);
        }
    }
}
