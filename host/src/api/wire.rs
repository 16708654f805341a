//! What both ends of the API call things that are in no body.

use firn_protocol::RequestId;

/// What a daemon says it speaks: all versions of the API, in a header of each answer.
pub(super) const VERSIONS: &str = "firn-api";

/// How much the sandbox has left out of an archive, or of what was in one, because it is neither file,
/// folder nor link: a header after the archive (a trailer), or of the answer.
pub(super) const LEFT_OUT: &str = "firn-left-out";

/// What the stream of a command is called when it is asked for (`Upgrade:` of HTTP/1.1).
pub(super) const FRAMES: &str = "firn-frames";

/// The operation of such a stream that all frames of the command belong to.
pub(super) const COMMAND: RequestId = 1;

/// The operation that notices belong to.
pub(super) const NOTICE: RequestId = 0;

/// Media types.
pub(super) const JSON: &str = "application/json";
pub(super) const LINES: &str = "application/x-ndjson";
pub(super) const BYTES: &str = "application/octet-stream";
pub(super) const TAR: &str = "application/x-tar";
pub(super) const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
