//! `splice rollout` and `splice channel`: versions that come to pools branch by branch, and which versions pools follow.

use clap::{Args, Subcommand};
use datacenter_api::policy::{format_rate, parse_rate};
use datacenter_api::units::{format_duration, format_size, parse_duration};
use datacenter_api::{
    BranchPrice, Channel, ChannelRequest, HealthGate, HealthSign, Rollout, RolloutPrice,
    RolloutRequest, VersionRef,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// What can be done with rollouts.
#[derive(Subcommand)]
pub enum Verb {
    /// Show what a rollout would cost each branch: bytes on its line, time inside its hours, desktops, evictions. Nothing is begun.
    #[command(after_help = "Examples:
  splice rollout price debian@4 --channel stable
  splice rollout price debian --branch new-york --line 50Mbit")]
    Price(Wanted),
    /// Begin a rollout: the version is fetched ahead, canary branches go first, then waves; desktops boot it from their next start on.
    ///
    /// A wave begins when each pool of the one before has shown enough healthy desktops. Where desktops fail, all goes back by itself to the version before,
    /// which stays pinned until the rollout is done.
    #[command(after_help = "Examples:
  splice rollout start debian@4 --channel stable --canary new-york --reason 'January updates'
  splice rollout start debian@4 --pool office --waves 20,100 --need boot,log_in --soak 2h")]
    Start(Wanted),
    /// List rollouts, newest first.
    List,
    /// Show a rollout: each pool, and how it came to where it stands.
    Show {
        /// Its number.
        rollout: u64,
    },
    /// Pause a rollout. What it has moved is watched on.
    Pause {
        /// Its number.
        rollout: u64,
    },
    /// Let a rollout go on.
    Resume {
        /// Its number.
        rollout: u64,
    },
    /// Turn a rollout back: all that it has moved runs what it ran before, from each desktop's next start on.
    Abort {
        /// Its number.
        rollout: u64,
    },
}

/// What a rollout is about.
#[derive(Args)]
pub struct Wanted {
    /// The version: IMAGE (its latest) or IMAGE@NUMBER.
    version: VersionRef,
    /// Pools that follow this channel, which is put at the version once all is done. Without it, all pools of the image.
    #[arg(long, value_name = "CHANNEL")]
    channel: Option<String>,
    /// Only pools of this name.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Only this branch; may be repeated.
    #[arg(long, value_name = "BRANCH")]
    branch: Vec<String>,
    /// A branch that goes first; may be repeated.
    #[arg(long, value_name = "BRANCH")]
    canary: Vec<String>,
    /// How much of the other branches each wave has reached, in percent [default: 10,50,100].
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',')]
    waves: Vec<u32>,
    /// What a healthy desktop shows: boot, log_in, alive (its agent answers, or it answers on the network) [default: boot].
    #[arg(long, value_name = "SIGN,…", value_delimiter = ',')]
    need: Vec<HealthSign>,
    /// Healthy desktops that each pool must show; 0: time alone [default: 1].
    #[arg(long, value_name = "COUNT")]
    desktops: Option<u32>,
    /// How long a desktop may take to boot [default: 15m].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    boot_time: Option<std::time::Duration>,
    /// How long each branch is watched at least [default: 30m].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    soak: Option<std::time::Duration>,
    /// After how long without enough healthy desktops it pauses [default: 7d].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    wait: Option<std::time::Duration>,
    /// Failed desktops of a pool at a branch that are put up with [default: 0].
    #[arg(long, value_name = "COUNT")]
    failures: Option<u32>,
    /// How fast lines are that have no cap; for the price.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    line: Option<u64>,
    /// Why; it is kept in the history.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
}

