//! The check `xfce`: a whole Debian desktop comes up on splice-vmm's display. It may take an hour, and runs only when it is named.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::checks::SHELL;
use crate::vm::{Lab, Options, wait};

/// Emulated twice, a desktop that takes ten minutes emulated once.
const START: Duration = Duration::from_secs(5_400);
/// Between two looks at the screen, which cost the machine something.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// A text console has 16 colours, and one colour and a pointer a few more; a desktop's background has thousands.
const COLOURS_MIN: usize = 256;

/// See the module.
pub fn xfce(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let socket = std::env::temp_dir().join("xfce.rfb");
    let more = [
        "--display",
        "1024x768",
        "--rfb-socket",
        &socket.to_string_lossy(),
    ];
    let options = Options {
        system: "desktop",
        // It is made anew for each run of the lab, and this is its only user.
        disk: Some(lab.guest.join("desktop/disk")),
        memory_mib: 1_536,
        more: more.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let begun = Instant::now();
    let mut vm = lab.launch(name, &options)?;
    let mut colours = 0;
    let picture = std::env::temp_dir().join("xfce.ppm");
    let shown = wait("a desktop on the screen", START, || {
        std::thread::sleep(LOOK_EVERY);
        colours = look(lab, &socket, &picture)?;
        Ok((colours >= COLOURS_MIN).then_some(()))
    });
    let shown_after = begun.elapsed().as_secs_f64();
    // Also of one that does not come: what it shows instead.
    save(lab, &socket, &lab.file(name, "png"))?;
    shown?;
    // A greeter would have a background too: it is the panel of somebody who is logged in.
    vm.wait_for("login:", START)?;
    vm.log_in()?;
    let looks = "until pgrep -x xfce4-panel; do sleep 5; done";
    vm.run(looks, START)?;
    // What it draws first is not all.
    let at_rest = wait("the panel on the screen", SHELL * 20, || {
        let before = colours;
        std::thread::sleep(LOOK_EVERY);
        colours = look(lab, &socket, &picture)?;
        Ok((colours >= COLOURS_MIN && colours == before).then_some(()))
    });
    save(lab, &socket, &lab.file(name, "png"))?;
    at_rest?;
    Ok(vec![format!(
        "a desktop of {colours} colours: the first picture after {shown_after:.0} s, its panel at rest after {:.0} s",
        begun.elapsed().as_secs_f64()
    )])
}

fn save(lab: &Lab, socket: &Path, file: &Path) -> Result<()> {
    let mut command = Command::new(lab.programs.join("splice-vmm"));
    let saved = command.arg("screenshot").args([socket, file]).status()?;
    ensure!(saved.success(), "{saved} from the screenshot");
    Ok(())
}

/// How many colours the screen has now.
fn look(lab: &Lab, socket: &Path, picture: &Path) -> Result<usize> {
    save(lab, socket, picture)?;
    Ok(colours_of(&std::fs::read(picture)?).unwrap_or(0))
}

/// Colours of a portable pixmap of 8 bits a channel.
fn colours_of(picture: &[u8]) -> Option<usize> {
    let mut lines = picture.splitn(4, |byte| *byte == b'\n');
    let (kind, size, depth) = (lines.next()?, lines.next()?, lines.next()?);
    let pixels = lines.next().filter(|_| kind == b"P6" && depth == b"255")?;
    let size = std::str::from_utf8(size).ok()?;
    let (width, height) = size.split_once(' ')?;
    let count = width
        .parse::<usize>()
        .ok()?
        .checked_mul(height.parse().ok()?)?;
    let pixels = pixels.get(..count.checked_mul(3)?)?;
    let colours: std::collections::HashSet<&[u8]> = pixels.chunks_exact(3).collect();
    Some(colours.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_counted_and_what_is_no_picture_has_none() {
        // A byte of the pixels may be a line feed.
        let picture = b"P6\n2 2\n255\n\n\n\nabc\n\n\nabd";
        assert_eq!(colours_of(picture), Some(3));
        assert_eq!(colours_of(b"P6\n2 2\n255\nabcabcabcabc"), Some(1));
        for wrong in [
            &b""[..],
            b"P6\n2 2\n255\nabc",
            b"P5\n1 1\n255\nabc",
            b"P6\n1 1\n65535\nabc",
            b"P6\n99999999999 99999999999\n255\nabc",
            b"P6\nx\n255\nabc",
        ] {
            assert_eq!(colours_of(wrong), None);
        }
    }
}
