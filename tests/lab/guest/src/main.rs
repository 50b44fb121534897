//! Runs inside the nested lab's machine (L1), which has KVM with hardware's semantics: starts desktops (L2) on splice-vmm and
//! uses them as a person at their serial console would. Each check is a paragraph of [`checks`].
//!
//! It prints `CHECK name ok SECONDS` or `CHECK name FAILED reason` a line; what desktops printed is kept beside it.

mod checks;
mod differential;
mod figures;
mod network;
mod picture;
mod qemu;
mod vm;
mod window;
mod xfce;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use vm::Lab;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(programs), Some(guest), Some(out)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        eprintln!("usage: lab-guest PROGRAMS GUEST OUT [CHECK…]");
        return ExitCode::from(2);
    };
    let wanted: Vec<String> = arguments.collect();
    let lab = Lab {
        programs: PathBuf::from(programs),
        guest: PathBuf::from(guest),
        out: PathBuf::from(out),
    };
    let mut failed = 0;
    for (name, check) in checks::ALL {
        let is_wanted = if wanted.is_empty() {
            !checks::BY_NAME.contains(name)
        } else {
            wanted.iter().any(|w| w == name)
        };
        if !is_wanted {
            continue;
        }
        let begun = Instant::now();
        match check(&lab, name) {
            Ok(notes) => {
                println!("CHECK {name} ok {:.1}", begun.elapsed().as_secs_f64());
                for note in notes {
                    println!("NOTE {name} {note}");
                }
            }
            Err(error) => {
                failed += 1;
                println!("CHECK {name} FAILED {error:#}");
            }
        }
    }
    println!("CHECKS failed {failed}");
    ExitCode::from(u8::from(failed > 0))
}
