//! Why a management request was refused, and how failures are put into words for people.

use std::error::Error;

use datacenter_api::{NameError, Problem, ProblemCode};
use dedup_store::StoreError;

use crate::catalog::CatalogError;

/// Why a management request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// There is no such thing.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// The way out.
        help: String,
    },
    /// It contradicts what is there.
    #[error("{message}")]
    Conflict {
        /// What contradicts what.
        message: String,
        /// The way out.
        help: String,
    },
    /// It cannot be carried out as it is.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// The way out.
        help: Option<String>,
    },
    /// Nobody who is known here asks.
    #[error("{message}")]
    Unauthenticated {
        /// What is lacking.
        message: String,
        /// The way out.
        help: String,
    },
    /// Whoever asks may not do this.
    #[error("{message}")]
    Forbidden {
        /// What is lacking.
        message: String,
    },
    /// Too many attempts.
    #[error("{message}")]
    TooMany {
        /// Of what, and when to try again.
        message: String,
    },
    /// The catalog could not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The chunk store could not answer.
    #[error("chunk store")]
    Store(#[from] StoreError),
    /// A manifest could not be read.
    #[error("{message}")]
    Manifest {
        /// Which, and why.
        message: String,
    },
}

impl ManageError {
    /// There is no `what` called `name`; `help` is the way out.
    pub fn not_found(what: &'static str, name: impl Into<String>, help: impl Into<String>) -> Self {
        Self::NotFound {
            what,
            name: name.into(),
            help: help.into(),
        }
    }

    /// A contradiction and the way out.
    pub fn conflict(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Conflict {
            message: message.into(),
            help: help.into(),
        }
    }

    /// A request that cannot be carried out.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
            help: None,
        }
    }
}

impl From<NameError> for ManageError {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// An error and its causes on one line; a cause whose words are there already is not repeated.
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    // One line, whatever a foreign error says.
    text.replace(['\n', '\r'], " ")
}

/// A problem from its parts.
pub fn problem(error: ProblemCode, message: impl Into<String>, help: Option<String>) -> Problem {
    Problem {
        error,
        message: message.into(),
        help,
    }
}

impl From<&ManageError> for Problem {
    fn from(error: &ManageError) -> Self {
        let message = describe(error);
        match error {
            ManageError::NotFound { help, .. } => {
                problem(ProblemCode::NotFound, message, Some(help.clone()))
            }
            ManageError::Conflict { help, .. } => {
                problem(ProblemCode::Conflict, message, Some(help.clone()))
            }
            ManageError::Invalid { help, .. } => {
                problem(ProblemCode::Invalid, message, help.clone())
            }
            ManageError::Unauthenticated { help, .. } => {
                problem(ProblemCode::Unauthenticated, message, Some(help.clone()))
            }
            ManageError::Forbidden { .. } => problem(
                ProblemCode::Forbidden,
                message,
                Some(
                    "`splice login --show` tells your roles; an administrator gives others".into(),
                ),
            ),
            ManageError::TooMany { .. } => problem(ProblemCode::TooMany, message, None),
            ManageError::Catalog(e) => catalog_problem(e, message),
            ManageError::Store(e) => store_problem(e, message),
            ManageError::Manifest { .. } => problem(
                ProblemCode::Internal,
                message,
                Some("verify the version: `splice version verify IMAGE@N`".into()),
            ),
        }
    }
}

/// A catalog failure: a full disk is the operator's to solve, all else is ours.
pub fn catalog_problem(error: &CatalogError, message: String) -> Problem {
    match error {
        CatalogError::NoSpace { .. } => problem(
            ProblemCode::Unavailable,
            message,
            Some("free space on the datacenter's disk and try again".into()),
        ),
        _ => problem(ProblemCode::Internal, message, None),
    }
}

/// A chunk store failure.
pub fn store_problem(error: &StoreError, message: String) -> Problem {
    if error.is_no_space() {
        return problem(
            ProblemCode::Unavailable,
            message,
            Some("free space on the datacenter's disk and try again; what is stored so far is reused".into()),
        );
    }
    problem(ProblemCode::Internal, message, None)
}
