//! `splice laptop`, and `splice branch wipe`: desktops that are checked out to laptops, and keys that are destroyed at a branch.

use clap::{Args, Subcommand};
use datacenter_api::units::parse_duration;
use datacenter_api::{
    CheckInRequest, CheckOutRequest, Checkout, ExtendRequest, WipeOrder, WipeRequest,
};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// What can be done with desktops of laptops.
#[derive(Subcommand)]
pub enum Verb {
    /// List desktops that are checked out to laptops, or about to be.
    List,
    /// Check a desktop out to a laptop: as soon as it is stopped at its branch and all of it is here, it is the laptop's.
    #[command(
        after_help = "Example:\n  splice branch token alice-laptop --laptop\n  splice laptop check-out new-york alice --to alice-laptop --for 14d --reason 'carol: alice travels'"
    )]
    CheckOut {
        /// The branch that it is at.
        branch: String,
        /// Its name there.
        desktop: String,
        /// The laptop.
        #[arg(long, value_name = "LAPTOP")]
        to: String,
        /// For how long it starts without the datacenter's word.
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        period: std::time::Duration,
        /// Who does it and why; it is kept in the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Change until when a desktop is checked out; its laptop hears of it when it is connected.
    Extend {
        /// One of its volumes: the id, or 8 or more digits that begin it.
        volume: String,
        /// For how long from now; 0s ends it.
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        period: std::time::Duration,
        /// Who does it and why; it is kept in the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Want a desktop back from its laptop, which gives it back when it is stopped there and connected.
    CheckIn {
        /// One of its volumes: the id, or 8 or more digits that begin it.
        volume: String,
        /// Who does it and why; it is kept in the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// At once, without the laptop: what it still brings becomes a fork.
        #[arg(long)]
        force: bool,
    },
}

/// What `splice branch wipe` is told.
#[derive(Args)]
pub struct WipeArguments {
    /// The branch's name.
    name: String,
    /// Only the keys of this desktop.
    #[arg(long, value_name = "DESKTOP")]
    desktop: Option<String>,
    /// Who does it and why; it is kept in the audit log.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

const HEADS: &[&str] = &[
    "DESKTOP", "POOL", "FROM", "LAPTOP", "STATE", "UNTIL", "VOLUME",
];

fn row(checkout: &Checkout) -> Vec<String> {
    vec![
        checkout.desktop.clone(),
        checkout.pool.clone(),
        checkout.from.clone(),
        checkout.laptop.clone(),
        checkout.stage.name().into(),
        output::time(checkout.until_unix_s),
        checkout.volume.chars().take(12).collect(),
    ]
}

fn shown(context: &Context, checkout: &Checkout) -> Result<(), Failure> {
    if context.json {
        return output::json(checkout);
    }
    output::table(HEADS, &[row(checkout)], "")
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List => {
            let checkouts = client.checkouts().await?;
            if context.json {
                return output::json(&checkouts);
            }
            let rows: Vec<_> = checkouts.iter().map(row).collect();
            output::table(HEADS, &rows, "nothing is checked out")
        }
        Verb::CheckOut {
            branch,
            desktop,
            to,
            period,
            reason,
        } => {
            let request = CheckOutRequest {
                to,
                for_s: period.as_secs(),
                reason,
            };
            shown(
                context,
                &client.check_out(&branch, &desktop, &request).await?,
            )
        }
        Verb::Extend {
            volume,
            period,
            reason,
        } => {
            let request = ExtendRequest {
                for_s: period.as_secs(),
                reason,
            };
            shown(context, &client.extend_checkout(&volume, &request).await?)
        }
        Verb::CheckIn {
            volume,
            reason,
            force,
        } => {
            let request = CheckInRequest { reason, force };
            shown(context, &client.check_in(&volume, &request).await?)
        }
    }
}

fn order_row(order: &WipeOrder) -> Vec<String> {
    vec![
        order.number.to_string(),
        order
            .desktop
            .clone()
            .unwrap_or_else(|| "(all of it)".into()),
        output::time(order.ordered_unix_s),
        order
            .done_unix_s
            .map_or_else(|| "not yet".into(), output::time),
        order.reason.clone(),
    ]
}

const ORDER_HEADS: &[&str] = &["ORDER", "WHAT", "ORDERED", "DONE", "WHY"];

/// `splice branch wipe`
pub async fn wipe(context: &Context, arguments: WipeArguments) -> Result<(), Failure> {
    let request = WipeRequest {
        desktop: arguments.desktop,
        reason: arguments.reason,
    };
    let order = context.client()?.wipe(&arguments.name, &request).await?;
    if context.json {
        return output::json(&order);
    }
    output::table(ORDER_HEADS, &[order_row(&order)], "")
}

/// `splice branch wipes`
pub async fn wipes(context: &Context, name: &str) -> Result<(), Failure> {
    let orders = context.client()?.wipes(name).await?;
    if context.json {
        return output::json(&orders);
    }
    let rows: Vec<_> = orders.iter().map(order_row).collect();
    output::table(ORDER_HEADS, &rows, "nothing was ordered")
}
