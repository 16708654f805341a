//! What models read of the server before they use it: instructions, the tool's description, and its schema. They are
//! in the context of every conversation, so a test counts what they cost.
//!
//! There is no schema of results: models do not need it, clients would pay for it each time.

use super::arguments::Arguments;
use super::policy::{Policy, Project};
use crate::api::types::Isolation;
use firn_protocol::Access;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

/// The tool.
pub(super) const TOOL: &str = "run";

/// How much of the list of environments is shown, in bytes. An unknown name is answered with all of it.
const MOST_NAMES: usize = 160;

const DESCRIPTION: &str = "Run code in a disposable sandbox without network, apart from the host. Prefer it to your \
    own shell for calculations, experiments and code you do not trust. Without `session` nothing outlasts the call. \
    Files put in $FIRN_ARTIFACTS in a session are returned as resources.";

const CODE: &str = "Source code. The value of a last expression is printed.";
const SESSION: &str = "Any name: variables and files persist between calls with it. Bound to its env.";
const ISOLATION: &str = "jail: fast, host's kernel. vm: own kernel, for hostile code.";
const TIMEOUT: &str = "Seconds.";
const BACKGROUND: &str =
    "Return at once; a later call with the same session and empty code collects the output.";

/// The instructions of the server.
pub(super) fn instructions(policy: &Policy) -> String {
    let mut text =
        "Read stderr and the exit code before you retry. State lost, timeouts and truncated output are said \
        in the result."
            .to_owned();
    if let Some(Project { target, access, .. }) = &policy.project {
        let how = match access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "writable",
        };
        text.push_str(&format!(" The user's project is at {} ({how}).", target.display()));
    }
    text
}

/// The tool, for a server with these environments.
pub(super) fn tool(policy: &Policy, environments: &[String]) -> Tool {
    let annotations = ToolAnnotations::new().read_only(false).destructive(false).open_world(false);
    Tool::new(TOOL, DESCRIPTION, schema(policy, environments)).annotate(annotations)
}

fn schema(policy: &Policy, environments: &[String]) -> JsonObject {
    let mut schema = schemars::SchemaGenerator::from(
        schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true),
    )
    .into_root_schema_for::<Arguments>();
    let mut properties = schema.remove("properties").unwrap_or_default();
    let mut describe = |name: &str, description: &str, plain: Option<Value>| {
        if let Some(property) = properties.get_mut(name) {
            // What schemas of types say besides is of no use to a model.
            *property = plain.unwrap_or_else(|| json!({ "type": property["type"] }));
            property["description"] = description.into();
        }
    };
    describe("code", CODE, None);
    describe("env", &format!("One of: {}.", names(environments)), None);
    describe("session", SESSION, None);
    describe("timeout", TIMEOUT, None);
    describe("background", BACKGROUND, None);
    match policy.choice() {
        Some(allowed) => {
            let allowed: Vec<&str> = allowed.iter().copied().map(Isolation::name).collect();
            let what = format!("{ISOLATION} Default: {}.", policy.isolation(None).name());
            describe("isolation", &what, Some(json!({ "type": "string", "enum": allowed })));
        }
        None => drop(properties.as_object_mut().and_then(|all| all.remove("isolation"))),
    }
    let required = schema.remove("required").unwrap_or_default();
    let schema = json!({ "type": "object", "properties": properties, "required": required });
    match schema {
        Value::Object(schema) => schema,
        _ => JsonObject::new(),
    }
}

/// The environments, as many as there is room for.
fn names(environments: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in environments.iter().enumerate() {
        if !text.is_empty() {
            text.push_str(", ");
        }
        if text.len() + name.len() > MOST_NAMES {
            text.push_str(&format!(
                "and {} more, all told when a name is unknown",
                environments.len() - index
            ));
            break;
        }
        text.push_str(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiktoken_rs::o200k_base;

    /// What the whole of it may cost.
    const MOST_TOKENS: usize = 420;

    fn policy() -> Policy {
        let mut policy = Policy::new(None, Vec::new()).unwrap();
        let target = "/a/place/for/the/project".into();
        policy.project = Some(Project { folder: "/p".into(), target, access: Access::ReadOnly });
        policy
    }

    fn cost(environments: &[String]) -> usize {
        let said = serde_json::to_string(&tool(&policy(), environments)).unwrap();
        let counter = o200k_base().unwrap();
        counter.encode_ordinary(&said).len() + counter.encode_ordinary(&instructions(&policy())).len()
    }

    #[test]
    fn it_costs_little_however_many_environments_there_are() {
        let few: Vec<String> = ["node", "python", "shell"].map(str::to_owned).into();
        let many: Vec<String> = (0..500).map(|number| format!("环境-{number:x}-æøå")).collect();
        assert!(cost(&few) <= MOST_TOKENS, "{}", cost(&few));
        assert!(cost(&many) <= MOST_TOKENS, "{}", cost(&many));
    }

    #[test]
    fn what_is_said_is_what_it_was() {
        let few: Vec<String> = ["node", "python", "shell"].map(str::to_owned).into();
        insta::assert_json_snapshot!(tool(&policy(), &few));
        insta::assert_snapshot!(instructions(&policy()));
    }

    #[test]
    fn a_choice_that_there_is_not_is_not_offered() {
        let jails = Policy::new(None, vec![Isolation::Jail]).unwrap();
        let tool = tool(&jails, &[]);
        assert!(tool.input_schema["properties"].get("isolation").is_none());
        assert_eq!(tool.input_schema["required"], json!(["code", "env"]));
    }

    #[test]
    fn a_long_list_says_that_it_is_longer() {
        let many: Vec<String> = (0..100).map(|number| format!("environment-{number}")).collect();
        let shown = names(&many);
        assert!(shown.starts_with("environment-0, ") && shown.contains(" more"), "{shown}");
        assert_eq!(names(&many[..2]), "environment-0, environment-1");
    }
}
