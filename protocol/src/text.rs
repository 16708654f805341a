//! Strings of the operating system in JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

/// An argument, a variable or a path: any bytes. In JSON a string when the bytes are UTF-8, else
/// `{"base64": "…"}`, so nothing is lost and the usual case stays readable.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(OsString);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire<'a> {
    Utf8(std::borrow::Cow<'a, str>),
    Bytes { base64: std::borrow::Cow<'a, str> },
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => Wire::Utf8(text.into()),
            None => Wire::Bytes { base64: STANDARD.encode(self.0.as_bytes()).into() },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        match Wire::deserialize(deserializer)? {
            Wire::Utf8(text) => Ok(Text(text.into_owned().into())),
            Wire::Bytes { base64 } => STANDARD
                .decode(base64.as_bytes())
                .map(|bytes| Text(OsString::from_vec(bytes)))
                .map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Any bytes: a string when they are UTF-8, else base64.",
            "oneOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "base64": { "type": "string", "contentEncoding": "base64" } },
                    "required": ["base64"]
                }
            ]
        })
    }
}

impl Text {
    /// These bytes.
    pub fn from_bytes(bytes: &[u8]) -> Text {
        Text(OsStr::from_bytes(bytes).to_owned())
    }

    /// The bytes as the operating system's string.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The bytes as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The bytes as the operating system's string, without a copy.
    pub fn into_os_string(self) -> OsString {
        self.0
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl<T: Into<OsString>> From<T> for Text {
    fn from(text: T) -> Text {
        Text(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_json(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let text = Text(OsString::from_vec(bytes));
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
        }
    }

    #[test]
    fn readable_when_it_can_be() {
        assert_eq!(serde_json::to_string(&Text::from("häm")).unwrap(), "\"häm\"");
        assert!(serde_json::from_str::<Text>(r#"{"base64":"!"}"#).is_err());
    }
}
