//! `firn catalog`: the packages that `--with` knows.

use super::exit::Failed;
use super::output::{Output, printable};
use crate::config::Config;
use crate::env::catalog::{self, Section};
use crate::env::resolver::Resolver;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// List the packages that --with knows
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    firn catalog                            agents and tools\n  \
    firn catalog --filter claude            those with a word in their name or description\n  \
    firn catalog --json --grouped           agents by what they are for")]
pub(super) struct Catalog {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// In JSON, put agents into groups.
    #[arg(long)]
    grouped: bool,

    /// Only those with this in their name or description.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

impl Catalog {
    pub(super) fn run(&self, config: &Config, output: &mut Output) -> Result<u8, Failed> {
        let index = Resolver::new(config)?.catalog_index(&mut |told| output.told(&told));
        output.clear();
        let mut catalog = catalog::Catalog::new(index?);
        if let Some(text) = &self.filter {
            catalog = catalog.filtered(text);
        }
        if self.json {
            output.json(&self.value(&catalog))?;
        } else {
            output.stdout(text(&catalog).as_bytes())?;
        }
        Ok(0)
    }

    /// As nixo writes it.
    fn value(&self, catalog: &catalog::Catalog) -> Value {
        if !self.grouped {
            return json!({ "agents": catalog.agents, "tools": catalog.tools });
        }
        let groups: Map<String, Value> =
            catalog.groups().into_iter().map(|(group, members)| (group.to_owned(), json!(members))).collect();
        json!({ "agentCategories": groups, "tools": catalog.tools })
    }
}

/// For people, as nixo writes it.
fn text(catalog: &catalog::Catalog) -> String {
    let mut text = String::new();
    let mut section = |head: &str, members: &Section| {
        if members.is_empty() {
            return;
        }
        let gap = if text.is_empty() { "" } else { "\n" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{gap}{head}:");
        for (name, about) in members {
            let line = format!("  {name:<20} {}", catalog::description(about).replace('\n', " "));
            let _ = writeln!(text, "{}", printable(line.trim_end()));
        }
    };
    for (group, members) in catalog.groups() {
        section(group, &members);
    }
    section("Tools (from nixpkgs)", &catalog.tools);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_shape_is_nixos() {
        let about = |text: &str| json!({ "description": text });
        let catalog = catalog::Catalog::new(BTreeMap::from([
            ("agents".to_owned(), Section::from([("codex".to_owned(), about("Writes code"))])),
            ("tools".to_owned(), Section::from([("git".to_owned(), about("Keeps\nversions"))])),
        ]));
        insta::assert_snapshot!("text", text(&catalog));
        let verb = |grouped| Catalog { json: true, grouped, filter: None };
        insta::assert_json_snapshot!("flat", verb(false).value(&catalog));
        insta::assert_json_snapshot!("grouped", verb(true).value(&catalog));
    }
}
