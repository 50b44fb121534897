//! Namespaces: a machine's process sees no other process, no file, no network and no host name.

use std::ffi::CStr;
use std::io;

use super::{SandboxError, step};

/// Something that is on every host where machines run. The empty root is laid over it, in a mount namespace that nobody else sees.
const MOUNT_POINT: &CStr = c"/dev";
/// One page and one entry, its own: nothing is ever put in, and it is read-only from the beginning.
const ROOT_OPTIONS: &CStr = c"size=4k,nr_inodes=1,mode=555";

/// Why there are no namespaces.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoNamespaces {
    /// The host does not let us; nothing has changed.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// In the middle of it.
    #[error(transparent)]
    Half(#[from] SandboxError),
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: plain numbers; what is unshared here is no memory.
    check(unsafe { libc::unshare(flags) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next child begins a process namespace. Without the right to that, this process first gets a user namespace, in which it has it.
pub(super) fn own_processes() -> Result<(), NoNamespaces> {
    match unshare(libc::CLONE_NEWPID) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        Err(error) => return Err(NoNamespaces::Refused(error)),
    }
    // SAFETY: no arguments.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID).map_err(NoNamespaces::Refused)?;
    let map = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(step("map its user"))
    };
    // The user and group that they are; groups cannot be set then.
    map("uid_map", format!("{uid} {uid} 1"))?;
    map("setgroups", "deny".into())?;
    Ok(map("gid_map", format!("{gid} {gid} 1"))?)
}

/// The rest, for the process that [`own_processes`] was for.
pub(super) fn own_rest() -> Result<(), SandboxError> {
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    unshare(flags).map_err(step("mounts, network, IPC and host name of its own"))
}

/// Makes an empty read-only folder the root, and lets go of everything else.
pub(super) fn empty_root() -> Result<(), SandboxError> {
    let none = std::ptr::null();
    let hidden = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all are C strings or null where that is allowed.
    unsafe {
        let private = libc::mount(
            none,
            c"/".as_ptr(),
            none,
            libc::MS_REC | libc::MS_PRIVATE,
            none.cast(),
        );
        check(private).map_err(step("hide its mounts from the host"))?;
        let tmpfs = c"tmpfs".as_ptr();
        let at = MOUNT_POINT.as_ptr();
        check(libc::mount(
            tmpfs,
            at,
            tmpfs,
            hidden,
            ROOT_OPTIONS.as_ptr().cast(),
        ))
        .map_err(step("an empty folder"))?;
        check(libc::chdir(at)).map_err(step("enter the empty folder"))?;
        let here = c".".as_ptr();
        if libc::syscall(libc::SYS_pivot_root, here, here) == 0 {
            // The old root lies on top of the new one now.
            check(libc::umount2(here, libc::MNT_DETACH)).map_err(step("let go of the old root"))?;
        } else {
            // In an initial RAM disk, or in a chroot of somebody else's. What is outside stays mounted, but there is no way to it: no
            // descriptor of a folder is open, and there will be no capability to change the root again.
            check(libc::chroot(here)).map_err(step("make the empty folder the root"))?;
        }
        check(libc::chdir(c"/".as_ptr())).map_err(step("enter the new root"))
    }
}
