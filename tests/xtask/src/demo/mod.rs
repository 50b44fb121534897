//! The main job on real input: publish a disk, boot it at a branch that does not have it yet, update it, cut the line,
//! and boot it at a second branch. Real daemons, real guests, an emulated line.
//!
//! Whatever happens, nothing is left running: no process, no namespace. Logs and the report stay in the work folder.

mod image;
mod lab;
mod process;
mod rsync;
mod serial;
mod splice;
mod story;
mod wait;
mod wan;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, bail};
use clap::Args;
use sim_wan::{Profile, tun};

use crate::report::{LinkRates, Report};
use lab::{Lab, Programs, WorkFolder};
use process::Processes;
use story::{Guest, Story};

/// What may be chosen.
#[derive(Args)]
pub(crate) struct Options {
    /// The line: lan, dsl, lte, t1, intercontinental, vsat-geo or bad-day.
    #[arg(long, default_value = "dsl")]
    profile: String,
    /// A disk of your own (raw, qcow2, …) instead of the small Debian. It needs a login prompt on its first serial port.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The next version of --image; without it the steps of the update are left out.
    #[arg(long, value_name = "FILE", requires = "image")]
    image2: Option<PathBuf>,
    /// What the serial console says when somebody may log in.
    #[arg(long, value_name = "TEXT", default_value = "login:")]
    login_prompt: String,
    /// Who may log in to --image; without it no file is written in the guest.
    #[arg(long, value_name = "USER:PASSWORD")]
    login: Option<String>,
    /// Leave everything running at the end, say how to look around, and wait for Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Write the figures here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the page here instead of into the work folder.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where everything is kept while it runs, and logs and page after.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/splice-demo")]
    work: PathBuf,
    /// Where the demo's own disks are kept from run to run. By default the user's cache.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Seed of the line's losses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the demo. Returns whether every step was ok.
///
/// # Errors
/// It could not begin; what happens later is part of the report.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let profile = Profile::named(&options.profile)?;
    let programs = Programs::find()?;
    tun::check_privileges()?;
    let guest = guest(options)?;
    for file in options.image.iter().chain(&options.image2) {
        std::fs::File::open(file).with_context(|| file.display().to_string())?;
    }
    wait::catch_interrupts();
    let work = Rc::new(WorkFolder::take(&options.work)?);
    let html = options
        .html
        .clone()
        .unwrap_or_else(|| work.join("splice-demo.html"));
    let json = options
        .json
        .clone()
        .unwrap_or_else(|| work.join("splice-demo.json"));
    let logs = work.join("logs");
    let mut processes = Processes::new(&logs)?;

    say("disks (made once, then kept)");
    let disks = match &options.image {
        None => image::bundled(&mut processes, &images_folder(options)?)?,
        Some(v1) => image::Disks {
            v1: absolute(v1)?,
            v2: options.image2.as_deref().map(absolute).transpose()?,
            bundled: false,
        },
    };
    let mut report = Report {
        profile: options.profile.clone(),
        link: LinkRates {
            down_bits_per_second: profile.down.rate_bps,
            up_bits_per_second: profile.up.rate_bps,
            rtt_seconds: profile.rtt().as_secs_f64(),
            summary: profile.summary.clone(),
        },
        image: image::measure(&disks.v1, &options.work)?,
        ..Report::default()
    };
    say(&format!(
        "namespaces and two lines of profile {}",
        options.profile
    ));
    let lab = Lab::build(
        processes,
        programs,
        work.clone(),
        &options.profile,
        options.seed,
    )?;
    let mut story = Story::new(lab, profile, disks, guest, &mut report);
    let told = story.tell();
    if let Err(error) = &told {
        eprintln!("\n{error:#}");
        story.show_logs();
    } else if options.keep {
        story.keep()?;
    }
    let lab = story.end();
    report.traces = lab.wan.traces();
    if let Err(error) = told {
        report.error = Some(format!("{error:#}"));
    }
    drop(lab);
    if report.is_ok() {
        // A run that went wrong keeps everything, to be looked at; the next one clears it.
        work.drop_data()?;
    }
    report.write_html(&html)?;
    report.write_json(&json)?;
    print!("\n{}", report.table());
    println!(
        "\npage: {}\nfigures: {}\nlogs: {}",
        html.display(),
        json.display(),
        logs.display()
    );
    Ok(report.is_ok())
}

fn guest(options: &Options) -> anyhow::Result<Guest> {
    let login = match (&options.login, &options.image) {
        (Some(login), _) => {
            let (user, password) = login
                .split_once(':')
                .context("--login must be USER:PASSWORD")?;
            Some((user.to_owned(), password.to_owned()))
        }
        (None, None) => Some(("user".to_owned(), "user".to_owned())),
        (None, Some(_)) => None,
    };
    Ok(Guest {
        prompt: options.login_prompt.clone(),
        login,
    })
}

fn images_folder(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(folder) = &options.images {
        return Ok(folder.clone());
    }
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".cache"),
        _ => {
            bail!("neither XDG_CACHE_HOME nor HOME is set; say where disks are kept with --images")
        }
    };
    Ok(cache.join("splice/images"))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| path.display().to_string())
}

fn say(what: &str) {
    eprintln!("==> {what}");
}
