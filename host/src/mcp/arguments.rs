//! What a call of `run` says.

use crate::api::types::Isolation;
use rmcp::model::JsonObject;
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// The arguments, as clients send them: `null` is as good as nothing. The schema is made from this type, the
/// descriptions in it by [`super::words`].
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
pub(super) struct Arguments {
    /// The code.
    pub(super) code: String,
    /// The name of an environment.
    pub(super) env: String,
    /// The name of a session.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(super) session: Option<String>,
    /// How it is isolated.
    #[serde(default)]
    #[schemars(with = "Isolation")]
    pub(super) isolation: Option<Isolation>,
    /// Seconds.
    #[serde(default)]
    #[schemars(with = "f64")]
    pub(super) timeout: Option<f64>,
    /// Whether the answer does not wait for the end.
    #[serde(default)]
    #[schemars(with = "bool")]
    pub(super) background: Option<bool>,
}

/// Arguments that make no sense.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArgumentsError {
    /// Not of these types, or one that must be there is not.
    #[error("the arguments of `run` do not fit")]
    Shape(#[source] serde_json::Error),
    /// Not a time.
    #[error("timeout must be a number of seconds greater than 0, not {0}")]
    Timeout(f64),
}

impl Arguments {
    /// Reads them.
    pub(super) fn read(arguments: Option<JsonObject>) -> Result<Arguments, ArgumentsError> {
        let object = serde_json::Value::Object(arguments.unwrap_or_default());
        let mut arguments: Arguments = serde_json::from_value(object).map_err(ArgumentsError::Shape)?;
        // What models write who want none.
        arguments.session = arguments.session.filter(|session| !session.is_empty());
        match arguments.timeout {
            Some(seconds) if Duration::try_from_secs_f64(seconds).map_or(true, |time| time.is_zero()) => {
                Err(ArgumentsError::Timeout(seconds))
            }
            _ => Ok(arguments),
        }
    }

    /// The time the code may take.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// Whether the answer does not wait for the end.
    pub(super) fn background(&self) -> bool {
        self.background == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<Arguments, String> {
        Arguments::read(value.as_object().cloned()).map_err(|error| crate::causes::in_full(&error))
    }

    #[test]
    fn null_and_nothing_are_the_same() {
        let plain = read(json!({"code": "1", "env": "python"})).unwrap();
        let null = json!({"code": "1", "env": "python", "session": null, "isolation": null, "timeout": null,
            "background": null});
        assert_eq!(read(null).unwrap(), plain);
        assert_eq!(read(json!({"code": "1", "env": "python", "session": ""})).unwrap(), plain);
        assert_eq!(plain.timeout(), None);
        assert!(!plain.background());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (wrong, why) in [
            (json!({}), "missing field `code`"),
            (json!({"code": "1"}), "missing field `env`"),
            (json!({"code": 1, "env": "python"}), "invalid type"),
            (json!({"code": "1", "env": "python", "isolation": "chroot"}), "unknown variant `chroot`"),
            (json!({"code": "1", "env": "python", "timeout": 0}), "greater than 0"),
            (json!({"code": "1", "env": "python", "timeout": -1}), "greater than 0"),
            (json!({"code": "1", "env": "python", "timeout": 1e300}), "greater than 0"),
        ] {
            let refused = read(wrong.clone()).unwrap_err();
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
        assert!(Arguments::read(None).is_err());
        let half = read(json!({"code": "1", "env": "python", "timeout": 0.5})).unwrap();
        assert_eq!(half.timeout(), Some(Duration::from_millis(500)));
    }
}
