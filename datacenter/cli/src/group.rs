//! `splice group` and `splice entitle`: who belongs together, and who may use which pool.

use clap::{Args, Subcommand};
use datacenter_api::SubjectKind;

use crate::config::Context;
use crate::failure::Failure;
use crate::output;
use crate::user::done;

/// What can be done with groups.
#[derive(Subcommand)]
pub enum Verb {
    /// List the groups with their members.
    List,
    /// Make a group.
    Add {
        /// The group.
        name: String,
    },
    /// Add users to a group.
    #[command(after_help = "Example:\n  splice group join staff alice bob")]
    Join {
        /// The group.
        group: String,
        /// The users.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Take users out of a group.
    Leave {
        /// The group.
        group: String,
        /// The users.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Delete a group with its entitlements; its members stay.
    Delete {
        /// The group.
        name: String,
    },
}

/// What can be done with entitlements.
#[derive(Subcommand)]
pub enum EntitleVerb {
    /// List who may use which pool.
    List,
    /// Entitle somebody to a pool.
    #[command(after_help = "Examples:
  splice entitle add office --group staff
  splice entitle add lab --branch new-york --user alice")]
    Add(Entitlement),
    /// Entitle somebody to a pool no more. Desktops that run go on.
    Remove(Entitlement),
}

/// Who, and to what.
#[derive(Args)]
pub struct Entitlement {
    /// The pool's name.
    pool: String,
    /// Only at this branch [default: wherever a pool has that name].
    #[arg(long)]
    branch: Option<String>,
    /// A user.
    #[arg(long, required_unless_present = "group", conflicts_with = "group")]
    user: Option<String>,
    /// All members of a group.
    #[arg(long)]
    group: Option<String>,
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List => {
            let groups = client.groups().await?;
            if context.json {
                return output::json(&groups);
            }
            let rows: Vec<_> = groups
                .iter()
                .map(|group| {
                    vec![
                        group.name.clone(),
                        group.members.len().to_string(),
                        group.members.join(", "),
                    ]
                })
                .collect();
            let none = "no groups yet; make one with `splice group add NAME`";
            output::table(&["GROUP", "MEMBERS", "WHO"], &rows, none)
        }
        Verb::Add { name } => {
            let group = client.create_group(&name).await?;
            if context.json {
                return output::json(&group);
            }
            output::text(&format!("group {} is made\n", group.name))
        }
        Verb::Join { group, users } => {
            for user in &users {
                client.set_member(&group, user, true).await?;
            }
            done(
                context,
                &format!("group {group} has {}\n", users.join(", ")),
            )
        }
        Verb::Leave { group, users } => {
            for user in &users {
                client.set_member(&group, user, false).await?;
            }
            let line = format!("group {group} does not have {}\n", users.join(", "));
            done(context, &line)
        }
        Verb::Delete { name } => {
            client.delete_group(&name).await?;
            done(context, &format!("group {name} is deleted\n"))
        }
    }
}

/// Does it.
pub async fn entitle(context: &Context, verb: EntitleVerb) -> Result<(), Failure> {
    let client = context.client()?;
    let (entitlement, entitled) = match verb {
        EntitleVerb::List => {
            let entitlements = client.entitlements().await?;
            if context.json {
                return output::json(&entitlements);
            }
            let rows: Vec<_> = entitlements
                .iter()
                .map(|one| {
                    let kind = match one.kind {
                        SubjectKind::User => "user",
                        SubjectKind::Group => "group",
                    };
                    vec![
                        one.pool.clone(),
                        one.branch.clone().unwrap_or_else(|| "(all)".into()),
                        kind.into(),
                        one.subject.clone(),
                        output::time(one.since_unix_s),
                    ]
                })
                .collect();
            return output::table(
                &["POOL", "BRANCH", "KIND", "WHO", "SINCE"],
                &rows,
                "nobody is entitled to anything yet; `splice entitle add POOL --group NAME`",
            );
        }
        EntitleVerb::Add(entitlement) => (entitlement, true),
        EntitleVerb::Remove(entitlement) => (entitlement, false),
    };
    let Entitlement {
        pool,
        branch,
        user,
        group,
    } = entitlement;
    let (kind, subject) = match (user, group) {
        (Some(user), _) => (SubjectKind::User, user),
        (None, Some(group)) => (SubjectKind::Group, group),
        (None, None) => return Err(Failure::usage("neither --user nor --group is given")),
    };
    client
        .set_entitled(&pool, branch.as_deref(), kind, &subject, entitled)
        .await?;
    let may = if entitled { "may use" } else { "may not use" };
    done(context, &format!("{subject} {may} pool {pool}\n"))
}
