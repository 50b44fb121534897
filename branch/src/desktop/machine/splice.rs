//! splice-vmm as the machine: its command line, and what it is asked over its control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use branch_guest::PORT_NAME;
use vmm_api::{Answer, Command as Ask, LINE_BYTES_MAX};

use super::{Boot, Files, MachineSpec};

/// How long splice-vmm is waited for; it is trusted as little as its guest.
const ANSWER: Duration = Duration::from_secs(10);

/// What a guest's screen is at first; a viewer asks for another size.
const SCREEN: &str = "1280x800";

/// The command that runs the machine.
pub(super) fn command(spec: &MachineSpec) -> Command {
    let program = spec.host.vmm.clone();
    let mut command = Command::new(program.unwrap_or_else(|| "splice-vmm".into()));
    command.arg("run");
    // Nothing else is ever chosen for it.
    if let Boot::Kernel(boot) = &spec.boot {
        command.arg("--kernel").arg(&boot.kernel);
        if let Some(initrd) = &boot.initrd {
            command.arg("--initrd").arg(initrd);
        }
        command.args(["--command-line", &boot.command_line]);
    }
    command.args(["--memory", &spec.memory_mib.to_string()]);
    command.args(["--vcpus", &spec.vcpus.to_string()]);
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
    command.args(confinement.arguments(spec.memory_mib, spec.vcpus, spec.uid));
    command
}

/// Asks a machine; none if it does not answer.
fn ask(files: &Files, ask: &Ask) -> Option<Answer> {
    let mut stream = UnixStream::connect(files.control_socket(false)).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    stream.set_write_timeout(Some(ANSWER)).ok()?;
    let mut line = serde_json::to_vec(ask).expect("commands serialise without failing");
    line.push(b'\n');
    stream.write_all(&line).ok()?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::os::unix::net::UnixListener;

    use super::super::tests::spec;
    use super::super::{DirectBoot, MachineKind};
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
