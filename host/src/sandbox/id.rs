//! Names of sandboxes.

use std::fmt;
use std::str::FromStr;

/// A sandbox's id: 32 random bits, written as eight hexadecimal digits. Never a path, whatever
/// somebody types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SandboxId(u32);

/// What was typed is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox id is eight hexadecimal digits")]
pub(crate) struct NotAnId;

impl SandboxId {
    /// A new one.
    pub(crate) fn random() -> Result<SandboxId, getrandom::Error> {
        getrandom::u32().map(SandboxId)
    }

    /// The one with this number.
    pub(crate) fn from_number(number: u32) -> SandboxId {
        SandboxId(number)
    }

    /// The number itself.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for SandboxId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<SandboxId, NotAnId> {
        let digits = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !digits {
            return Err(NotAnId);
        }
        u32::from_str_radix(text, 16).map(SandboxId).map_err(|_impossible| NotAnId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_is_read_as_it_was_written(number in any::<u32>()) {
            prop_assert_eq!(SandboxId(number).to_string().parse(), Ok(SandboxId(number)));
        }

        #[test]
        fn nothing_else_is_an_id(text in "[^0-9a-f]|.{0,7}|.{9,12}|\\.\\./[0-9a-f]{5}") {
            prop_assert!(text.parse::<SandboxId>().is_err());
        }
    }
}
