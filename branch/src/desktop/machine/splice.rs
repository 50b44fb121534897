//! splice-vmm as the machine: its command line, and what it is asked over its control socket.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use branch_guest::PORT_NAME;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vmm_api::{Answer, Command as Ask, LINE_BYTES_MAX, Then};

use super::{Boot, Files, MachineSpec};

/// How long splice-vmm is waited for; it is trusted as little as its guest.
const ANSWER: Duration = Duration::from_secs(10);

/// How long it may take to save a machine: its memory is copied and hashed.
const SAVE: Duration = Duration::from_secs(600);
/// Most files that go with a command.
const FILES_MAX: usize = 2;

/// What a guest's screen is at first; a viewer asks for another size.
const SCREEN: &str = "1280x800";

/// The command that runs the machine.
pub(super) fn command(spec: &MachineSpec) -> Command {
    let program = spec.host.vmm.clone();
    let mut command = Command::new(program.unwrap_or_else(|| "splice-vmm".into()));
    match &spec.resume {
        None => command.arg("run"),
        Some(resume) => {
            let files = &resume.files;
            let [state, memory, order] =
                [&files.state, &files.memory, &files.order].map(|file| file.as_raw_fd());
            command.args(["resume", &format!("fd={state},{memory},{order}")])
        }
    };
    if spec.resume.as_ref().is_some_and(|resume| resume.records) {
        command.arg("--record");
    }
    // Nothing else is ever chosen for it.
    if let Boot::Kernel(boot) = &spec.boot {
        command.arg("--kernel").arg(&boot.kernel);
        if let Some(initrd) = &boot.initrd {
            command.arg("--initrd").arg(initrd);
        }
        command.args(["--command-line", &boot.command_line]);
    }
    if spec.resume.is_none() {
        command.args(["--memory", &spec.memory_mib.to_string()]);
        command.args(["--vcpus", &spec.vcpus.to_string()]);
    }
    let disk = spec.files.disk_socket();
    command.args(["--disk", &format!("vhost-user={}", disk.display())]);
    if spec.user_serial.is_some() {
        // Its server tells the serial number.
        let disk = spec.files.user_disk_socket();
        command.args(["--disk", &format!("vhost-user={}", disk.display())]);
    }
    command.arg("--serial-log").arg(spec.files.serial_log());
    command
        .arg("--serial-socket")
        .arg(spec.files.serial_socket());
    let port = spec.files.agent_socket();
    command.args(["--port", &format!("{PORT_NAME}={}", port.display())]);
    command
        .arg("--control")
        .arg(spec.files.control_socket(false));
    command.args(["--display", SCREEN]);
    command.arg("--rfb-socket").arg(spec.files.screen_socket());
    if let Some(card) = &spec.card {
        let tap = card.tap.as_raw_fd();
        command.args(["--net", &format!("fd={tap},mac={}", card.mac_text())]);
    }
    let confinement = &spec.host.confinement;
    let copies = if spec.is_saved { 2 } else { 1 };
    let memory_mib = spec.memory_mib.saturating_mul(copies);
    command.args(confinement.arguments(memory_mib, spec.vcpus, spec.uid));
    command
}

/// Asks a machine; none if it does not answer.
fn ask(files: &Files, ask: &Ask) -> Option<Answer> {
    ask_with(files, ask, &[], ANSWER)
}

/// Asks a machine, with files for it; none if it does not answer in time.
fn ask_with(
    files: &Files,
    ask: &Ask,
    handed: &[BorrowedFd<'_>],
    patience: Duration,
) -> Option<Answer> {
    let mut stream = UnixStream::connect(files.control_socket(false)).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.set_write_timeout(Some(ANSWER)).ok()?;
    let mut line = serde_json::to_vec(ask).expect("commands serialise without failing");
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !handed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(handed)) {
        return None;
    }
    let slices = [IoSlice::new(&line)];
    let sent = rustix::net::sendmsg(&stream, &slices, &mut control, SendFlags::NOSIGNAL);
    stream.write_all(&line[sent.ok()?..]).ok()?;
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream).take(LINE_BYTES_MAX as u64);
    reader.read_until(b'\n', &mut answer).ok()?;
    serde_json::from_slice(&answer).ok()
}

/// Whether the machine runs.
pub(super) fn is_up(files: &Files) -> bool {
    matches!(ask(files, &Ask::Status), Some(Answer::Status(_)))
}

/// Presses the power button. Returns whether that was done.
pub(super) fn press_power_button(files: &Files) -> bool {
    ask(files, &Ask::PowerButton) == Some(Answer::Done)
}

/// Ends the machine. Returns whether that was heard.
pub(super) fn quit(files: &Files) -> bool {
    ask(files, &Ask::Quit) == Some(Answer::Done)
}

/// Has the machine saved into empty files; it ends then without having run again.
pub(super) fn save(files: &Files, state: &File, memory: &File) -> Result<(), String> {
    let then = Then::Quit;
    let handed = [state.as_fd(), memory.as_fd()];
    match ask_with(files, &Ask::Snapshot { then }, &handed, SAVE) {
        Some(Answer::Done) => Ok(()),
        Some(Answer::Refused(why)) => Err(why),
        Some(Answer::Status(_)) => Err("it answers something else".into()),
        // One that ends may be gone before it has told. Its state is written last, and is sealed: whoever goes on from it finds out.
        None if state.metadata().is_ok_and(|about| about.len() > 0) => Ok(()),
        None => Err("it does not answer".into()),
    }
}

