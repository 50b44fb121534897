//! How a command fails: one line and an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | it did not work |
//! | 2 | wrong usage or configuration |
//! | 3 | there is no such thing |
//! | 4 | it contradicts what is there |
//! | 5 | the datacenter cannot be reached |

use std::process::ExitCode;

use datacenter_api::{ClientError, Problem, ProblemCode};

use crate::output;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// It did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
            help: None,
        }
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            ..Self::failed(message)
        }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: 3,
            ..Self::failed(message)
        }
    }

    /// It contradicts what is there.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self {
            code: 4,
            ..Self::failed(message)
        }
    }

    /// Nobody answers.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            code: 5,
            ..Self::failed(message)
        }
    }

    /// The way out.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What happened.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prints it and gives the exit code.
    pub fn report(self, json: bool) -> ExitCode {
        if json {
            let value = serde_json::json!({
                "exit_code": self.code,
                "message": self.message,
                "help": self.help,
            });
            output::aside(value);
        } else {
            match &self.help {
                Some(help) => output::aside(format_args!("splice: {} ({help})", self.message)),
                None => output::aside(format_args!("splice: {}", self.message)),
            }
        }
        ExitCode::from(self.code)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let code = match problem.error {
            ProblemCode::NotFound => 3,
            ProblemCode::Conflict => 4,
            _ => 1,
        };
        Self {
            code,
            message: problem.message,
            help: problem.help,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Options(message) => Self::usage(message),
            ClientError::Problem(problem) => problem.into(),
            unreachable @ ClientError::Unreachable { .. } => Self {
                code: 5,
                message: unreachable.to_string(),
                help: Some("is splice-datacenter running there, and is --ca its realm's?".into()),
            },
            other => Self::failed(other.to_string()),
        }
    }
}
