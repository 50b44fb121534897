//! `splice image`.

use clap::Subcommand;
use datacenter_api::units::{format_size, parse_size};
use datacenter_api::{CreateImage, Image};

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
