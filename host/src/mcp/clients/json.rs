//! A member of an object of an object in JSON, set without touching anything else of the text.

use super::ConfigurationError;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize as _};
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::fmt;
use std::ops::Range;

/// What a level is indented by where nothing shows how.
const INDENT: &str = "  ";

/// The members of an object, in their order, as they are written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Members<'_> {
    /// Where in `text`, of which they are, the value of a member is.
    fn find(&self, name: &str, text: &str) -> Option<Range<usize>> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| range(value, text))
    }

    fn end_of_last(&self, text: &str) -> Option<usize> {
        self.0.last().map(|(_, value)| range(value, text).end)
    }
}

/// Where in `text` a part of it is.
fn range(part: &RawValue, text: &str) -> Range<usize> {
    let start = part.get().as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.get().len()
}

/// `text` with `value` as the member `name` of its member `section`.
pub(super) fn set(
    text: &str,
    section: &'static str,
    name: &str,
    value: &Value,
) -> Result<String, ConfigurationError> {
    if text.trim().is_empty() {
        let alone = json!({ section: { name: value } });
        return Ok(format!("{}\n", pretty(&alone, INDENT, 0)));
    }
    let before: Value = serde_json::from_str(text).map_err(ConfigurationError::Json)?;
    if before[section][name] == *value {
        return Ok(text.to_owned());
    }
    let indent = indent_of(text);
    let root: Members<'_> = serde_json::from_str(text).map_err(|_other| ConfigurationError::Changed)?;
    let changed = match root.find(section, text) {
        None => {
            let start = text.find('{').ok_or(ConfigurationError::Changed)?;
            let end = text.trim_end().len();
            let value = pretty(&json!({ name: value }), indent, 1);
            add(text, start..end, root.end_of_last(text), section, &value, indent, 1)
        }
        Some(at) => {
            let servers: Members<'_> = serde_json::from_str(&text[at.clone()])
                .map_err(|_other| ConfigurationError::Shape(section))?;
            let value = pretty(value, indent, 2);
            match servers.find(name, text) {
                Some(old) => format!("{}{value}{}", &text[..old.start], &text[old.end..]),
                None => add(text, at, servers.end_of_last(text), name, &value, indent, 2),
            }
        }
    };
    let mut wanted = before;
    wanted[section][name] = value.clone();
    match serde_json::from_str::<Value>(&changed) {
        Ok(now) if now == wanted => Ok(changed),
        Ok(_) | Err(_) => Err(ConfigurationError::Changed),
    }
}

/// Adds a member to the object at `object`, behind the last one.
fn add(
    text: &str,
    object: Range<usize>,
    last: Option<usize>,
    name: &str,
    value: &str,
    indent: &str,
    level: usize,
) -> String {
    let member = format!("\n{}{}: {value}", indent.repeat(level), json!(name));
    match last {
        Some(end) => format!("{},{member}{}", &text[..end], &text[end..]),
        None => {
            let around = (&text[..object.start], &text[object.end..]);
            format!("{}{{{member}\n{}}}{}", around.0, indent.repeat(level - 1), around.1)
        }
    }
}

/// What the first line that is indented is indented by.
fn indent_of(text: &str) -> &str {
    let mut indents = text.lines().map(|line| &line[..line.len() - line.trim_start().len()]);
    indents.find(|indent| !indent.is_empty()).unwrap_or(INDENT)
}

/// A value as people write it, at a level.
fn pretty(value: &Value, indent: &str, level: usize) -> String {
    let mut bytes = Vec::new();
    let mut serializer =
        Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes()));
    // Writing JSON into memory cannot fail, and it is text.
    let _ = value.serialize(&mut serializer);
    let text = String::from_utf8(bytes).unwrap_or_default();
    text.replace('\n', &format!("\n{}", indent.repeat(level)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set_in(text: &str) -> Result<String, ConfigurationError> {
        set(text, "servers", "firn", &json!({ "command": "firn" }))
    }

    #[test]
    fn nothing_else_changes() {
        let text =
            "{\n\t\"z\": [1,2 , 3],\n\t\"servers\": {\n\t\t\"other\": {\"a\":1}\n\t},\n\t\"a\": 1.50\n}\n";
        let wanted = "{\n\t\"z\": [1,2 , 3],\n\t\"servers\": {\n\t\t\"other\": {\"a\":1},\n\t\t\"firn\": {\n\t\t\t\"command\": \"firn\"\n\t\t}\n\t},\n\t\"a\": 1.50\n}\n";
        assert_eq!(set_in(text).unwrap(), wanted);
        assert_eq!(set_in(wanted).unwrap(), wanted);
        assert_eq!(
            set_in("{}").unwrap(),
            "{\n  \"servers\": {\n    \"firn\": {\n      \"command\": \"firn\"\n    }\n  }\n}"
        );
        let old = r#"{"servers":{"firn":{"command":"old"},"b":1}}"#;
        assert!(set_in(old).unwrap().ends_with("},\"b\":1}}"));
        assert!(set_in(r#"{"servers": {}, "x": 1}"#).unwrap().ends_with(", \"x\": 1}"));
    }

    #[test]
    fn what_cannot_be_kept_is_left_alone() {
        assert!(matches!(set_in("{ // a comment\n}"), Err(ConfigurationError::Json(_))));
        assert!(matches!(set_in("[]"), Err(ConfigurationError::Changed)));
        assert!(matches!(set_in(r#"{"servers": []}"#), Err(ConfigurationError::Shape("servers"))));
    }

    fn objects() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".*".prop_map(Value::from)
        ];
        let value = leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("servers|firn|[a-z]", value, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn it_is_added_to_any_object(root in objects(), compact: bool) {
            let text = if compact { root.to_string() } else { pretty(&root, "    ", 0) };
            match set_in(&text) {
                Ok(changed) => {
                    let now: Value = serde_json::from_str(&changed).unwrap();
                    prop_assert_eq!(&now["servers"]["firn"]["command"], "firn");
                    prop_assert_eq!(set_in(&changed).unwrap(), changed);
                }
                Err(_) => prop_assert!(!root["servers"].is_object()),
            }
        }
    }
}
