//! JSON Schemas of the messages.

use crate::{Event, Hello, Input, Reply, Request};
use schemars::{Schema, schema_for};

/// One schema for each kind of JSON frame, by the kind's name.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("hello", schema_for!(Hello)),
        ("request", schema_for!(Request)),
        ("input", schema_for!(Input)),
        ("event", schema_for!(Event)),
        ("reply", schema_for!(Reply)),
    ]
}
