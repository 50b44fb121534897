//! `splice login`, `logout`, `setup` and `setup-code`; and `splice branch-log-in`, the same question put to a branch.

use std::path::PathBuf;

use clap::Args;
use datacenter_api::{Grant, LogInRequest, Session, SetupRequest};

use crate::config::Context;
use crate::desktop::Socket;
use crate::failure::Failure;
use crate::{output, secret, session};

/// Where a password comes from.
#[derive(Args)]
pub struct PasswordFile {
    /// Read the password from the first line of this file; otherwise it is asked for, or read from standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl PasswordFile {
    /// A password that is there already.
    pub fn read(&self) -> Result<String, Failure> {
        secret::read("password", self.password_file.as_deref())
    }

    /// A new one.
    pub fn read_new(&self) -> Result<String, Failure> {
        secret::read_new(self.password_file.as_deref())
    }
}

/// `splice login`
#[derive(Args)]
#[command(after_help = "Examples:
  splice login alice
  splice login alice --url https://dc.example.com:7480 --ca ./ca.pem
  splice login --show

The session holds for twelve hours, or an hour unused. It is kept in session.toml of the home folder's configuration and goes before
the token of cli.toml.")]
pub struct LogInArguments {
    /// The user.
    #[arg(required_unless_present = "show")]
    user: Option<String>,
    #[command(flatten)]
    password: PasswordFile,
    /// The code of the second factor; it is asked for if there is one.
    #[arg(long)]
    code: Option<String>,
    /// Show who you are and what you may do, and do not log in.
    #[arg(long)]
    show: bool,
}

/// `splice setup`
#[derive(Args)]
#[command(after_help = "Example:
  splice setup carol --url https://dc.example.com:7480 --ca ./ca.pem

The code is printed by `splice-datacenter init`, and by `splice setup-code` on the datacenter's machine. It is good once.")]
pub struct SetupArguments {
    /// The administrator's name.
    user: String,
    #[command(flatten)]
    password: PasswordFile,
    /// Read the one-time code from the first line of this file; otherwise it is asked for.
    #[arg(long, value_name = "FILE")]
    code_file: Option<PathBuf>,
}

/// `splice branch-log-in`
#[derive(Args)]
#[command(
    after_help = "Example:\n  splice branch-log-in alice --branch-socket /var/lib/splice-branch/branch.sock"
)]
pub struct BranchArguments {
    #[command(flatten)]
    socket: Socket,
    /// The user.
    user: String,
    #[command(flatten)]
    password: PasswordFile,
    /// The code of the second factor.
    #[arg(long)]
    code: Option<String>,
}

/// Begins a session, or shows the one there is.
pub async fn log_in(context: &Context, arguments: LogInArguments) -> Result<(), Failure> {
    let user = match arguments.user {
        Some(user) if !arguments.show => user,
        _ => {
            let session = context.client()?.session().await?;
            return show(context, &session);
        }
    };
    let (client, url, ca_pem) = context.stranger()?;
    let mut request = LogInRequest {
        name: user,
        password: arguments.password.read()?,
        code: arguments.code,
        bearer: true,
    };
    let session = match client.log_in(&request).await {
        Err(datacenter_api::ClientError::Problem(problem))
            if request.code.is_none() && problem.message.contains("second factor") =>
        {
            request.code = Some(secret::read("code", None)?);
            client.log_in(&request).await?
        }
        other => other?,
    };
    let Some(token) = session.token.clone() else {
        return Err(Failure::failed(
            "the datacenter gave no session for a program; it is older than this command",
        ));
    };
    session::store(&session::Session { url, ca_pem, token })?;
    show(context, &session)
}

fn show(context: &Context, session: &Session) -> Result<(), Failure> {
    if context.json {
        // Not the secrets, which are kept where they belong.
        let shown = Session {
            csrf: None,
            token: None,
            ..session.clone()
        };
        return output::json(&shown);
    }
    output::facts(&[
        ("you are", Some(session.who.clone())),
        ("roles", Some(roles(&session.roles))),
        ("until", session.expires_unix_s.map(output::time)),
    ])
}

/// Roles on one line.
pub fn roles(grants: &[Grant]) -> String {
    match grants {
        [] => "-".into(),
        _ => {
            let words: Vec<String> = grants.iter().map(ToString::to_string).collect();
            words.join(", ")
        }
    }
}

/// Ends the session.
pub async fn log_out(context: &Context) -> Result<(), Failure> {
    if session::load()?.is_none() {
        return output::text("there is no session\n");
    }
    let ended = match context.client() {
        Ok(client) => client.log_out().await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    // It is forgotten here whether or not the datacenter could be told.
    session::remove()?;
    ended?;
    output::text("the session is ended\n")
}

/// Makes an administrator's account with a one-time code.
pub async fn set_up(context: &Context, arguments: SetupArguments) -> Result<(), Failure> {
    let (client, _, _) = context.stranger()?;
    let request = SetupRequest {
        code: secret::read("one-time code", arguments.code_file.as_deref())?,
        name: arguments.user,
        password: arguments.password.read_new()?,
    };
    let user = client.set_up(&request).await?;
    if context.json {
        return output::json(&user);
    }
    output::text(&format!(
        "administrator {} is made; log in with `splice login {}`\n",
        user.name, user.name
    ))
}

/// Makes a one-time code.
pub async fn setup_code(context: &Context) -> Result<(), Failure> {
    let made = context.client()?.setup_code().await?;
    if context.json {
        return output::json(&made);
    }
    output::aside(format_args!(
        "good once, until {}: `splice setup NAME`",
        output::time(made.expires_unix_s)
    ));
    output::text(&format!("{}\n", made.code))
}

/// Asks a branch whom it lets in.
pub async fn at_branch(context: &Context, arguments: BranchArguments) -> Result<(), Failure> {
    let client = branch_api::Client::new(arguments.socket.path())?;
    let request = branch_api::LogIn {
        name: arguments.user,
        password: arguments.password.read()?,
        code: arguments.code,
    };
    let admitted = client.log_in(&request).await?;
    if context.json {
        return output::json(&admitted);
    }
    let pools = match admitted.pools.as_slice() {
        [] => "no pool of this branch".to_owned(),
        pools => pools.join(", "),
    };
    output::text(&format!("{} is let in: {pools}\n", admitted.name))
}
