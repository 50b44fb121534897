//! `splice image`.

use std::time::Duration;

use clap::Subcommand;
use datacenter_api::units::{format_duration, format_size, parse_duration, parse_size};
use datacenter_api::{CreateImage, Image, Retention};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// What can be done with images.
#[derive(Subcommand)]
pub enum Verb {
    /// Create an image.
    #[command(after_help = "Example:\n  splice image create debian --chunk-avg 16KiB")]
    Create {
        /// Its name: letters, digits, '.', '_', '-'.
        name: String,
        /// Average chunk size, for all of its versions [default: 16KiB]. Smaller finds more in common and costs more memory.
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        chunk_avg: Option<u64>,
    },
    /// List the images.
    List,
    /// Say which versions of an image are kept; without options show it.
    ///
    /// Kept is what either rule keeps, and whatever is in use or pinned. The others are deleted before the next collection of garbage, and
    /// can be had back for a while.
    #[command(after_help = "Examples:
  splice image retain debian --last 5 --newer 90d
  splice image retain debian --all")]
    Retain {
        /// The image.
        name: String,
        /// Keep so many of the newest versions.
        #[arg(long, value_name = "N")]
        last: Option<u32>,
        /// Keep versions that were published less than so long ago.
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        newer: Option<Duration>,
        /// Keep all.
        #[arg(long, conflicts_with_all = ["last", "newer"])]
        all: bool,
    },
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::Create { name, chunk_avg } => {
            let request = CreateImage {
                name,
                chunk_avg_bytes: chunk_avg,
            };
            let image = client.create_image(&request).await?;
            if context.json {
                return output::json(&image);
            }
            output::text(&format!("image {} is created\n", image.name))
        }
        Verb::List => {
            let images = client.images().await?;
            if context.json {
                return output::json(&images);
            }
            let rows: Vec<_> = images.iter().map(row).collect();
            output::table(
                &["NAME", "LATEST", "CHUNKS", "CREATED"],
                &rows,
                "no images yet; create one with `splice image create NAME`",
            )
        }
        Verb::Retain {
            name,
            last,
            newer,
            all,
        } => {
            let asked = Retention {
                last,
                newer_s: newer.map(|newer| newer.as_secs()),
            };
            let kept = match all || asked != Retention::default() {
                true => client.set_retention(&name, &asked).await?,
                false => client.retention(&name).await?,
            };
            if context.json {
                return output::json(&kept);
            }
            output::text(&format!("image {name} keeps {}\n", retained(&kept)))
        }
    }
}

fn retained(kept: &Retention) -> String {
    let last = kept.last.map(|last| format!("its newest {last} versions"));
    let newer = kept
        .newer_s
        .map(|s| format!("those of the last {}", format_duration(s)));
    match (last, newer) {
        (None, None) => "all of its versions".into(),
        (last, newer) => {
            let rules: Vec<String> = last.into_iter().chain(newer).collect();
            format!("{}, and what is in use or pinned", rules.join(" and "))
        }
    }
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.name.clone(),
        image.latest.map_or("-".into(), |n| format!("@{n}")),
        format_size(image.chunk_sizes.avg.into()),
        output::time(image.created_unix_s),
    ]
}
