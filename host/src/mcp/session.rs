//! Sessions, as calls name them and as the daemon does, and what is known of them here.
//!
//! Sessions are the daemon's: they outlive this process, and `firn session` shows them. Their names there have a
//! beginning that says whose they are, so that a model can name what models have made and nothing else: not the
//! sessions that people have made for themselves, and of clients that are told apart none of another's.
//!
//! ```text
//!   mcp.work            "work", of a client over stdio
//!   mcp-alice.work      "work", of alice
//!   mcp.  .0123…        any text that is no name, by its digest
//! ```

use super::policy::Policy;
use super::run::Failure;
use crate::api::client::{Client, ClientError};
use crate::api::types::{Isolation, RefusalKind, SandboxState};
use firn_protocol::MAX_SESSION_NAME;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// Whom sandboxes belong to that were made for clients.
const OWNER: &str = "mcp";

/// How much of the digest of a name is used that no session can have, in bytes.
const DIGEST: usize = 16;

/// How many sessions are remembered.
const MOST_REMEMBERED: usize = 4096;

/// A client, as far as it is told apart from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Principal(Option<String>);

impl Principal {
    /// The client called `name`: letters, digits and `-`.
    pub(crate) fn named(name: &str) -> Principal {
        Principal(Some(name.to_owned()))
    }

    /// Whom its sandboxes belong to.
    pub(super) fn owner(&self) -> String {
        match &self.0 {
            Some(name) => format!("{OWNER}-{name}"),
            None => OWNER.to_owned(),
        }
    }

    /// What the daemon calls the session that this client calls `session`, which can be any text. No two have
    /// the same, and no other client has any of them: what is before the first `.` is its own.
    pub(super) fn session(&self, session: &str) -> String {
        let mut name = self.owner();
        name.push('.');
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        // What begins so is a digest.
        let plain = !session.starts_with('.') && session.bytes().all(named);
        if plain && name.len() + session.len() <= MAX_SESSION_NAME {
            return name + session;
        }
        name.push('.');
        for byte in &Sha256::digest(session.as_bytes())[..DIGEST] {
            // Writing into a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// What is known of the sessions that calls have named.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    isolation: Mutex<HashMap<String, Isolation>>,
    making: Arc<tokio::sync::Mutex<()>>,
}

/// The right to make one session more. Held until it is made.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Sessions {
    /// How the session that the daemon calls `name` is isolated, or will be: as `otherwise`.
    pub(super) async fn isolation(
        &self,
        name: &str,
        client: &Client,
        otherwise: Isolation,
    ) -> Result<Isolation, Failure> {
        if let Some(isolation) = self.remembered().get(name) {
            return Ok(*isolation);
        }
        match find(name, client).await? {
            Some(isolation) => Ok(isolation),
            None => Ok(otherwise),
        }
    }

    /// That of a session in which code was run.
    pub(super) fn remember(&self, name: &str, isolation: Isolation) {
        let mut remembered = self.remembered();
        if remembered.len() >= MOST_REMEMBERED {
            // They are found again.
            remembered.clear();
        }
        remembered.insert(name.to_owned(), isolation);
    }

    /// Has the session of this name be one of those that `owner` may have. None: it is there already, or there
    /// may be any number.
    pub(super) async fn admit(
        &self,
        name: &str,
        owner: &str,
        client: &Client,
        policy: &Policy,
    ) -> Result<Option<Turn>, Failure> {
        let Some(most) = policy.most_sessions else { return Ok(None) };
        let turn = Arc::clone(&self.making).lock_owned().await;
        if find(name, client).await?.is_some() {
            return Ok(None);
        }
        let lives = |state| !matches!(state, SandboxState::Stopped | SandboxState::Failed);
        let sandboxes = client.list(Some(owner)).await?;
        let sessions = sandboxes.iter().filter(|sandbox| !sandbox.ephemeral && lives(sandbox.state)).count();
        if sessions >= most {
            return Err(Failure::of_caller(format!(
                "there are {sessions} sessions already, as many as there may be: use one of them, or none"
            )));
        }
        Ok(Some(turn))
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<String, Isolation>> {
        self.isolation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn find(name: &str, client: &Client) -> Result<Option<Isolation>, Failure> {
    match client.session(name).await {
        Ok(session) => Ok(Some(session.isolation)),
        Err(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_fits_is_kept() {
        assert_eq!(Principal::default().session("my.work-1"), "mcp.my.work-1");
        assert_eq!(Principal::named("alice").session("work"), "mcp-alice.work");
        assert!(Principal::default().session(".work").starts_with("mcp.."));
        assert_eq!(Principal::named("alice").owner(), "mcp-alice");
    }

    proptest! {
        #[test]
        fn any_text_has_a_name_of_its_own(one: String, other: String, client in "[a-z0-9-]{1,16}") {
            for principal in [Principal::default(), Principal::named(&client)] {
                let name = principal.session(&one);
                prop_assert!(name.len() <= MAX_SESSION_NAME);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
                prop_assert_eq!(name == principal.session(&other), one == other);
            }
        }

        #[test]
        fn no_client_can_name_the_session_of_another(session: String, other: String) {
            let (alice, other_alice) = (Principal::named("alice"), Principal::named("alice-b"));
            prop_assert_ne!(alice.session(&session), other_alice.session(&other));
            prop_assert_ne!(Principal::default().session(&session), alice.session(&other));
        }
    }
}
