//! What the lists of system calls allow and refuse, by running threads under them.
use std::collections::BTreeSet;

use super::calls::KICK;
use super::*;

/// What opens names, makes processes or looks at them, changes who one is, or loads code: on nobody's list inside.
const NEVER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_capset,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_reboot,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_memfd_secret,
    libc::SYS_userfaultfd,
    libc::SYS_modify_ldt,
];

fn calls_of(role: Role) -> BTreeSet<i64> {
    let calls = CALLS.iter().filter(|call| call.is_for(&[role]));
    calls.map(|call| call.number).collect()
}

#[test]
fn nobody_inside_opens_names_or_starts_anything_but_threads() {
    for role in INNER {
        let calls = calls_of(role);
        for never in NEVER {
            assert!(!calls.contains(never), "{role:?} may make call {never}");
        }
    }
    // … and memory that is executable is made by nobody at all.
    for call in CALLS {
        if [libc::SYS_mmap, libc::SYS_mprotect].contains(&call.number) {
            let no_code = (2, Is::Masked(libc::PROT_EXEC as u32, 0));
            assert!(call.arguments.contains(&no_code), "{call:?}");
        }
    }
}

#[test]
fn every_entry_has_its_reason_and_is_there_once() {
    let mut seen = BTreeSet::new();
    for call in CALLS {
        assert!(call.reason.len() > 3, "{call:?}");
        for role in call.roles {
            let entry = (call.number, format!("{:?}", call.arguments), *role);
            assert!(seen.insert(entry), "{call:?} again for {role:?}");
            let any = (call.number, "[]".to_owned(), *role);
            assert!(
                call.arguments.is_empty() || !seen.contains(&any),
                "{call:?} adds nothing for {role:?}"
            );
        }
    }
}

#[test]
fn threads_that_guests_reach_cannot_start_any() {
    for role in INNER.iter().filter(|role| **role != Role::Starter) {
        let calls = calls_of(*role);
        let starts = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_seccomp];
        assert!(
            starts.iter().all(|call| !calls.contains(call)),
            "{role:?} starts threads"
        );
    }
    let files = [libc::SYS_pread64, libc::SYS_pwrite64];
    for role in [Role::Vcpu, Role::Net, Role::Device, Role::Screen] {
        let calls = calls_of(role);
        assert!(files.iter().all(|call| !calls.contains(call)), "{role:?}");
    }
}

#[test]
fn the_pager_puts_pages_there_and_reaches_nothing_else() {
    let own = CALLS.iter().filter(|call| call.is_for(&[Role::Pager]));
    let commands: Vec<_> = own
        .filter(|call| call.number == libc::SYS_ioctl)
        .map(|call| call.arguments)
        .collect();
    // From <linux/userfaultfd.h>, as the kernel's programs have them: COPY, ZEROPAGE, WAKE, UNREGISTER.
    let expected = [0xc028_aa03, 0xc020_aa04, 0x8010_aa02, 0x8010_aa01];
    let expected = expected.map(|command| [(1u8, Is::Equal(command))]);
    assert_eq!(commands, expected.each_ref().map(|one| &one[..]));
    let calls = calls_of(Role::Pager);
    for call in [
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_accept4,
        libc::SYS_lseek,
    ] {
        assert!(!calls.contains(&call), "call {call}");
    }
}

#[test]
fn the_signal_of_processors_is_the_one_on_the_list() {
    assert_eq!(
        KICK as libc::c_int,
        crate::machine::vcpu::kick_signal(),
        "another C library?"
    );
}

#[test]
fn all_lists_become_programs() {
    let filters = Filters::inner(Violation::Kill).expect("programs");
    let filters = filters.expect("there shall be some");
    assert_eq!(filters.roles.len(), INNER.len());
    assert!(Filters::inner(Violation::Off).expect("none").is_none());
    for violation in [Violation::Kill, Violation::Log] {
        let action = action(violation).expect("an action");
        let outer = program(&[Role::Outer], 7, action).expect("a program");
        assert!(outer.len() > 20);
    }
}
