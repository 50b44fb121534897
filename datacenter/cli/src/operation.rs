//! `splice operation`.

use clap::Subcommand;
use datacenter_api::units::format_size;
use datacenter_api::{Operation, OperationKind, OperationState, Phase};

use crate::config::Context;
use crate::failure::Failure;
use crate::{output, progress};

/// What can be done with long work.
#[derive(Subcommand)]
pub enum Verb {
    /// List the newest operations.
    List,
    /// Show an operation.
    Show {
        /// Its number.
        id: u64,
    },
    /// Follow an operation until it is done; fails if it does.
    Wait {
        /// Its number.
        id: u64,
    },
    /// Ask an operation to stop.
    Cancel {
        /// Its number.
        id: u64,
    },
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    let operation = match verb {
        Verb::List => {
            let operations = client.operations().await?;
            if context.json {
                return output::json(&operations);
            }
            let rows: Vec<_> = operations.iter().map(row).collect();
            return output::table(HEADS, &rows, "no operations yet");
        }
        Verb::Show { id } => client.operation(id).await?,
        Verb::Cancel { id } => client.cancel(id).await?,
        Verb::Wait { id } => {
            let operation = client.operation(id).await?;
            progress::follow(context, &client, operation).await?
        }
    };
    if context.json {
        return output::json(&operation);
    }
    output::table(HEADS, &[row(&operation)], "")?;
    match &operation.error {
        Some(error) => output::text(&format!("{}\n", error.message)),
        None => Ok(()),
    }
}

const HEADS: &[&str] = &["ID", "KIND", "SUBJECT", "STATE", "PROGRESS", "STARTED"];

/// One line of a table.
pub fn row(operation: &Operation) -> Vec<String> {
    let kind = match operation.kind {
        OperationKind::Publish => "publish",
        OperationKind::Verify => "verify",
        OperationKind::Update => "update",
        OperationKind::Collect => "collect",
        OperationKind::Scrub => "scrub",
        OperationKind::Export => "export",
        OperationKind::Backup => "backup",
    };
    let state = match operation.state {
        OperationState::Running => "running",
        OperationState::Succeeded => "succeeded",
        OperationState::Failed => "failed",
    };
    let progress = &operation.progress;
    // Trees and records are not told in bytes.
    let counted = matches!(progress.phase, Phase::Mark | Phase::Sweep);
    let far = match (operation.state, progress.total_bytes) {
        (OperationState::Running, 1..) if counted => format!(
            "{} of {}",
            output::count(progress.done_bytes),
            output::count(progress.total_bytes)
        ),
        (OperationState::Running, 1..) => format!(
            "{} of {}",
            format_size(progress.done_bytes),
            format_size(progress.total_bytes)
        ),
        _ => "-".into(),
    };
    vec![
        operation.id.to_string(),
        kind.into(),
        operation.subject.clone(),
        state.into(),
        far,
        output::time(operation.started_unix_s),
    ]
}
