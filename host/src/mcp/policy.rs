//! What the operator lets calls ask for. A pure value: it says yes or why not.

use super::arguments::Arguments;
use super::environments::{Environments, Known};
use crate::api::types::Isolation;
use firn_protocol::Access;
use std::path::PathBuf;
use std::time::Duration;

/// How long code may take when nobody says: nix-sandbox-mcp's.
const USUAL_TIME: Duration = Duration::from_secs(30);

/// The most code that there may be, in bytes. The daemon reads requests of twice that, and in JSON a quote or a
/// line's end takes two.
const MOST_CODE: usize = 2 << 20;

/// The operator's policy.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// The isolation of calls that name none, if the operator says so.
    isolation: Option<Isolation>,
    /// Those that can be named.
    allowed: Vec<Isolation>,
    /// The longest that code may take. None: as long as a call says.
    pub(crate) most_time: Option<Duration>,
    /// Memory of each sandbox, in bytes. None: what its environment says.
    pub(crate) memory: Option<u64>,
    /// How many sessions there may be at once.
    pub(crate) most_sessions: Option<usize>,
    /// A folder that all code sees.
    pub(crate) project: Option<Project>,
    /// Whether less isolation will do where a host has no more.
    pub(crate) allow_degraded: bool,
}

/// A folder of the operator's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Project {
    /// Where it is.
    pub(crate) folder: PathBuf,
    /// Where code sees it.
    pub(crate) target: PathBuf,
    /// Whether it may be written to.
    pub(crate) access: Access,
}

/// A policy that contradicts itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// The default is not allowed.
    #[error("--isolation {} is not among --allow-isolation", .0.name())]
    Default(Isolation),
}

/// What a call may not ask for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// There is no such environment, or none that may be used. nix-sandbox-mcp's words.
    #[error("Unknown environment: '{name}'. Available: {}", quoted(available))]
    Environment {
        /// What was asked for.
        name: String,
        /// What there is.
        available: Vec<String>,
    },
    /// Not this one.
    #[error("isolation may be {} here, not {}", names(allowed), asked.name())]
    Isolation {
        /// What was asked for.
        asked: Isolation,
        /// What can be.
        allowed: Vec<Isolation>,
    },
    /// Not that long.
    #[error("timeout may be {} s at most here", seconds(*.most))]
    Time {
        /// The longest.
        most: Duration,
    },
    /// More than an interpreter is given.
    #[error("{length} bytes of code are more than {MOST_CODE}, the most there may be: share files instead")]
    Code {
        /// How long it is.
        length: usize,
    },
}

/// What was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) environment: Known,
    /// For what is made. None: a session keeps its own.
    pub(super) isolation: Option<Isolation>,
    /// None: as long as it takes.
    pub(super) timeout: Option<Duration>,
}

fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("[{}]", quoted.join(","))
}

fn names(allowed: &[Isolation]) -> String {
    allowed.iter().map(|isolation| isolation.name()).collect::<Vec<_>>().join(" or ")
}

/// A time as results and errors have it.
pub(super) fn seconds(time: Duration) -> String {
    time.as_secs_f64().to_string()
}

impl Policy {
    /// One in which calls may name the isolations `allowed`, all if it is empty.
    pub(crate) fn new(isolation: Option<Isolation>, allowed: Vec<Isolation>) -> Result<Policy, PolicyError> {
        let allowed = if allowed.is_empty() { vec![Isolation::Jail, Isolation::Vm] } else { allowed };
        if let Some(other) = isolation.filter(|isolation| !allowed.contains(isolation)) {
            return Err(PolicyError::Default(other));
        }
        Ok(Policy {
            isolation,
            allowed,
            most_time: None,
            memory: None,
            most_sessions: None,
            project: None,
            allow_degraded: false,
        })
    }

    /// Those that can be named, if there is a choice.
    pub(super) fn choice(&self) -> Option<&[Isolation]> {
        Some(self.allowed.as_slice()).filter(|allowed| allowed.len() > 1)
    }

    /// Whether code may be run so.
    pub(super) fn allows(&self, isolation: Isolation) -> bool {
        self.allowed.contains(&isolation)
    }

    /// The isolation of calls that name none: the operator's, else the environment's, else the lightest.
    pub(super) fn isolation(&self, environment: Option<&Known>) -> Isolation {
        let theirs =
            environment.and_then(|known| known.isolation).filter(|isolation| self.allows(*isolation));
        let lightest = if self.allows(Isolation::Jail) { Isolation::Jail } else { Isolation::Vm };
        self.isolation.or(theirs).unwrap_or(lightest)
    }

