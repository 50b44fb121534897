//! What of a sandbox a host does not let a machine have.

use serde::{Deserialize, Serialize};

/// What `splice-vmm sandbox` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// What is not in force, each with its reason. Empty: all of it is.
    pub lacking: Vec<String>,
}
