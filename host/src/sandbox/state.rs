//! What a sandbox does, and what may be asked of it then. Pure: nothing here waits or looks at the host.
//!
//! ```text
//!              ┌───────────────────────────────┐
//!   Starting ──┼──▶ Running ◀──▶ Paused        │ it ends by itself, or cannot come up
//!              │       │           │           ▼
//!              └───────┴─▶ Stopping ──────▶ Stopped, Failed ──▶ (destroyed)
//! ```
//!
//! To be destroyed is possible in every state and is no state of its own: what is destroyed is gone.

use crate::api::types::SandboxState as State;

/// What can be asked of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Run a command, move files, look at processes.
    Use,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// End, and be remembered.
    Stop,
    /// Have other limits.
    Limit,
}

/// What happens to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occurrence {
    /// It takes commands.
    Up,
    /// It stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// Somebody, or its age, wants its end.
    Stopping,
    /// It has ended as it was wanted.
    Stopped,
    /// It has ended, or never came up.
    Failed,
}

/// Why an operation is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    /// What the sandbox does.
    pub(crate) state: State,
    /// What was asked.
    pub(crate) operation: Operation,
}

impl Operation {
    /// Its name, as in "it cannot …".
    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Use => "take commands",
            Operation::Pause => "be paused",
            Operation::Resume => "be resumed",
            Operation::Stop => "be stopped",
            Operation::Limit => "be limited",
        }
    }
}

impl State {
    /// Its name, as in "it is …".
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, State::Stopped | State::Failed)
    }

    /// Whether `operation` may be done now.
    pub(crate) fn admit(self, operation: Operation) -> Result<(), Denied> {
        let admitted = match operation {
            Operation::Use => self == State::Running,
            Operation::Pause => self == State::Running,
            Operation::Resume => self == State::Paused,
            Operation::Stop | Operation::Limit => matches!(self, State::Running | State::Paused),
        };
        if admitted { Ok(()) } else { Err(Denied { state: self, operation }) }
    }

    /// What it does after `occurrence`. What cannot happen in a state changes nothing: two things may
    /// have been on their way at once.
    pub(crate) fn after(self, occurrence: Occurrence) -> State {
        match (self, occurrence) {
            (State::Stopped | State::Failed, _) => self,
            (_, Occurrence::Failed) => State::Failed,
            (_, Occurrence::Stopped) => State::Stopped,
            (_, Occurrence::Stopping) => State::Stopping,
            (State::Starting, Occurrence::Up) => State::Running,
            (State::Running, Occurrence::Paused) => State::Paused,
            (State::Paused, Occurrence::Resumed) => State::Running,
            (_, Occurrence::Up | Occurrence::Paused | Occurrence::Resumed) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    const STATES: [State; 6] =
        [State::Starting, State::Running, State::Paused, State::Stopping, State::Stopped, State::Failed];
    const OCCURRENCES: [Occurrence; 6] = [
        Occurrence::Up,
        Occurrence::Paused,
        Occurrence::Resumed,
        Occurrence::Stopping,
        Occurrence::Stopped,
        Occurrence::Failed,
    ];

    proptest! {
        #[test]
        fn whatever_happens_an_end_is_an_end(happened in proptest::collection::vec(select(&OCCURRENCES[..]), 0..20)) {
            let mut state = State::Starting;
            let mut over = false;
            for occurrence in happened {
                state = state.after(occurrence);
                prop_assert!(!over || state.is_over());
                over = state.is_over();
                if over {
                    prop_assert!(state.admit(Operation::Use).is_err());
                }
            }
        }

        #[test]
        fn what_is_being_stopped_takes_no_more_commands(
            before in select(&STATES[..]),
            after in proptest::collection::vec(select(&OCCURRENCES[..3]), 0..5),
        ) {
            let state = after.into_iter().fold(before.after(Occurrence::Stopping), State::after);
            prop_assert!(state.admit(Operation::Use).is_err());
            prop_assert!(state.admit(Operation::Resume).is_err());
        }
    }

    #[test]
    fn a_paused_one_is_resumed_before_it_is_used() {
        let paused = State::Starting.after(Occurrence::Up).after(Occurrence::Paused);
        let denied = paused.admit(Operation::Use).unwrap_err();
        assert_eq!((denied.state.name(), denied.operation.name()), ("paused", "take commands"));
        assert_eq!(paused.admit(Operation::Pause).unwrap_err().state, State::Paused);
        assert_eq!(paused.after(Occurrence::Resumed).admit(Operation::Use), Ok(()));
    }
}
