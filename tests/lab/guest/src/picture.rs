//! The check `x`: X shows what it was told to, and keyboard, pointer and clipboard reach it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::checks::{BOOT, SHELL};
use crate::vm::{Lab, Options, Vm, wait};
use crate::window::{Picture, Window};

/// Emulated twice, X takes a minute or more.
const START: Duration = Duration::from_secs(400);
const WIDTH: usize = 1024;
const HEIGHT: usize = 768;

/// What is behind everything, see tests/images/make-x.sh: squares of eight pixels.
fn squares(x: usize, y: usize) -> [u8; 3] {
    if (x / 8 + y / 8).is_multiple_of(2) {
        [0xc0, 0x40, 0x20]
    } else {
        [0x20, 0x40, 0xc0]
    }
}

/// How many pixels of the right and lower part, where no window is, are not as they should be.
fn wrong(picture: &Picture) -> usize {
    let places = (HEIGHT / 2..HEIGHT).flat_map(|y| (WIDTH * 2 / 3..WIDTH).map(move |x| (x, y)));
    places
        .filter(|(x, y)| picture.at(*x, *y) != Some(squares(*x, *y)))
        .count()
}

fn in_x(vm: &mut Vm, command: &str) -> Result<String> {
    vm.run(&format!("DISPLAY=:0 timeout 50 {command}"), SHELL)
}

/// Waits until the file that the terminal writes holds a line.
fn typed(vm: &mut Vm, line: &str) -> Result<()> {
    wait("what was typed", SHELL, || {
        let typed = vm.run("cat /run/typed", SHELL)?;
        Ok(typed.contains(line).then_some(()))
    })
}

/// See the module.
pub fn x(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let socket = std::env::temp_dir().join("x.rfb");
    let more = [
        "--display",
        &format!("{WIDTH}x{HEIGHT}"),
        "--rfb-socket",
        &socket.to_string_lossy(),
    ];
    let options = Options {
        system: "x",
        // It is made anew for each run of the lab, and this is its only user.
        disk: Some(lab.guest.join("x/disk")),
        memory_mib: 640,
        more: more.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mut vm = lab.launch(name, &options)?;
    let seconds = vm.boot_and_log_in(BOOT)?;
    let begun = std::time::Instant::now();
    vm.run("(setsid desktop >/run/desktop.log 2>&1 &)", SHELL)?;
    let shown = wait("the picture", START, || {
        std::thread::sleep(Duration::from_secs(2));
        let picture = Window::open(&socket)?.look()?;
        let is_there = (picture.width, picture.height) == (WIDTH, HEIGHT) && wrong(&picture) == 0;
        Ok(is_there.then_some(()))
    });
    let shot = Command::new(lab.programs.join("splice-vmm"))
        .arg("screenshot")
        .args([&socket, &lab.file(name, "png")])
        .status()?;
    if shown.is_err() {
        let log = vm.run("cat /run/desktop.log; tail -n 40 /run/x.log", SHELL);
        std::fs::write(lab.file(name, "log.vmm"), log.unwrap_or_default())?;
    }
    shown?;
    ensure!(shot.success(), "{shot} from the screenshot");
    let x_seconds = begun.elapsed().as_secs_f64();

    let mut window = Window::open(&socket)?;
    // Keys go to the window that the pointer is in.
    wait("the terminal", START, || {
        Ok(vm
            .run("ls /run/typed || true", SHELL)?
            .contains("/run/typed\r\n")
            .then_some(()))
    })?;
    for (x, y) in [(900, 700), (3, 5), (100, 60)] {
        window.point(x, y)?;
        wait("the pointer to follow", SHELL, || {
            let said = in_x(&mut vm, "xdotool getmouselocation --shell")?;
            let place = |axis: &str| -> Option<u16> {
                let lines = said
                    .lines()
                    .filter_map(|line| line.trim().strip_prefix(axis));
                lines.filter_map(|value| value.parse().ok()).next()
            };
            let near = |at: Option<u16>, wanted: u16| at.is_some_and(|at| at.abs_diff(wanted) <= 1);
            Ok((near(place("X="), x) && near(place("Y="), y)).then_some(()))
        })?;
    }
    window.type_line("hello splice 123")?;
    typed(&mut vm, "hello splice 123")?;

    // A text from the viewer is pasted in the guest, and one that is copied there comes out.
    window.give_text("from a viewer")?;
    wait("a viewer's text in the guest", SHELL, || {
        let pasted = in_x(&mut vm, "xclip -o -selection clipboard 2>&1 || true")?;
        Ok(pasted.contains("from a viewer").then_some(()))
    })?;
    in_x(
        &mut vm,
        "sh -c \"printf copied-there | xclip -i -selection clipboard >/dev/null 2>&1\"",
    )?;
    let copied = window.text()?;
    ensure!(copied == "copied-there", "{copied:?} was copied");

    vm.run("systemctl poweroff", SHELL)?;
    let end = vm.wait_end(Duration::from_secs(180))?;
    ensure!(end.success(), "{end} after powering off");
    Ok(vec![format!(
        "login prompt after {seconds:.1} s, X and its picture {x_seconds:.1} s later"
    )])
}
