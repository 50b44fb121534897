//! `splice token`: tokens for programs.

use std::time::Duration;

use clap::Subcommand;
use datacenter_api::units::parse_duration;
use datacenter_api::{ApiToken, ApiTokenRequest, Grant};

use crate::config::Context;
use crate::failure::Failure;
use crate::login::roles;
use crate::output;
use crate::user::done;

/// What can be done with tokens.
#[derive(Subcommand)]
pub enum Verb {
    /// List your tokens; as an administrator, all.
    List,
    /// Make a token. It is shown once.
    #[command(after_help = "Examples:
  splice token create ci --role image-author --expires 90d
  SPLICE_TOKEN=$(splice token create night --role operator:branch=new-york --expires 1h) ./night-job")]
    Create {
        /// What it is for.
        name: String,
        /// What it may do, never more than you: may be repeated.
        #[arg(long, value_name = "ROLE", required = true)]
        role: Vec<Grant>,
        /// For how long it holds.
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires: Duration,
    },
    /// End a token.
    Delete {
        /// Its id.
        id: String,
    },
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List => {
            let tokens = client.tokens().await?;
            if context.json {
                return output::json(&tokens);
            }
            let rows: Vec<_> = tokens.iter().map(row).collect();
            let heads = &["ID", "NAME", "USER", "ROLES", "MADE", "ENDS"];
            output::table(heads, &rows, "no tokens")
        }
        Verb::Create {
            name,
            role,
            expires,
        } => {
            let request = ApiTokenRequest {
                name,
                roles: role,
                expires_s: expires.as_secs(),
            };
            let made = client.create_token(&request).await?;
            if context.json {
                return output::json(&made);
            }
            output::aside(format_args!("token {}; keep it now", made.token.id));
            output::text(&format!("{}\n", made.secret))
        }
        Verb::Delete { id } => {
            client.delete_token(&id).await?;
            done(context, &format!("token {id} is ended\n"))
        }
    }
}

fn row(token: &ApiToken) -> Vec<String> {
    vec![
        token.id.clone(),
        token.name.clone(),
        token.user.clone().unwrap_or_else(|| "-".into()),
        roles(&token.roles),
        output::time(token.created_unix_s),
        token.expires_unix_s.map_or("never".into(), output::time),
    ]
}
