//! The outer process: it stays where it was started, and is what others know as the machine.
//!
//! It passes SIGTERM and SIGINT on, opens sockets of disks' servers and of programs that the guest calls for the machine, by number
//! ([`super::door`]), and ends as the machine does. It has no thread, no capability but the one to signal its child, no descriptor but
//! those it needs, and a list of system calls of its own. Invariant: nothing that the machine sends makes it wait, take memory, work
//! beyond a rate, or do anything but open one of the sockets that it was started with.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::cgroup::Group;
use super::door::{REQUEST_BYTES, Wanted};
use super::privileges::{self, Keep};
use super::seccomp::{self, Violation};
use super::services::Services;
use super::{SandboxError, step};
use crate::machine::rate::Bucket;

/// Ended by a signal is told as shells tell it.
const BY_SIGNAL: i32 = 128;

/// Requests that are heard at once, and a second after that: a machine whose disks all wait for their server asks less often. What comes
/// beyond stays in the channel: whoever asks waits, and this process, which no control group bounds, does not work for it.
const REQUESTS_BURST: u64 = 256;
const REQUESTS_PER_S: u64 = 128;

/// What the machine may ask for.
pub(super) struct Requests {
    servers: Vec<SocketAddrUnix>,
    services: Option<Services>,
    rate: Bucket,
    since: Instant,
    /// The next one is paid for.
    is_paid: bool,
}

/// What the outer process has.
pub(super) struct Outer {
    pub(super) machine: libc::pid_t,
    pub(super) channel: UnixStream,
    pub(super) signals: OwnedFd,
    pub(super) requests: Requests,
    /// The machine's own cgroup, removed at the end.
    pub(super) group: Option<Group>,
    pub(super) violation: Violation,
}

/// Servers' sockets as addresses.
pub(super) fn addresses(servers: &[PathBuf]) -> Result<Vec<SocketAddrUnix>, SandboxError> {
    let address = |path: &PathBuf| {
        let address = SocketAddrUnix::new(path.as_path());
        address.map_err(|_| SandboxError::SocketName(path.clone()))
    };
    servers.iter().map(address).collect()
}

/// A descriptor that tells of signals to be passed on, and of the machine's end. They are blocked from here on, in both processes.
pub(super) fn signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by the first call and outlives the others; the handler is one that is always there.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            libc::sigaddset(&raw mut set, signal);
        }
        // Whoever started us may have had it ignored, and then nobody would be told.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Requests {
    pub(super) fn new(servers: Vec<SocketAddrUnix>, services: Option<Services>) -> Self {
        Self {
            servers,
            services,
            rate: Bucket::new(REQUESTS_PER_S, REQUESTS_BURST),
            since: Instant::now(),
            is_paid: false,
        }
    }

    /// Whether one may be heard now; else how long that takes.
    fn may_come(&mut self) -> Result<(), Duration> {
        if !self.is_paid {
            self.rate.take(1, self.since.elapsed())?;
            self.is_paid = true;
        }
        Ok(())
    }

    /// Opens what is wanted.
    fn open(&mut self, request: [u8; REQUEST_BYTES]) -> rustix::io::Result<OwnedFd> {
        self.is_paid = false;
        let none = rustix::io::Errno::NOENT;
        match (Wanted::parse(request), &mut self.services) {
            (Some(Wanted::Server(number)), _) => {
                let server = usize::try_from(number).ok();
                let server = server.and_then(|number| self.servers.get(number));
                open(server.ok_or(none)?)
            }
            (Some(Wanted::Service(port)), Some(services)) => open(&services.call(port)?),
            _ => Err(none),
        }
    }
}

impl Outer {
    /// Gives up what it does not need, lets the machine begin and stays until it ends.
    pub(super) fn stay(mut self) -> ! {
        let status = match self.prepare() {
            Ok(()) => self.wait(),
            Err(error) => {
                // The machine ends when its channel does.
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the outer process");
                1
            }
        };
        if let Some(group) = &self.group {
            group.remove();
        }
        // What was opened before belongs to the machine now, and nothing of it is to be closed or written here.
        // SAFETY: it ends the process.
        unsafe { libc::_exit(status) }
    }

