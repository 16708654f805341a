//! The catalog: agents and tools by name, in nixo's order and groups.

use serde_json::Value;
use std::collections::BTreeMap;

/// Names and what is said of them, as a flake gives it.
pub(crate) type Section = BTreeMap<String, Value>;

/// nixo's groups of agents, and who is in them. All others are in the first.
const GROUPS: [(&str, &[&str]); 3] = [
    ("AI Coding Agents", &[]),
    ("AI Assistants", &["localgpt", "hermes-agent", "openclaw"]),
    ("Code Review", &["coderabbit-cli", "tuicr"]),
];

/// What there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Catalog {
    /// Coding agents.
    pub(crate) agents: Section,
    /// Everything else.
    pub(crate) tools: Section,
}

impl Catalog {
    /// From a flake's sections.
    pub(crate) fn new(mut sections: BTreeMap<String, Section>) -> Catalog {
        let mut take = |name: &str| sections.remove(name).unwrap_or_default();
        Catalog { agents: take("agents"), tools: take("tools") }
    }

    /// Only what has `text` in its name or description, whatever the case.
    pub(crate) fn filtered(mut self, text: &str) -> Catalog {
        let text = text.to_lowercase();
        let has = |name: &String, about: &mut Value| {
            name.to_lowercase().contains(&text) || description(about).to_lowercase().contains(&text)
        };
        self.agents.retain(has);
        self.tools.retain(has);
        self
    }

    /// The groups of agents that are not empty.
    pub(crate) fn groups(&self) -> Vec<(&'static str, Section)> {
        let of =
            |name: &str| GROUPS.iter().find(|(_, members)| members.contains(&name)).unwrap_or(&GROUPS[0]).0;
        GROUPS
            .iter()
            .map(|(group, _)| {
                let members = self.agents.iter().filter(|(name, _)| of(name) == *group);
                (*group, members.map(|(name, about)| (name.clone(), about.clone())).collect::<Section>())
            })
            .filter(|(_, members)| !members.is_empty())
            .collect()
    }
}

/// What is said of something.
pub(crate) fn description(about: &Value) -> &str {
    about.get("description").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let about = |text: &str| serde_json::json!({ "description": text });
        let section = |names: &[(&str, &str)]| -> Section {
            names.iter().map(|(name, text)| ((*name).to_owned(), about(text))).collect()
        };
        Catalog::new(BTreeMap::from([
            (
                "agents".to_owned(),
                section(&[("codex", "Writes code"), ("tuicr", "Reads code"), ("openclaw", "")]),
            ),
            ("tools".to_owned(), section(&[("git", "Version control"), ("jq", "JSON")])),
        ]))
    }

    #[test]
    fn agents_are_grouped_as_nixo_groups_them() {
        let groups: Vec<_> =
            catalog().groups().into_iter().map(|(group, members)| (group, members.len())).collect();
        assert_eq!(groups, [("AI Coding Agents", 1), ("AI Assistants", 1), ("Code Review", 1)]);
    }

    #[test]
    fn a_filter_looks_at_names_and_descriptions() {
        let found = catalog().filtered("CODE");
        assert_eq!(found.agents.keys().collect::<Vec<_>>(), ["codex", "tuicr"]);
        assert!(found.tools.is_empty());
        let groups: Vec<_> = found.groups().into_iter().map(|(group, _)| group).collect();
        assert_eq!(groups, ["AI Coding Agents", "Code Review"], "no group without members");
        assert_eq!(catalog().filtered("control").tools.keys().collect::<Vec<_>>(), ["git"]);
    }
}
