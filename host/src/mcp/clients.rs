//! The clients of models whose configuration can name `firn mcp`: where each has it, and in what shape.
//!
//! A configuration is the user's. It is changed in one place and kept in all others, to the last comment and
//! space; what cannot be changed so is left alone. Nothing is read or written here.

mod json;
mod table;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How long a call may take until Gemini gives it up, in milliseconds. It does so after ten minutes otherwise.
const GEMINI_TIMEOUT: u64 = 3_600_000;

/// How long a call may take until Codex gives it up, in seconds. It does so after one minute otherwise.
const CODEX_TIMEOUT: u64 = 3600;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ClientKind {
    /// OpenAI's Codex: ~/.codex/config.toml.
    Codex,
    /// Claude Code: .mcp.json of the project.
    Claude,
    /// Visual Studio Code: .vscode/mcp.json of the project.
    Vscode,
    /// Cursor: .cursor/mcp.json of the project.
    Cursor,
    /// Zed: ~/.config/zed/settings.json.
    Zed,
    /// Gemini CLI: ~/.gemini/settings.json.
    Gemini,
    /// opencode: opencode.json of the project.
    Opencode,
}

/// What a configuration is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    /// What the client calls the server.
    pub(crate) name: String,
    /// The program.
    pub(crate) command: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
}

/// Where clients look for their configurations.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The user's home.
    pub(crate) home: PathBuf,
    /// The project.
    pub(crate) project: PathBuf,
    /// Codex's own folder, if it was moved.
    pub(crate) codex: Option<PathBuf>,
    /// The folder of configurations, if it was moved.
    pub(crate) config: Option<PathBuf>,
}

/// A configuration that is better left alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    /// Not JSON, or with comments.
    #[error("it is not plain JSON")]
    Json(#[source] serde_json::Error),
    /// Not TOML.
    #[error("it is not TOML")]
    Toml(#[source] toml::de::Error),
    /// Something else stands where servers are listed.
    #[error("its {0:?} is not what it should be")]
    Shape(&'static str),
    /// It would have become another.
    #[error("it is written in a way that cannot be added to")]
    Changed,
}

impl ClientKind {
    /// Its configuration.
    pub(crate) fn path(self, places: &Places) -> PathBuf {
        let Places { home, project, codex, config } = places;
        match self {
            ClientKind::Codex => codex.clone().unwrap_or_else(|| home.join(".codex")).join("config.toml"),
            ClientKind::Claude => project.join(".mcp.json"),
            ClientKind::Vscode => project.join(".vscode/mcp.json"),
            ClientKind::Cursor => project.join(".cursor/mcp.json"),
            ClientKind::Zed => {
                config.clone().unwrap_or_else(|| home.join(".config")).join("zed/settings.json")
            }
            ClientKind::Gemini => home.join(".gemini/settings.json"),
            ClientKind::Opencode => project.join("opencode.json"),
        }
    }

    /// A configuration that has nothing else.
    pub(crate) fn alone(self, registration: &Registration) -> Result<String, ConfigurationError> {
        self.add(registration, "")
    }

    /// `configuration`, with the server in it.
    pub(crate) fn add(
        self,
        registration: &Registration,
        configuration: &str,
    ) -> Result<String, ConfigurationError> {
        let entry = self.entry(registration);
        match self {
            ClientKind::Codex => table::set(configuration, self.section(), &registration.name, &entry),
            _ => json::set(configuration, self.section(), &registration.name, &entry),
        }
    }

    /// Where its servers are listed.
    fn section(self) -> &'static str {
        match self {
            ClientKind::Codex => "mcp_servers",
            ClientKind::Claude | ClientKind::Cursor | ClientKind::Gemini => "mcpServers",
            ClientKind::Vscode => "servers",
            ClientKind::Zed => "context_servers",
            ClientKind::Opencode => "mcp",
        }
    }

    fn entry(self, Registration { command, args, .. }: &Registration) -> Value {
        match self {
            // Without the mode `codex exec` refuses what is not read-only; a sandbox is what it could ask for.
            ClientKind::Codex => json!({
                "command": command,
                "args": args,
                "tool_timeout_sec": CODEX_TIMEOUT,
                "default_tools_approval_mode": "approve",
            }),
            ClientKind::Claude | ClientKind::Vscode => {
                json!({ "type": "stdio", "command": command, "args": args })
            }
            ClientKind::Cursor => json!({ "command": command, "args": args }),
            ClientKind::Zed => json!({ "command": command, "args": args, "env": {} }),
            ClientKind::Gemini => {
                json!({ "command": command, "args": args, "timeout": GEMINI_TIMEOUT, "trust": true })
            }
            ClientKind::Opencode => {
                let command: Vec<&String> = std::iter::once(command).chain(args).collect();
                json!({ "type": "local", "command": command, "enabled": true })
            }
        }
    }
}

impl Registration {
    /// The server as `name`: this program, by its name if that is what the shell finds in `search`, else by its path.
    pub(crate) fn new(name: &str, program: &Path, search: &[PathBuf], options: &[String]) -> Registration {
        let file = program.file_name().unwrap_or_default();
        let found = search.iter().map(|folder| folder.join(file)).find(|path| path.is_file());
        let same = found.and_then(|path| path.canonicalize().ok()) == program.canonicalize().ok();
        let command = if same { Path::new(file) } else { program };
        let args = std::iter::once("mcp".to_owned()).chain(options.iter().cloned()).collect();
        Registration { name: name.to_owned(), command: command.to_string_lossy().into_owned(), args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    fn registration() -> Registration {
        Registration {
            name: "firn".into(),
            command: "firn".into(),
            args: vec!["mcp".into(), "--env".into(), "a\"b".into()],
        }
    }

    #[test]
    fn each_has_its_shape() {
        for client in ClientKind::value_variants() {
            insta::assert_snapshot!(client.alone(&registration()).unwrap());
        }
    }

    #[test]
    fn what_is_there_is_not_added_twice() {
        for client in ClientKind::value_variants() {
            let once = client.alone(&registration()).unwrap();
            assert_eq!(client.add(&registration(), &once).unwrap(), once);
            let other = Registration { args: vec!["mcp".into()], ..registration() };
            let changed = client.add(&other, &once).unwrap();
            assert_eq!(changed, client.alone(&other).unwrap());
        }
    }

    #[test]
    fn the_program_is_named_by_its_path_unless_the_shell_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("firn");
        std::fs::write(&program, "").unwrap();
        let command = |search: &[PathBuf]| Registration::new("firn", &program, search, &[]).command;
        assert_eq!(command(&[folder.path().to_owned()]), "firn");
        assert_eq!(command(&["/usr/bin".into()]), program.to_string_lossy());
        // Another one comes first.
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("firn"), "").unwrap();
        assert_eq!(command(&[other.path().to_owned(), folder.path().to_owned()]), program.to_string_lossy());
    }
}
