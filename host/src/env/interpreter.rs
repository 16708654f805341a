//! The languages that code can be in, and the environments that are there without Nix: the host's own
//! interpreters, as the view shows them.

use super::packages;
use firn_protocol::Text;
use serde::{Deserialize, Serialize};

/// What runs code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interpreter {
    /// Python 3.
    Python,
    /// Bash.
    Bash,
    /// Node.js.
    Node,
}

impl Interpreter {
    /// All of them, in the order in which they are listed.
    pub(crate) const ALL: [Interpreter; 3] = [Interpreter::Bash, Interpreter::Python, Interpreter::Node];

    /// That of the environment called `name`.
    pub(crate) fn of(name: &str) -> Option<Interpreter> {
        // The other name that nix-sandbox-mcp and nixo know it by.
        let name = if name == "bash" { "shell" } else { name };
        Interpreter::ALL.into_iter().find(|interpreter| interpreter.environment() == name)
    }

    /// What the host's own is called as an environment.
    pub(crate) fn environment(self) -> &'static str {
        match self {
            Interpreter::Python => "python",
            Interpreter::Bash => "shell",
            Interpreter::Node => "node",
        }
    }

    /// What `metadata.json` calls it.
    pub(crate) fn language(self) -> &'static str {
        match self {
            Interpreter::Python => "python",
            Interpreter::Bash => "bash",
            Interpreter::Node => "node",
        }
    }

    /// Its program.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Interpreter::Python => "python3",
            Interpreter::Bash => "bash",
            Interpreter::Node => "node",
        }
    }

    /// Debian's package that has it.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Interpreter::Python => "python3",
            Interpreter::Bash => "bash",
            Interpreter::Node => "nodejs",
        }
    }

    /// Whether this host has it.
    pub(crate) fn is_there(self) -> bool {
        packages::is_there(self.program())
    }

    /// The command that runs the code on its stdin.
    pub(crate) fn reading_code(self) -> Vec<Text> {
        let argument = match self {
            Interpreter::Python | Interpreter::Node => "-",
            Interpreter::Bash => "-s",
        };
        vec![self.program().into(), argument.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interpreter_is_an_environment() {
        for interpreter in Interpreter::ALL {
            assert_eq!(Interpreter::of(interpreter.environment()), Some(interpreter));
        }
        assert_eq!(Interpreter::of("bash"), Some(Interpreter::Bash));
        for unknown in ["", "host", "Python", "python3", "/python"] {
            assert_eq!(Interpreter::of(unknown), None, "{unknown}");
        }
        assert!(Interpreter::Bash.is_there());
    }
}