/// What can be done with channels.
#[derive(Subcommand)]
pub enum ChannelVerb {
    /// List the channels of an image.
    List {
        /// The image.
        image: String,
    },
    /// Put a channel at a version; it is made if it is not there. Pools that follow it are moved by a rollout, not by this.
    #[command(
        after_help = "Example:\n  splice channel set debian stable 3\n  splice branch assign new-york --pool office --image debian --channel stable"
    )]
    Set {
        /// The image.
        image: String,
        /// The channel.
        channel: String,
        /// Number of the version.
        number: u32,
    },
    /// Remove a channel that no pool follows.
    Remove {
        /// The image.
        image: String,
        /// The channel.
        channel: String,
    },
}

impl Wanted {
    fn request(self) -> RolloutRequest {
        let usual = HealthGate::default();
        let seconds = |asked: Option<std::time::Duration>, usual: u64| {
            asked.map_or(usual, |duration| duration.as_secs())
        };
        let gate = HealthGate {
            needs: if self.need.is_empty() {
                usual.needs
            } else {
                self.need
            },
            desktops: self.desktops.unwrap_or(usual.desktops),
            boot_s: seconds(self.boot_time, usual.boot_s),
            soak_s: seconds(self.soak, usual.soak_s),
            wait_s: seconds(self.wait, usual.wait_s),
            failures: self.failures.unwrap_or(usual.failures),
        };
        RolloutRequest {
            version: self.version.to_string(),
            channel: self.channel,
            pool: self.pool,
            branches: self.branch,
            canary: self.canary,
            waves: self.waves,
            gate,
            line_bits_per_s: self.line,
            reason: self.reason,
        }
    }
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::Price(wanted) => {
            let price = client.price(&wanted.request()).await?;
            if context.json {
                return output::json(&price);
            }
            show_price(&price)
        }
        Verb::Start(wanted) => {
            let rollout = client.start_rollout(&wanted.request()).await?;
            if context.json {
                return output::json(&rollout);
            }
            output::text(&format!(
                "rollout {} brings {} to {} pools in {} waves; `splice rollout show {}` follows it\n",
                rollout.id,
                rollout.version,
                rollout.pools.len(),
                rollout.waves,
                rollout.id
            ))
        }
        Verb::List => {
            let rollouts = client.rollouts().await?;
            if context.json {
                return output::json(&rollouts);
            }
            let heads = &[
                "ROLLOUT", "VERSION", "STATE", "WAVE", "BEGAN", "BY", "REASON",
            ];
            let rows: Vec<_> = rollouts.iter().map(row).collect();
            output::table(heads, &rows, "there was no rollout yet")
        }
        Verb::Show { rollout } => show(context, &client.rollout(rollout).await?),
        Verb::Pause { rollout } => steered(context, &client.pause_rollout(rollout).await?),
        Verb::Resume { rollout } => steered(context, &client.resume_rollout(rollout).await?),
        Verb::Abort { rollout } => steered(context, &client.abort_rollout(rollout).await?),
    }
}

/// Does it, with channels.
pub async fn channel(context: &Context, verb: ChannelVerb) -> Result<(), Failure> {
    let client = context.client()?;
    let channels: Vec<Channel> = match verb {
        ChannelVerb::List { image } => client.channels(&image).await?,
        ChannelVerb::Set {
            image,
            channel,
            number,
        } => {
            let request = ChannelRequest { number };
            let set = client.set_channel(&image, &channel, &request).await?;
            if context.json {
                return output::json(&set);
            }
            vec![set]
        }
        ChannelVerb::Remove { image, channel } => {
            client.delete_channel(&image, &channel).await?;
            if context.json {
                return output::json(&serde_json::json!({ "removed": channel }));
            }
            return output::text(&format!("channel {channel} of {image} is removed\n"));
        }
    };
    if context.json {
        return output::json(&channels);
    }
    let rows: Vec<Vec<String>> = channels
        .iter()
        .map(|one| {
            vec![
                one.name.clone(),
                one.version.clone(),
                output::time(one.since_unix_s),
                one.pools.to_string(),
            ]
        })
        .collect();
    output::table(
        &["CHANNEL", "VERSION", "SINCE", "POOLS"],
        &rows,
        "the image has no channels",
    )
}

