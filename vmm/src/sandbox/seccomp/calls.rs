//! The system calls that threads may make, by role, each with its reason. What is not here is not made.
//!
//! There is no call that opens a name, makes a socket, connects one, or starts, traces or looks at a process.

use super::Role::{
    self, Control, Device, Disk, Line, Main, Net, Outer, Pager, Ports, Remote, Screen, Signals,
    Starter, Vcpu,
};
use crate::snapshot::uffd;

/// What an argument must be. All that are looked at are of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// This.
    Equal(u32),
    /// This in the bits of the mask.
    Masked(u32, u32),
    /// The number of a process that is known when the list is made: for the outer process, its one child, for others, their own.
    Process,
}

/// One entry: a call with what its arguments must be. Entries of one call add to each other.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// Who may make it.
    pub roles: &'static [Role],
    /// Arguments by their place.
    pub arguments: &'static [(u8, Is)],
    /// What for.
    pub reason: &'static str,
}

impl Call {
    /// Whether one of these may make it.
    pub fn is_for(&self, roles: &[Role]) -> bool {
        self.roles.iter().any(|role| roles.contains(role))
    }
}

const fn call(
    (name, number): (&'static str, i64),
    roles: &'static [Role],
    arguments: &'static [(u8, Is)],
    reason: &'static str,
) -> Call {
    Call {
        name,
        number,
        roles,
        arguments,
        reason,
    }
}

/// A call's name and its number.
macro_rules! named {
    ($name:ident) => {
        (stringify!($name), libc::$name)
    };
}

/// Everybody inside.
const EVERY: &[Role] = &super::INNER;
/// … and outside.
const ALL: &[Role] = &[
    Main, Starter, Vcpu, Disk, Remote, Pager, Net, Ports, Device, Screen, Line, Control, Signals,
    Outer,
];
/// Who waits for queues.
const WORKERS: &[Role] = &[Disk, Net, Ports, Device];
/// Who starts and stops devices: a processor when its guest says so, the main thread when a machine ends.
const DEVICES: &[Role] = &[Main, Vcpu];
/// Who serves sockets to people and programs.
const SERVERS: &[Role] = &[Ports, Screen, Line, Control];

const ANY: &[(u8, Is)] = &[];
const PROT_EXEC: u32 = libc::PROT_EXEC as u32;
const NOT_EXECUTABLE: &[(u8, Is)] = &[(2, Is::Masked(PROT_EXEC, 0))];
const SOL_SOCKET: (u8, Is) = (1, Is::Equal(libc::SOL_SOCKET as u32));
/// As `SIGRTMIN() + 1` is on x86-64 with the GNU C library; the tests compare.
pub(super) const KICK: u32 = 35;
const SIGABRT: u32 = libc::SIGABRT as u32;
/// The flags by which the GNU C library starts a thread: of this process, with all that it has.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u32;

const fn ioctl(command: u32) -> (u8, Is) {
    (1, Is::Equal(command))
}

/// The table. One line an entry.
#[rustfmt::skip]
pub const CALLS: &[Call] = &[
    // Memory.
    call(named!(SYS_brk), ALL, ANY, "the heap"),
    call(named!(SYS_mmap), ALL, NOT_EXECUTABLE, "heap, stacks, a guest's memory; nothing new is ever executable"),
    call(named!(SYS_mprotect), ALL, NOT_EXECUTABLE, "the heap of a thread grows"),
    call(named!(SYS_mremap), EVERY, ANY, "a large buffer grows"),
    call(named!(SYS_munmap), ALL, ANY, "as above, given back"),
    call(named!(SYS_madvise), EVERY, ANY, "the stack of a thread that ends"),
    // Threads, locks and time.
    call(named!(SYS_futex), ALL, ANY, "locks, channels, waiting for threads"),
    call(named!(SYS_sched_yield), EVERY, ANY, "a lock that is about to be free"),
    call(named!(SYS_clock_gettime), ALL, ANY, "hosts whose clock cannot be read without a call"),
    call(named!(SYS_clock_nanosleep), EVERY, ANY, "pauses between attempts"),
    call(named!(SYS_restart_syscall), ALL, ANY, "the kernel goes on with a wait after the process was stopped"),
    call(named!(SYS_getrandom), EVERY, ANY, "keys of hash maps, the guest's entropy"),
    call(named!(SYS_sigaltstack), EVERY, ANY, "Rust's guard page of a thread that starts or ends"),
    call(named!(SYS_rt_sigprocmask), ALL, ANY, "the C library around starting, ending and signalling a thread"),
    call(named!(SYS_rt_sigreturn), ALL, ANY, "after a signal that has a handler"),
    call(named!(SYS_exit), EVERY, ANY, "a thread ends"),
    call(named!(SYS_exit_group), ALL, ANY, "the process ends"),
    call(named!(SYS_getpid), EVERY, ANY, "the C library, to send a signal to a thread"),
    call(named!(SYS_gettid), EVERY, ANY, "the C library, to abort"),
    call(named!(SYS_tgkill), EVERY, &[(0, Is::Process), (2, Is::Equal(SIGABRT))], "a defect of ours aborts the process"),
    call(named!(SYS_rt_sigaction), EVERY, &[(0, Is::Equal(SIGABRT))], "as above"),
    call(named!(SYS_tgkill), &[Main], &[(0, Is::Process), (2, Is::Equal(KICK))], "takes a processor out of the guest"),
    call(named!(SYS_rt_sigaction), &[Main], &[(0, Is::Equal(KICK))], "the handler of that signal, for each machine anew"),
    call(named!(SYS_clone), &[Starter], &[(0, Is::Equal(THREAD))], "starts a thread, and nothing but a thread"),
    call(named!(SYS_clone3), &[Starter], ANY, "answered as if it did not exist, see the module above"),
    call(named!(SYS_set_robust_list), &[Starter], ANY, "the C library, on a new thread"),
    call(named!(SYS_rseq), &[Starter], ANY, "as above"),
    call(named!(SYS_sched_getaffinity), &[Starter], ANY, "as above: Rust asks for the thread's stack"),
    call(named!(SYS_prctl), &[Starter], &[(0, Is::Equal(libc::PR_SET_NAME as u32))], "a new thread's name"),
    call(named!(SYS_prctl), &[Starter], &[(0, Is::Equal(libc::PR_SET_NO_NEW_PRIVS as u32))], "before a list is set"),
    call(named!(SYS_seccomp), &[Starter], &[(0, Is::Equal(libc::SECCOMP_SET_MODE_FILTER)), (1, Is::Equal(0))], "a new thread's own list"),
    // What every thread does with what is open.
    call(named!(SYS_read), ALL, ANY, "events, the kernel and initrd, packets, connections"),
    call(named!(SYS_write), ALL, ANY, "events, logs, packets, connections"),
    call(named!(SYS_close), ALL, ANY, "what is done with"),
    call(named!(SYS_fcntl), EVERY, &[(1, Is::Equal(libc::F_GETFD as u32))], "Rust's check, in builds with assertions, that what it closes is open"),
    call(named!(SYS_fcntl), &[Main, Vcpu, Remote, Screen, Line], &[(1, Is::Equal(libc::F_DUPFD_CLOEXEC as u32))], "copies of events and connections"),
    // Waiting for queues and connections.
    call(named!(SYS_epoll_wait), WORKERS, ANY, "a device's thread waits"),
    call(named!(SYS_epoll_ctl), &[Main, Vcpu, Ports], ANY, "what a device waits for; a client of a port"),
    call(named!(SYS_epoll_create1), DEVICES, ANY, "a device starts"),
    call(named!(SYS_eventfd2), DEVICES, ANY, "queues, interrupts, and telling a device to stop"),
    call(named!(SYS_timerfd_create), DEVICES, ANY, "a disk or a card with limits starts"),
    call(named!(SYS_timerfd_settime), &[Disk, Net], ANY, "when a limited disk or card may go on"),
    call(named!(SYS_poll), ALL, ANY, "waits for a server; looks at a held-back interrupt"),
    call(named!(SYS_ppoll), &[Main, Remote], ANY, "waits for a disk's server"),
    call(named!(SYS_rt_sigtimedwait), &[Signals], ANY, "waits for SIGTERM and SIGINT"),
    // Connections that were accepted or handed in.
    call(named!(SYS_accept4), SERVERS, ANY, "somebody opens a socket that was bound before"),
    call(named!(SYS_recvfrom), &[Ports, Screen, Line], ANY, "what they say"),
    call(named!(SYS_sendto), SERVERS, ANY, "what they are told"),
    call(named!(SYS_sendto), &[Vcpu], ANY, "the serial port's output to its console"),
    call(named!(SYS_setsockopt), &[Screen, Line, Control], &[SOL_SOCKET, (2, Is::Equal(libc::SO_RCVTIMEO as u32))], "patience"),
    call(named!(SYS_setsockopt), &[Screen, Line, Control], &[SOL_SOCKET, (2, Is::Equal(libc::SO_SNDTIMEO as u32))], "patience"),
    call(named!(SYS_shutdown), &[Ports, Screen, Line], ANY, "hanging up"),
    call(named!(SYS_ioctl), &[Ports], &[ioctl(libc::FIONBIO as u32)], "a client of a port is never waited for"),
    call(named!(SYS_recvmsg), &[Main, Remote, Ports], ANY, "a disk's server, and connections from the outer process"),
    call(named!(SYS_recvmsg), &[Control], ANY, "commands, and the files of a snapshot that come with them"),
    call(named!(SYS_sendmsg), &[Main, Remote], ANY, "a disk's server"),
    call(named!(SYS_sendto), &[Main, Remote], ANY, "asks the outer process for a connection"),
    // Files that are open.
    call(named!(SYS_pread64), &[Disk], ANY, "a raw disk"),
    call(named!(SYS_pwrite64), &[Disk], ANY, "a raw disk"),
    call(named!(SYS_fdatasync), &[Disk], ANY, "the guest flushes a raw disk"),
    call(named!(SYS_fallocate), &[Disk, Device], ANY, "discards and zeroes of a raw disk; memory that the balloon gives back"),
    call(named!(SYS_lseek), &[Main], ANY, "kernel and initrd are read again when the machine resets; which memory a snapshot has to keep"),
    // Snapshots: files that were handed in, and those that a machine was started with.
    call(named!(SYS_pread64), &[Main, Pager], ANY, "memory to be kept; a snapshot's memory; requests in flight"),
    call(named!(SYS_pwrite64), &[Main, Pager], ANY, "a snapshot's memory, into its file or out of it; its working set"),
    call(named!(SYS_ftruncate), &[Pager], ANY, "the length of a working set"),
    call(named!(SYS_fsync), &[Main], ANY, "a snapshot is on the disk before it is told so"),
    call(named!(SYS_fdatasync), &[Main], ANY, "and so is what its guest has written to raw disks"),
    call(named!(SYS_ioctl), &[Main], &[ioctl(uffd::HANDSHAKE)], "UFFDIO_API: missing pages of a machine that goes on"),
    call(named!(SYS_ioctl), &[Main], &[ioctl(uffd::REGISTER)], "UFFDIO_REGISTER"),
    call(named!(SYS_ioctl), &[Pager], &[ioctl(uffd::COPY)], "UFFDIO_COPY: puts pages there"),
    call(named!(SYS_ioctl), &[Pager], &[ioctl(uffd::ZERO)], "UFFDIO_ZEROPAGE: … and zeros"),
    call(named!(SYS_ioctl), &[Pager], &[ioctl(uffd::WAKE)], "UFFDIO_WAKE: who waited for a page that somebody else has put there"),
    call(named!(SYS_ioctl), &[Pager], &[ioctl(uffd::UNREGISTER)], "UFFDIO_UNREGISTER: all is there"),
    // A guest's memory.
    call(named!(SYS_memfd_create), &[Main], ANY, "a new machine's memory"),
    call(named!(SYS_ftruncate), &[Main], ANY, "its size"),
    call(named!(SYS_fcntl), &[Main], &[(1, Is::Equal(libc::F_ADD_SEALS as u32))], "its size never changes"),
    // KVM.
    call(named!(SYS_ioctl), &[Main], &[(1, Is::Masked(0xff00, 0xae00))], "KVM: the main thread builds machines"),
    call(named!(SYS_ioctl), &[Vcpu], &[ioctl(0x0000_ae80)], "KVM_RUN"),
    call(named!(SYS_ioctl), &[Vcpu], &[ioctl(0x8090_ae81)], "KVM_GET_REGS: where a guest fell over"),
    call(named!(SYS_ioctl), &[Vcpu], &[ioctl(0x4008_ae61)], "KVM_IRQ_LINE: the power button's interrupt"),
    call(named!(SYS_ioctl), &[Vcpu], &[ioctl(0x4008_ae6a)], "KVM_SET_GSI_ROUTING: a guest sets up messages"),
    call(named!(SYS_ioctl), &[Vcpu], &[ioctl(0x4020_ae76)], "KVM_IRQFD: … and connects them"),
    call(named!(SYS_ioctl), &[Vcpu], &[ioctl(0x4040_ae79)], "KVM_IOEVENTFD: a guest moves a device's BAR"),
    call(named!(SYS_ioctl), DEVICES, &[ioctl(0x4004_54d0)], "TUNSETOFFLOAD: what a guest's network card takes"),
    // The outer process.
    call(named!(SYS_kill), &[Outer], &[(0, Is::Process)], "passes SIGTERM and SIGINT on"),
    call(named!(SYS_wait4), &[Outer], ANY, "the machine has ended"),
    call(named!(SYS_socket), &[Outer], &[(0, Is::Equal(libc::AF_UNIX as u32))], "a connection to a disk's server or to whom the guest calls"),
    call(named!(SYS_connect), &[Outer], ANY, "as above"),
    call(named!(SYS_sendmsg), &[Outer], ANY, "hands it in"),
    call(named!(SYS_recvfrom), &[Outer], ANY, "who is wanted"),
    call(named!(SYS_sendto), &[Outer], ANY, "why there is no connection"),
    call(named!(SYS_ioctl), &[Outer], &[ioctl(libc::FIONBIO as u32)], "connecting waits for nobody"),
    call(named!(SYS_fcntl), &[Outer], &[(1, Is::Equal(libc::F_GETFD as u32))], "as for others"),
    call(named!(SYS_unlinkat), &[Outer], &[(2, Is::Equal(libc::AT_REMOVEDIR as u32))], "removes the machine's own cgroup"),
];
