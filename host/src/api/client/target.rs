//! Where a request goes.

use super::super::percent;
use firn_protocol::Text;

/// A path with its query, as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Target(String);

impl From<&'static str> for Target {
    fn from(path: &'static str) -> Target {
        Target::new(path)
    }
}

impl Target {
    /// As text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn new(path: &'static str) -> Target {
        Target(path.to_owned())
    }

    /// What belongs to a sandbox.
    pub(super) fn sandbox(id: &str, rest: &'static str) -> Target {
        let mut target = Target::new("/v1/sandboxes/").segment(id.as_bytes());
        target.0.push_str(rest);
        target
    }

    /// What belongs to a session.
    pub(super) fn session(name: &str, rest: &'static str) -> Target {
        let mut target = Target::new("/v1/sessions/").segment(name.as_bytes());
        target.0.push_str(rest);
        target
    }

    /// With a value as the next part of the path.
    pub(super) fn segment(mut self, value: &[u8]) -> Target {
        percent::encode(value, &mut self.0);
        self
    }

    /// With a value in the query, if there is one.
    pub(super) fn query(mut self, name: &str, value: Option<impl ToString>) -> Target {
        if let Some(value) = value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(name);
            self.0.push('=');
            percent::encode(value.to_string().as_bytes(), &mut self.0);
        }
        self
    }

    /// With a path of the sandbox's in the query.
    pub(super) fn path(mut self, path: &Text) -> Target {
        self.0.push_str("?path=");
        percent::encode(path.as_bytes(), &mut self.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_part_of_an_address() {
        let target = Target::sandbox("a/../b?c=ä", "/logs").query("from", Some(7)).query("none", None::<u8>);
        assert_eq!(target.0, "/v1/sandboxes/a%2F..%2Fb%3Fc%3D%C3%A4/logs?from=7");
        let target = Target::new("/v1/events").query("sandbox", Some("x&y")).query("follow", Some(true));
        assert_eq!(target.0, "/v1/events?sandbox=x%26y&follow=true");
    }
}
