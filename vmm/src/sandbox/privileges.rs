//! What a process may do beside what is open: user, capabilities, limits. All of it is given up for good.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::{SandboxError, step};

/// Who a machine's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group; there are no others.
    pub gid: u32,
}

/// The user for what should have none.
pub(super) const NOBODY: User = User {
    uid: 65534,
    gid: 65534,
};

/// What is kept of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    /// To end a child that has another user.
    Kill,
}

/// Open files of a machine: 31 devices with 17 queues and as many interrupts each, viewers and consoles.
const FILES_MAX: u64 = 4096;
/// Threads of a user that has only this machine: 64 processors, 31 devices with 16 queues, viewers and consoles.
const THREADS_MAX: u64 = 1024;
const CAP_KILL: u32 = 5;
/// Capabilities that there may ever be.
const CAPABILITIES: u32 = 64;
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// From <linux/capability.h>; libc has none of it.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn prctl(option: libc::c_int, second: libc::c_ulong) -> io::Result<()> {
    const ZERO: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers only.
    check(unsafe { libc::prctl(option, second, ZERO, ZERO, ZERO) })
}

/// Refuses what is no open descriptor.
pub(super) fn check_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory; any number may be asked about.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })
}

/// Closes descriptors from `first` to `last`.
pub(super) fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: whoever calls this knows that nobody uses them any more.
    check(unsafe { libc::close_range(first as u32, last as u32, 0) })
}

/// Takes all capabilities out of reach of whatever is started later.
pub(super) fn bound() {
    for capability in 0..CAPABILITIES {
        // Where there is no right to do this there is no right that could be bounded, and without new privileges none can come.
        let _ = prctl(libc::PR_CAPBSET_DROP, capability.into());
    }
}

/// Becomes `user`. A root of somebody's container may lack the right to.
pub(super) fn become_user(user: User) -> Result<(), SandboxError> {
    let User { uid, gid } = user;
    // SAFETY: no list of groups; plain numbers.
    unsafe {
        check(libc::setgroups(0, std::ptr::null())).map_err(step("leave its groups"))?;
        check(libc::setresgid(gid, gid, gid)).map_err(step("take its group"))?;
        check(libc::setresuid(uid, uid, uid)).map_err(step("take its user"))
    }
}

/// Gives up all capabilities but what is kept, and every way to get any again.
pub(super) fn drop_all(keep: Keep) -> Result<(), SandboxError> {
    bound();
    let ambient = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    prctl(libc::PR_CAP_AMBIENT, ambient).map_err(step("give up ambient capabilities"))?;
    set_capabilities(keep).map_err(step("give up capabilities"))?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(step("give up new privileges"))?;
    prctl(libc::PR_SET_DUMPABLE, 0).map_err(step("hide from debuggers"))
}

fn set_capabilities(keep: Keep) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: header and two entries are what this version of the call reads and writes.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    check(done as libc::c_int)?;
    let kept = if keep == Keep::Kill { 1 << CAP_KILL } else { 0 };
    // What it does not have it cannot keep.
    let kept = data[0].permitted & kept;
    data = [CapabilityData::default(); 2];
    (data[0].permitted, data[0].effective) = (kept, kept);
    // SAFETY: as above.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(done as libc::c_int)
}

/// Bounds what the process may use. `file_bytes` is the longest file that it may write or make, `has_own_user` says that nobody else's
/// threads count.
pub(super) fn limit(file_bytes: u64, has_own_user: bool) -> Result<(), SandboxError> {
    let set = |resource, most: u64| {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the structure is of the type that both calls take, and outlives them.
        unsafe {
            check(libc::getrlimit(resource, &raw mut limit))?;
            let most = most.min(limit.rlim_max);
            (limit.rlim_cur, limit.rlim_max) = (most, most);
            check(libc::setrlimit(resource, &raw const limit))
        }
    };
    let limits = [
        (libc::RLIMIT_NOFILE, FILES_MAX),
        (libc::RLIMIT_FSIZE, file_bytes),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
    ];
    for (resource, most) in limits {
        set(resource, most).map_err(step("limit what it may use"))?;
    }
    if has_own_user {
        set(libc::RLIMIT_NPROC, THREADS_MAX).map_err(step("limit its threads"))?;
    }
    // A file that would become too long is an error of that write, not the end of the machine.
    // SAFETY: ignoring a signal needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    Ok(())
}

/// Ends with the outer process, whose end of `channel` is the other one.
pub(super) fn die_with_parent(channel: &UnixStream) -> Result<(), SandboxError> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
        .map_err(step("end with its parent"))?;
    let mut poll = libc::pollfd {
        fd: channel.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which outlives the call; it does not wait.
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    if count > 0 && poll.revents & libc::POLLHUP != 0 {
        // It is gone already, and the signal will not come.
        return Err(SandboxError::Orphan);
    }
    Ok(())
}

/// Puts `/dev/null` in the place of standard input: nothing is read there, and a terminal could be typed at.
pub(super) fn close_input() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: both are descriptors; the first one is open.
    check(unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) })
}
