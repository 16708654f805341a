//! Where environments come from on this host, as its variables say: nix-sandbox-mcp's, nixo's and our own.

use std::path::PathBuf;

/// Where environments come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// The flake with the catalog and the environments that come with firn: `FIRN_FLAKE`, or
    /// `NIXOSANDBOX_FLAKE_ROOT`. None: packages are looked for among the host's programs.
    pub(crate) flake: Option<String>,
    /// The folder of artifacts, one level deep: `NIX_SANDBOX_DIR`, or
    /// `~/.config/nix-sandbox-mcp/sandboxes`.
    pub(crate) folder: Option<PathBuf>,
    /// References of flakes with one artifact each: `NIX_SANDBOX_ENVS`, with commas between them.
    pub(crate) references: Vec<String>,
}

impl Sources {
    /// From the values of these variables.
    pub(crate) fn new(flake: Option<String>, folder: Option<PathBuf>, references: Option<String>) -> Sources {
        let references = references.unwrap_or_default();
        let references = references.split(',').map(str::trim).filter(|text| !text.is_empty());
        Sources { flake, folder, references: references.map(str::to_owned).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_separated_by_commas() {
        let sources = Sources::new(None, None, Some(" github:a/b#c, .#d ,,".into()));
        assert_eq!(sources.references, ["github:a/b#c", ".#d"]);
        assert!(Sources::new(None, None, None).references.is_empty());
    }
}