/// Puts the cable into its first network card, or pulls it. Returns whether that was done.
pub(super) fn link(files: &Files, up: bool) -> bool {
    ask(files, &Ask::Link { card: 0, up }) == Some(Answer::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::os::unix::net::UnixListener;

    use super::super::tests::spec;
    use super::super::{DirectBoot, MachineKind, Resume};
    use super::*;

    #[test]
    fn its_command_line_has_all_that_a_desktop_needs() {
        let mut spec = spec(MachineKind::Splice);
        spec.boot = Boot::Kernel(DirectBoot {
            kernel: "/boot/k".into(),
            initrd: Some("/boot/i".into()),
            command_line: "root=UUID=1 ro".into(),
        });
        let command = command(&spec);
        assert_eq!(command.get_program(), "/opt/splice-vmm");
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            arguments.join("|"),
            "run|--kernel|/boot/k|--initrd|/boot/i|--command-line|root=UUID=1 ro|--memory|1024|--vcpus|2\
             |--disk|vhost-user=/d/alice/disk.sock|--serial-log|/d/alice/serial.log\
             |--serial-socket|/d/alice/serial.sock|--port|splice.agent.0=/d/alice/agent.sock|--control|/d/alice/control.sock\
             |--display|1280x800|--rfb-socket|/d/alice/screen.sock|--sandbox|auto|--uid|70000"
        );
        let card = super::super::tests::card();
        let net = format!("--net|fd={},mac=52:53:0a:d5:00:02", card.tap.as_raw_fd());
        spec.card = Some(card);
        let command = super::command(&spec);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert!(arguments.join("|").contains(&net));
    }

    #[test]
    fn one_that_goes_on_is_told_its_files_and_no_shape() {
        let mut spec = spec(MachineKind::Splice);
        spec.boot = Boot::Kernel(DirectBoot {
            kernel: "/boot/k".into(),
            initrd: None,
            command_line: "ro".into(),
        });
        let files = crate::template::thaw::Files::empty().unwrap();
        let files = files.hand(true).unwrap();
        let numbers = [&files.state, &files.memory, &files.order].map(|file| file.as_raw_fd());
        let place = format!("fd={},{},{}", numbers[0], numbers[1], numbers[2]);
        spec.resume = Some(Resume {
            files,
            records: true,
        });
        assert_eq!(spec.inherited().len(), 3);
        spec.is_saved = true;
        spec.host.confinement.cgroup = Some("/g".into());
        let command = command(&spec);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        let line = arguments.join("|");
        let begin = format!("resume|{place}|--record|--kernel|/boot/k|--command-line|ro|--disk|");
        assert!(line.starts_with(&begin), "{line}");
        assert!(!line.contains("--vcpus") && !line.contains("--memory|"));
        assert!(line.contains("--memory-max|2432"), "{line}");
    }

    #[test]
    fn a_machine_is_saved_into_the_files_that_it_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().into());
        let saved = crate::template::thaw::Files::empty().unwrap();
        let save = || super::save(&files, &saved.state, &saved.memory);
        assert!(
            save().unwrap_err().contains("not answer"),
            "nobody is there"
        );
        let listener = UnixListener::bind(files.control_socket(false)).unwrap();
        let answers = ["{\"refused\":\"not now\"}\n", "\"done\"\n", ""];
        let server = std::thread::spawn(move || {
            answers.map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 256];
                let read = stream.read(&mut asked).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&asked[..read]).into_owned()
            })
        });
        assert_eq!(save(), Err("not now".into()));
        assert_eq!(save(), Ok(()));
        // Gone before it has told, with all of it written.
        saved.state.set_len(1).unwrap();
        assert_eq!(save(), Ok(()));
        let asked = server.join().unwrap();
        assert_eq!(asked[0], "{\"do\":\"snapshot\",\"then\":\"quit\"}\n");
    }

    #[test]
    fn a_user_volume_is_the_second_disk() {
        let mut spec = spec(MachineKind::Splice);
        spec.user_serial = Some("su-1".into());
        let command = command(&spec);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        let disks = "--disk vhost-user=/d/alice/disk.sock --disk vhost-user=/d/alice/user.sock";
        assert!(arguments.join(" ").contains(disks), "{arguments:?}");
    }

    #[test]
    fn a_machine_that_is_being_made_or_says_nonsense_is_not_up() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().into());
        assert!(!is_up(&files), "nobody is there");
        let listener = UnixListener::bind(files.control_socket(false)).unwrap();
        let answers = [
            r#"{"refused":"the machine is being made"}"#,
            "nonsense",
            r#"{"status":{"state":"running","memory_mib":1,"balloon_mib":0,"vcpus":1,"resets":0}}"#,
        ];
        let server = std::thread::spawn(move || {
            answers.map(|answer| {
                let (stream, _) = listener.accept().unwrap();
                let mut asked = String::new();
                BufReader::new(&stream).read_line(&mut asked).unwrap();
                writeln!(&stream, "{answer}").unwrap();
                asked
            })
        });
        assert_eq!([(); 3].map(|()| is_up(&files)), [false, false, true]);
        let asked = server.join().unwrap();
        assert_eq!(asked[0], "{\"do\":\"status\"}\n");
    }
}