    /// What a call is given, or why not.
    pub(super) fn admit(&self, asked: &Arguments, known: &Environments) -> Result<Grant, Denied> {
        let Some(environment) = known.get(&asked.env) else {
            return Err(Denied::Environment { name: asked.env.clone(), available: known.names() });
        };
        if let Some(asked) = asked.isolation.filter(|asked| !self.allowed.contains(asked)) {
            return Err(Denied::Isolation { asked, allowed: self.allowed.clone() });
        }
        if asked.code.len() > MOST_CODE {
            return Err(Denied::Code { length: asked.code.len() });
        }
        let usual = environment.timeout.unwrap_or(USUAL_TIME);
        let timeout = match (asked.timeout(), self.most_time) {
            (Some(asked), Some(most)) if asked > most => return Err(Denied::Time { most }),
            (Some(asked), _) => Some(asked),
            // Nobody waits for it.
            (None, most) if asked.background() => most,
            (None, most) => Some(most.map_or(usual, |most| usual.min(most))),
        };
        // A session has an isolation already, unless this call makes it.
        let isolation = match (&asked.session, asked.isolation) {
            (_, Some(named)) => Some(named),
            (None, None) => Some(self.isolation(Some(&environment))),
            (Some(_), None) => None,
        };
        Ok(Grant { environment, isolation, timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(env: &str) -> Arguments {
        let text = String::new;
        Arguments {
            code: text(),
            env: env.into(),
            session: None,
            isolation: None,
            timeout: None,
            background: None,
        }
    }

    fn policy(allowed: &[Isolation]) -> Policy {
        Policy::new(None, allowed.to_vec()).unwrap()
    }

    #[test]
    fn an_unknown_environment_is_told_in_the_words_of_nix_sandbox_mcp() {
        let known = Environments::of_names(&["b", "a"]);
        let denied = policy(&[]).admit(&asked("X"), &known).unwrap_err();
        assert_eq!(denied.to_string(), r#"Unknown environment: 'X'. Available: ["a","b"]"#);
    }

    #[test]
    fn isolation_is_what_the_operator_allows() {
        let known = Environments::of_names(&["a"]);
        let vm = Arguments { isolation: Some(Isolation::Vm), ..asked("a") };
        assert_eq!(policy(&[]).admit(&vm, &known).unwrap().isolation, Some(Isolation::Vm));
        let denied = policy(&[Isolation::Jail]).admit(&vm, &known).unwrap_err();
        assert_eq!(denied.to_string(), "isolation may be jail here, not vm");
        assert_eq!(
            policy(&[Isolation::Vm]).admit(&asked("a"), &known).unwrap().isolation,
            Some(Isolation::Vm)
        );
        assert!(matches!(
            Policy::new(Some(Isolation::Vm), vec![Isolation::Jail]),
            Err(PolicyError::Default(Isolation::Vm))
        ));
        let session = Arguments { session: Some("s".into()), ..asked("a") };
        assert_eq!(policy(&[]).admit(&session, &known).unwrap().isolation, None);
    }

    #[test]
    fn an_environment_may_say_how_it_is_isolated() {
        let vm = Known { isolation: Some(Isolation::Vm), ..Environments::of_names(&["a"]).get("a").unwrap() };
        assert_eq!(policy(&[]).isolation(Some(&vm)), Isolation::Vm);
        assert_eq!(policy(&[]).isolation(None), Isolation::Jail);
        assert_eq!(policy(&[Isolation::Jail]).isolation(Some(&vm)), Isolation::Jail);
        let named = Policy::new(Some(Isolation::Jail), Vec::new()).unwrap();
        assert_eq!(named.isolation(Some(&vm)), Isolation::Jail);
    }

    #[test]
    fn too_much_code_is_refused() {
        let long = Arguments { code: "x".repeat(MOST_CODE + 1), ..asked("a") };
        let denied = policy(&[]).admit(&long, &Environments::of_names(&["a"])).unwrap_err();
        assert_eq!(denied, Denied::Code { length: MOST_CODE + 1 });
    }

    proptest! {
        #[test]
        fn nothing_takes_longer_than_the_most(
            most in 1_u64..100, asked_for in proptest::option::of(1_u64..200), background: bool,
        ) {
            let policy = Policy { most_time: Some(Duration::from_secs(most)), ..policy(&[]) };
            let timeout = asked_for.map(|seconds| seconds as f64);
            let asked = Arguments { timeout, background: Some(background), ..asked("a") };
            match policy.admit(&asked, &Environments::of_names(&["a"])) {
                Ok(grant) => prop_assert!(grant.timeout.is_some_and(|time| time.as_secs() <= most)),
                Err(denied) => {
                    prop_assert_eq!(denied, Denied::Time { most: Duration::from_secs(most) });
                    prop_assert!(asked_for.is_some_and(|asked_for| asked_for > most));
                }
            }
        }
    }
}