fn row(rollout: &Rollout) -> Vec<String> {
    vec![
        rollout.id.to_string(),
        rollout.version.clone(),
        rollout.state.name().into(),
        format!("{} of {}", rollout.wave, rollout.waves),
        output::time(rollout.created_unix_s),
        rollout.by.clone(),
        rollout.reason.clone(),
    ]
}

fn steered(context: &Context, rollout: &Rollout) -> Result<(), Failure> {
    if context.json {
        return output::json(rollout);
    }
    output::text(&format!(
        "rollout {} is {}\n",
        rollout.id,
        rollout.state.name()
    ))
}

fn show(context: &Context, rollout: &Rollout) -> Result<(), Failure> {
    if context.json {
        return output::json(rollout);
    }
    let signs: Vec<&str> = rollout.gate.needs.iter().map(|sign| sign.name()).collect();
    output::facts(&[
        ("rollout", Some(rollout.id.to_string())),
        ("version", Some(rollout.version.clone())),
        ("channel", rollout.channel.clone()),
        ("state", Some(rollout.state.name().to_owned())),
        ("why", rollout.why.clone()),
        (
            "wave",
            Some(format!("{} of {}", rollout.wave, rollout.waves)),
        ),
        (
            "each pool shows",
            Some(format!(
                "{} desktops with: {}",
                rollout.gate.desktops,
                signs.join(", ")
            )),
        ),
        ("began", Some(output::time(rollout.created_unix_s))),
        ("ended", rollout.ended_unix_s.map(output::time)),
        ("by", Some(rollout.by.clone())),
        (
            "reason",
            Some(rollout.reason.clone()).filter(|text| !text.is_empty()),
        ),
    ])?;
    let rows: Vec<Vec<String>> = rollout
        .pools
        .iter()
        .map(|pool| {
            vec![
                pool.branch.clone(),
                pool.pool.clone(),
                pool.wave.to_string(),
                pool.from.clone(),
                pool.state.name().into(),
                output::time(pool.since_unix_s),
                pool.healthy.to_string(),
                pool.failed.join(", "),
            ]
        })
        .collect();
    output::text("\n")?;
    let heads = &[
        "BRANCH", "POOL", "WAVE", "FROM", "STATE", "SINCE", "HEALTHY", "FAILED",
    ];
    output::table(heads, &rows, "")?;
    output::text("\n")?;
    for entry in &rollout.history {
        output::text(&format!("{}  {}\n", output::time(entry.unix_s), entry.text))?;
    }
    Ok(())
}

fn show_price(price: &RolloutPrice) -> Result<(), Failure> {
    let rows: Vec<_> = price.branches.iter().map(price_row).collect();
    let heads = &[
        "BRANCH",
        "POOLS",
        "WAVE",
        "ON THE LINE",
        "BY",
        "PACE",
        "TIME",
        "READY",
        "DESKTOPS",
        "UP NOW",
        "EVICTED",
    ];
    output::table(heads, &rows, "")?;
    output::text(&format!(
        "\n{} to {} branches: {} on all lines, {} desktops\n",
        price.version,
        price.branches.len(),
        format_size(price.line_bytes),
        price.desktops
    ))?;
    for note in &price.notes {
        output::aside(note);
    }
    Ok(())
}

fn price_row(branch: &BranchPrice) -> Vec<String> {
    let known = |value: Option<String>| value.unwrap_or_else(|| "?".into());
    vec![
        branch.branch.clone(),
        branch.pools.join(", "),
        branch.wave.to_string(),
        format_size(branch.line_bytes),
        branch.basis.name().into(),
        known(branch.bits_per_s.map(format_rate)),
        known(branch.transfer_s.map(format_duration)),
        known(branch.ready_unix_s.map(output::time)),
        branch.desktops.to_string(),
        branch.running.to_string(),
        known(branch.evicted_bytes.map(format_size)),
    ]
}
