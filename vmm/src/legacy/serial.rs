//! The first serial port, a 16550, and what it is connected to: a log file, and whoever has opened the console's socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState as Registers16550};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::bus::{Registers, lock};
use crate::threads::{self, Role, Service};

/// How long a console that takes nothing holds the guest up before it is hung up on.
const CONSOLE_PATIENCE: Duration = Duration::from_millis(200);
/// How often bytes that found the port's buffer full are tried again.
const INPUT_RETRY: Duration = Duration::from_millis(5);
/// … and how many times.
const INPUT_TRIES: u32 = 1000;
/// Bytes taken from a console at a time; the port's buffer has 64.
const INPUT_BYTES: usize = 64;

/// Most bytes of output that are kept in the log: a guest that prints for ever does not fill the host's disk.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// What stands at the end of a log that has as many.
const LOG_FULL: &[u8] = b"\r\n[splice-vmm: the log is full]\r\n";

/// The port's interrupt.
pub struct SerialInterrupt(pub EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The line that a serial port is connected to. It outlives machines: a console stays connected when the guest resets.
#[derive(Clone, Default)]
pub struct SerialLine(Arc<Mutex<Ends>>);

/// A file and how much it may still take.
struct Log {
    file: File,
    left: u64,
}

impl Log {
    /// Keeps what there is room for. A full disk must not stop the guest.
    fn keep(&mut self, bytes: &[u8]) {
        let len = self.left.min(bytes.len() as u64);
        let _ = self.file.write_all(&bytes[..len as usize]);
        self.left -= len;
        if len > 0 && self.left == 0 {
            let _ = self.file.write_all(LOG_FULL);
        }
    }
}

#[derive(Default)]
struct Ends {
    log: Option<Log>,
    console: Option<UnixStream>,
    stdout: bool,
    /// The port of the machine that runs now.
    port: Weak<Mutex<Port>>,
}

impl SerialLine {
    /// Keeps output in a file, behind what is there, as long as it has no more than 64 MiB.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn log_to(&self, path: &Path) -> io::Result<()> {
        let file = File::options().create(true).append(true).open(path)?;
        let left = LOG_BYTES_MAX.saturating_sub(file.metadata()?.len());
        lock(&self.0).log = Some(Log { file, left });
        Ok(())
    }

    /// Shows all output on standard output.
    pub fn to_stdout(&self) {
        lock(&self.0).stdout = true;
    }

    /// Lets consoles connect, one at a time; a new one takes the place of the one before it. The socket is there now, and served from when
    /// the service is started.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self, path: &Path) -> io::Result<Service> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        let line = self.clone();
        Ok(Service::new(Role::Line, "serial", move || {
            for console in listener.incoming().flatten() {
                let _ = line.connect(console);
            }
        }))
    }

    fn connect(&self, console: UnixStream) -> io::Result<()> {
        console.set_write_timeout(Some(CONSOLE_PATIENCE))?;
        let mut input = console.try_clone()?;
        if let Some(before) = lock(&self.0).console.replace(console) {
            let _ = before.shutdown(std::net::Shutdown::Both);
        }
        let line = self.clone();
        let read = move || {
            let mut bytes = [0; INPUT_BYTES];
            while let Ok(count @ 1..) = input.read(&mut bytes) {
                line.type_bytes(&bytes[..count]);
            }
        };
        threads::spawn(Role::Line, "console", read).map(drop)
    }

    /// Types on the line; waits while there is no port yet or its buffer is full. What a guest that does not listen never takes is lost.
    fn type_bytes(&self, mut bytes: &[u8]) {
        for _ in 0..INPUT_TRIES {
            if let Some(port) = lock(&self.0).port.upgrade() {
                let taken = lock(&port).enqueue_raw_bytes(bytes).unwrap_or(0);
                bytes = &bytes[taken..];
            }
            if bytes.is_empty() {
                return;
            }
            std::thread::sleep(INPUT_RETRY);
        }
    }
}

impl Write for SerialLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Neither must a console that went away.
        let mut ends = lock(&self.0);
        if let Some(log) = &mut ends.log {
            log.keep(bytes);
        }
        if let Some(console) = &mut ends.console
            && console.write_all(bytes).is_err()
        {
            ends.console = None;
        }
        if ends.stdout {
            let mut out = io::stdout().lock();
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Port = Serial<SerialInterrupt, NoEvents, SerialLine>;

/// A port's registers, and what was typed and not read yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    typed: Vec<u8>,
}

/// See the module.
#[derive(Clone)]
pub struct SerialPort(Arc<Mutex<Port>>);

