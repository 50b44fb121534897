//! Tools that do nothing and remember what they were asked, for tests.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use branch_guest::{Id, Identity};

use crate::tools::{ToolError, Tools};

/// What is done in the place of a program.
type Effect = Box<dyn FnMut(&str, &[&str])>;

/// See the module.
#[derive(Default)]
pub(crate) struct FakeTools {
    ran: Vec<String>,
    failing: HashSet<String>,
    output: Option<(String, String)>,
    effect: Option<Effect>,
}

impl FakeTools {
    /// A program that fails from now on.
    pub(crate) fn fail(&mut self, program: &str) {
        self.failing.insert(program.to_owned());
    }

    /// What a program prints.
    pub(crate) fn print(&mut self, program: &str, output: &str) {
        self.output = Some((program.to_owned(), output.to_owned()));
    }

    /// What is done in the place of programs.
    pub(crate) fn with_effect(effect: impl FnMut(&str, &[&str]) + 'static) -> Self {
        Self {
            effect: Some(Box::new(effect)),
            ..Self::default()
        }
    }

    /// What was run since the last call, one command a line.
    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ran)
    }
}

impl Tools for FakeTools {
    fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        _patience: Duration,
    ) -> Result<String, ToolError> {
        let command = [&[program][..], arguments].concat().join(" ");
        self.ran.push(command);
        if self.failing.contains(program) {
            return Err(ToolError::Failed {
                program: program.into(),
                status: 8,
                said: "no".into(),
            });
        }
        if let Some(effect) = &mut self.effect {
            effect(program, arguments);
        }
        let output = self.output.as_ref().filter(|(name, _)| name == program);
        Ok(output.map(|(_, output)| output.clone()).unwrap_or_default())
    }

    fn set_host_name(&mut self, name: &str) -> io::Result<()> {
        self.ran.push(format!("hostname {name}"));
        Ok(())
    }

    fn used_percent(&mut self, _place: &Path) -> io::Result<u8> {
        Ok(42)
    }
}

/// An identity whose machine id is one byte again and again.
pub(crate) fn identity(name: &str, byte: u8) -> Identity {
    Identity {
        host_name: name.to_owned().try_into().expect("a host name"),
        machine_id: Id::new([byte; 16]).expect("not zero"),
    }
}