    fn prepare(&self) -> Result<(), SandboxError> {
        if let Some(group) = &self.group {
            group.add(self.machine)?;
        }
        let group = self.group.as_ref().and_then(Group::folder);
        let mut keep = vec![self.channel.as_raw_fd(), self.signals.as_raw_fd()];
        keep.extend(group);
        close_others(keep).map_err(step("close the machine's files"))?;
        privileges::drop_all(Keep::Kill)?;
        seccomp::enter_outer(self.violation, self.machine as u32)?;
        // The machine waits for this byte: from here on it may use what it is given, within its cgroup.
        let begun = io::Write::write_all(&mut &self.channel, &[0]);
        begun.map_err(step("let the machine begin"))?;
        // Nobody may hold us up.
        let free = self.channel.set_nonblocking(true);
        free.map_err(step("wait for requests and signals at once"))
    }

    /// Until the machine ends; its status.
    fn wait(&mut self) -> i32 {
        let mut is_open = true;
        loop {
            // A request that has to wait is looked for when its time has come, a signal at any time.
            let (hears, patience) = match self.requests.may_come() {
                Ok(()) => (is_open, -1),
                Err(wait) if is_open => (false, wait.as_millis() as libc::c_int + 1),
                Err(_) => (false, -1),
            };
            let poll = |fd: RawFd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            };
            let mut polls = [
                poll(self.signals.as_raw_fd()),
                poll(self.channel.as_raw_fd()),
            ];
            let count = if hears { 2 } else { 1 };
            // SAFETY: so many entries are there, and they outlive the call.
            unsafe { libc::poll(polls.as_mut_ptr(), count, patience) };
            if polls[0].revents != 0
                && let Some(status) = self.hear_signals()
            {
                return status;
            }
            if polls[1].revents != 0 {
                is_open = self.hear_request();
            }
        }
    }

    /// Passes signals on. The machine's status, if it has ended.
    fn hear_signals(&self) -> Option<i32> {
        // SAFETY: a structure of integers, for which zeros are valid.
        let mut signal: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&signal);
        // SAFETY: the kernel fills in as many bytes as the structure has.
        while unsafe { libc::read(self.signals.as_raw_fd(), (&raw mut signal).cast(), size) }
            == size as isize
        {
            match signal.ssi_signo as i32 {
                libc::SIGCHLD => {
                    if let Some(status) = self.ended() {
                        return Some(status);
                    }
                }
                // SAFETY: plain numbers; the machine is our child and not waited for yet, so that the number is still its own.
                signal => unsafe {
                    libc::kill(self.machine, signal);
                },
            }
        }
        None
    }

    fn ended(&self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        let ended = unsafe { libc::waitpid(self.machine, &raw mut status, libc::WNOHANG) };
        if ended != self.machine {
            return None;
        }
        if !libc::WIFSIGNALED(status) {
            return Some(libc::WEXITSTATUS(status));
        }
        let signal = libc::WTERMSIG(status);
        if signal == libc::SIGSYS {
            tracing::error!(
                "the machine was killed: it made a system call that is not on its list. The kernel's log names it (audit, type 1326)"
            );
        } else {
            tracing::error!(signal, "the machine was killed");
        }
        Some(BY_SIGNAL + signal)
    }

    /// Opens what is asked for. False: there will be no more requests.
    fn hear_request(&mut self) -> bool {
        let mut request = [0; REQUEST_BYTES];
        match io::Read::read(&mut &self.channel, &mut request) {
            // All of it was written at once, or it was none of ours; and then nothing that follows makes sense.
            Ok(REQUEST_BYTES) => {}
            Ok(_) => return false,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        // An answer that is not taken is a mistake of the machine's, and its loss.
        let _ = match self.requests.open(request) {
            Ok(socket) => {
                let done = 0i32.to_le_bytes();
                self.channel
                    .send_with_fd(&done[..], socket.as_raw_fd())
                    .map(drop)
                    .map_err(io::Error::from)
            }
            Err(error) => {
                let error = error.raw_os_error().to_le_bytes();
                io::Write::write_all(&mut &self.channel, &error)
            }
        };
        true
    }
}

/// Connects without waiting: a server that takes nobody now is tried again by whoever asks.
fn open(address: &SocketAddrUnix) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

/// Closes all but standard ones and these.
pub(super) fn close_others(mut keep: Vec<RawFd>) -> io::Result<()> {
    keep.sort_unstable();
    let mut from = libc::STDERR_FILENO + 1;
    for fd in keep {
        if from < fd {
            privileges::close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    privileges::close_range(from, RawFd::MAX)
}
