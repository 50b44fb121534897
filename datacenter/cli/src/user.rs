//! `splice user`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use datacenter_api::{Grant, PasswordRequest, ProofRequest, User, UserRequest};

use crate::config::Context;
use crate::failure::Failure;
use crate::login::{PasswordFile, roles};
use crate::{output, secret};

/// What can be done with users.
#[derive(Subcommand)]
pub enum Verb {
    /// List the users.
    List,
    /// Show a user.
    Show {
        /// The user.
        name: String,
    },
    /// Make a user.
    #[command(after_help = "Examples:
  splice user add alice --display 'Alice Adams'
  splice user add bob --role operator:branch=new-york --role help-desk
  splice user add carol --role admin --password-file ./password

Users without roles work at desktops; branches can prove their passwords with the WAN cut. Users with roles manage, and branches are not
told of them.")]
    Add {
        /// The name that is typed at a log-in: lower case.
        name: String,
        /// The person's own name.
        #[arg(long)]
        display: Option<String>,
        /// A role: admin, image-author, operator, help-desk or auditor, with :branch=NAME or :pool=NAME behind it for a part of the realm. May be repeated.
        #[arg(long, value_name = "ROLE")]
        role: Vec<Grant>,
        /// Without a password; nobody can log in before one is set.
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
        #[command(flatten)]
        password: PasswordFile,
    },
    /// Change a user.
    #[command(after_help = "Examples:
  splice user set bob --role auditor
  splice user set bob --no-roles --disable")]
    Set {
        /// The user.
        name: String,
        /// The person's own name.
        #[arg(long)]
        display: Option<String>,
        /// All of the user's roles from now on; may be repeated.
        #[arg(long, value_name = "ROLE")]
        role: Vec<Grant>,
        /// Take all roles.
        #[arg(long, conflicts_with = "role")]
        no_roles: bool,
        /// Refuse the user from now on.
        #[arg(long)]
        disable: bool,
        /// Take the user again.
        #[arg(long, conflicts_with = "disable")]
        enable: bool,
    },
    /// Set a user's password, or one's own. Sessions of the user end.
    #[command(after_help = "Examples:
  splice user password           # your own
  splice user password alice     # somebody else's: for administrators")]
    Password(PasswordArguments),
    /// Unlock a user whom wrong passwords have locked.
    Unlock {
        /// The user.
        name: String,
    },
    /// Make a second factor for one's own account, or give it up. The password is asked for.
    Totp {
        /// Give it up.
        #[arg(long)]
        drop: bool,
    },
    /// Ask a user for no second factor any more.
    ResetTotp {
        /// The user.
        name: String,
    },
    /// Delete a user with all that names him: sessions, tokens, memberships, entitlements.
    Delete {
        /// The user.
        name: String,
    },
}

/// `splice user password`
#[derive(Args)]
pub struct PasswordArguments {
    /// The user [default: yourself].
    name: Option<String>,
    #[command(flatten)]
    password: PasswordFile,
    /// For one's own: read the password before from the first line of this file; otherwise it is asked for.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    old_password_file: Option<PathBuf>,
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List => {
            let users = client.users().await?;
            if context.json {
                return output::json(&users);
            }
            let rows: Vec<_> = users.iter().map(row).collect();
            output::table(
                &[
                    "NAME",
                    "PERSON",
                    "STATE",
                    "SECOND FACTOR",
                    "ROLES",
                    "GROUPS",
                ],
                &rows,
                "no users yet; make one with `splice user add NAME`",
            )
        }
        Verb::Show { name } => show(context, &client.user(&name).await?),
        Verb::Add {
            name,
            display,
            role,
            no_password,
            password,
        } => {
            let password = match no_password {
                true => None,
                false => Some(password.read_new()?),
            };
            let request = UserRequest {
                display,
                password,
                roles: Some(role),
                disabled: None,
            };
            show(context, &client.create_user(&name, &request).await?)
        }
        Verb::Set {
            name,
            display,
            role,
            no_roles,
            disable,
            enable,
        } => {
            let request = UserRequest {
                display,
                password: None,
                roles: (no_roles || !role.is_empty()).then_some(role),
                disabled: (disable || enable).then_some(disable),
            };
            if request == UserRequest::default() {
                return Err(Failure::usage("nothing to change is given"));
            }
            show(context, &client.change_user(&name, &request).await?)
        }
        Verb::Password(arguments) => password(context, &client, arguments).await,
        Verb::Unlock { name } => show(context, &client.unlock_user(&name).await?),
        Verb::Totp { drop } => totp(context, &client, drop).await,
        Verb::ResetTotp { name } => show(context, &client.reset_totp(&name).await?),
        Verb::Delete { name } => {
            client.delete_user(&name).await?;
            done(context, &format!("user {name} is deleted\n"))
        }
    }
}

/// That something was done which has no other result.
pub fn done(context: &Context, line: &str) -> Result<(), Failure> {
    match context.json {
        true => output::json(&serde_json::json!({})),
        false => output::text(line),
    }
}

async fn password(
    context: &Context,
    client: &datacenter_api::Client,
    arguments: PasswordArguments,
) -> Result<(), Failure> {
    if let Some(name) = arguments.name {
        let request = UserRequest {
            password: Some(arguments.password.read_new()?),
            ..UserRequest::default()
        };
        return show(context, &client.change_user(&name, &request).await?);
    }
    let request = PasswordRequest {
        old: secret::read("password before", arguments.old_password_file.as_deref())?,
        new: arguments.password.read_new()?,
    };
    client.change_password(&request).await?;
    done(context, "the password is changed; log in again\n")
}

async fn totp(
    context: &Context,
    client: &datacenter_api::Client,
    drop: bool,
) -> Result<(), Failure> {
    let proof = secret::read("password", None)?;
    if drop {
        client.drop_totp(&ProofRequest { proof }).await?;
        return done(context, "the second factor is given up\n");
    }
    let made = client.make_totp(&ProofRequest { proof }).await?;
    output::aside(format_args!(
        "type this secret into an authenticator application, or the address as a QR code:\n  {}\n  {}",
        made.secret, made.uri
    ));
    let proof = secret::read("the code that it shows", None)?;
    client.confirm_totp(&ProofRequest { proof }).await?;
    done(context, "the second factor is asked for from now on\n")
}

fn state(user: &User) -> String {
    if user.disabled {
        "disabled".into()
    } else if user.locked_s > 0 {
        format!("locked for {} s", user.locked_s)
    } else if user.has_password {
        "ok".into()
    } else {
        "no password".into()
    }
}

fn groups(user: &User) -> String {
    match user.groups.as_slice() {
        [] => "-".into(),
        groups => groups.join(", "),
    }
}

fn factor(user: &User) -> String {
    if user.has_totp { "yes" } else { "no" }.into()
}

fn row(user: &User) -> Vec<String> {
    vec![
        user.name.clone(),
        user.display.clone().unwrap_or_else(|| "-".into()),
        state(user),
        factor(user),
        roles(&user.roles),
        groups(user),
    ]
}

fn show(context: &Context, user: &User) -> Result<(), Failure> {
    if context.json {
        return output::json(user);
    }
    let known = match user.roles.is_empty() {
        true => "of the pools that the user is entitled to",
        false => "none: the user has roles",
    };
    output::facts(&[
        ("user", Some(user.name.clone())),
        ("person", user.display.clone()),
        ("state", Some(state(user))),
        ("second factor", Some(factor(user))),
        ("roles", Some(roles(&user.roles))),
        ("groups", Some(groups(user))),
        ("branches that can log in", Some(known.into())),
        ("made", Some(output::time(user.created_unix_s))),
    ])
}