impl SerialPort {
    /// A port on this line that raises `interrupt`.
    pub fn new(interrupt: EventFd, line: &SerialLine) -> Self {
        let port = Serial::new(SerialInterrupt(interrupt), line.clone());
        let port = Arc::new(Mutex::new(port));
        lock(&line.0).port = Arc::downgrade(&port);
        Self(port)
    }

    /// Its state.
    pub fn save(&self) -> SerialState {
        let state = lock(&self.0).state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            typed: state.in_buffer,
        }
    }

    /// Takes up a state, on the same line; raises `interrupt` if the guest is to look. What was typed on the line meanwhile comes behind;
    /// more bytes than there is room for are lost.
    pub fn restore(&self, state: SerialState, interrupt: EventFd, line: &SerialLine) {
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        let mut registers = Registers16550 {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.typed,
        };
        registers.in_buffer.truncate(INPUT_BYTES);
        let mut port = lock(&self.0);
        let meanwhile = port.state().in_buffer;
        let restored = Serial::from_state(
            &registers,
            SerialInterrupt(interrupt),
            NoEvents,
            line.clone(),
        );
        // Fails where the interrupt cannot be raised: the machine is going away.
        if let Ok(restored) = restored {
            *port = restored;
            let _ = port.enqueue_raw_bytes(&meanwhile);
        }
    }
}

impl Registers for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = lock(&self.0).read(offset as u8);
        data.fill(0);
        data[0] = value;
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data {
            // The output never fails; an interrupt that cannot be raised means the machine is going away.
            let _ = lock(&self.0).write(offset as u8, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_goes_on_where_another_was() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).expect("an event");
        let line = SerialLine::default();
        let mut port = SerialPort::new(event(), &line);
        // Interrupts on input, a divisor, scratch.
        for (register, value) in [(1, 1), (3, 0x83), (0, 7), (1, 3), (3, 3), (7, 0x5a)] {
            port.write(register, &[value]);
        }
        line.type_bytes(b"abc");
        let saved = port.save();
        let (bell, line) = (event(), SerialLine::default());
        let mut other = SerialPort::new(event(), &line);
        other.restore(saved.clone(), bell.try_clone().expect("a copy"), &line);
        assert_eq!(other.save(), saved);
        assert!(bell.read().is_ok(), "there is input to be seen");
        let mut read = |register| {
            let mut byte = [0];
            other.read(register, &mut byte);
            byte[0]
        };
        assert_eq!(
            [read(7), read(0), read(0), read(0)],
            [0x5a, b'a', b'b', b'c']
        );
        // What is typed before the state is taken up is seen like what is typed later.
        let idle = SerialPort::new(event(), &SerialLine::default());
        for (register, value) in [(3, 3), (1, 1)] {
            idle.clone().write(register, &[value]);
        }
        let (bell, line) = (event(), SerialLine::default());
        let mut early = SerialPort::new(event(), &line);
        line.type_bytes(b"x");
        early.restore(idle.save(), bell.try_clone().expect("a copy"), &line);
        assert!(bell.read().is_ok(), "there is input to be seen");
        let mut status = [0];
        early.read(5, &mut status);
        assert_eq!(status[0] & 1, 1, "data is ready");
        let full = SerialState {
            typed: vec![b'x'; 1000],
            ..saved
        };
        other.restore(full, event(), &line);
        assert_eq!(other.save().typed.len(), INPUT_BYTES);
    }

    #[test]
    fn output_goes_to_the_log_and_to_the_console_and_input_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, socket) = (dir.path().join("log"), dir.path().join("console"));
        let line = SerialLine::default();
        line.log_to(&log).expect("a log");
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).expect("an event");
        let mut port = SerialPort::new(interrupt, &line);
        let served = line.listen(&socket).expect("a socket");
        served.start().expect("a thread");
        let mut console = UnixStream::connect(&socket).expect("a console");
        // Connected when the port has taken it over.
        while lock(&line.0).console.is_none() {
            std::thread::sleep(INPUT_RETRY);
        }
        port.write(0, b"x");
        let mut seen = [0];
        console.read_exact(&mut seen).expect("what the guest wrote");
        assert_eq!(seen, *b"x");
        assert_eq!(std::fs::read(&log).expect("the log"), b"x");

        lock(&line.0).log.as_mut().expect("the log").left = 2;
        for _ in 0..5 {
            port.write(0, b"z");
        }
        let kept = std::fs::read(&log).expect("the log");
        assert_eq!(kept, [b"xzz", LOG_FULL].concat());

        console.write_all(b"y").expect("typed");
        let mut typed = [0];
        while typed != *b"y" {
            port.read(0, &mut typed);
            std::thread::sleep(INPUT_RETRY);
        }
    }
}
