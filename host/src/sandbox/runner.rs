//! One task for each sandbox, which alone brings it up, changes it and ends it.
//!
//! ```text
//!   launch ──▶ live ──┬── it ended by itself ──────────────▶ what is left is removed
//!     │               ├── termination (overtakes orders) ──▶ stop | finish | destroy
//!     │               ├── its lease, lifetime or idle timeout is up
//!     │               └── orders: pause, resume, limit
//!     └── termination: what was made so far is undone by dropping it
//! ```

use super::audit::Details;
use super::entry::{Due, Entry, Order, Termination, Work};
use super::launch::{Ended, LaunchError, Progress, Remains, Sandbox};
use super::manager::{Life, OperationError};
use super::spare::Spare;
use super::state::Occurrence;
use super::{command, failpoint};
use crate::api::types::SandboxState;
use crate::causes::in_full;
use crate::spec::Spec;
use crate::sys::clock::boot_ms;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The longest that is slept at once. A timer of this process does not go on while the host sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Why a sandbox ends.
enum End {
    Asked(Termination),
    Itself(Ended),
}

/// Brings a sandbox up, tells whether that worked, and stays with it until its end.
pub(super) async fn run(
    entry: Arc<Entry>,
    spec: Spec,
    spare: Option<Spare>,
    orders: mpsc::Receiver<Order>,
    progress: mpsc::Sender<Progress>,
    answer: oneshot::Sender<Result<(), LaunchError>>,
) {
    let mut terminations = entry.terminations();
    let launched = tokio::select! {
        biased;
        _ = asked(&mut terminations) => Err(LaunchError::Abandoned),
        launched = bring_up(&entry, &spec, spare, progress) => launched,
    };
    match launched {
        Ok(sandbox) => {
            // Nobody waits for it any more: whoever did has asked for its end as well.
            let _ = answer.send(Ok(()));
            live(&entry, sandbox, orders).await;
        }
        Err(error) => {
            entry.note("failed", None, Details::default().with("reason", in_full(&error)));
            entry.is_gone(None);
            let _ = answer.send(Err(error));
        }
    }
}

async fn bring_up(
    entry: &Arc<Entry>,
    spec: &Spec,
    spare: Option<Spare>,
    progress: mpsc::Sender<Progress>,
) -> Result<Sandbox, LaunchError> {
    let mut tell = |phase| {
        // Who does not listen has enough.
        let _ = progress.try_send(phase);
    };
    let mut sandbox = Sandbox::launch(&entry.shared.config, spec, spare, entry.site(), &mut tell).await?;
    failpoint::reached("launched");
    // An ephemeral one finds out with its first command, which need not wait for this.
    if entry.life != Life::Ephemeral {
        confirm(&mut sandbox).await?;
    }
    let remains = serde_json::to_string(&sandbox.remains()).map_err(LaunchError::Remains)?;
    entry.shared.records.up(entry.id, &remains).map_err(super::place::PlaceError::from)?;
    failpoint::reached("recorded-up");
    entry.is_up(sandbox.up());
    entry.note("running", None, Details::default());
    Ok(sandbox)
}

/// Waits until its agent answers.
async fn confirm(sandbox: &mut Sandbox) -> Result<(), LaunchError> {
    let up = sandbox.up();
    let answered = async { up.dialer.dial().await?.ping().await };
    let answered = tokio::select! {
        biased;
        answered = answered => answered,
        ended = sandbox.ended() => return Err(sandbox.why(ended).into()),
    };
    match answered {
        Ok(()) => Ok(()),
        Err(error) => {
            let ended = error.or_end(sandbox.ended()).await;
            Err(sandbox.why(ended).into())
        }
    }
}

/// Takes over a sandbox that another daemon brought up, and stays with it.
pub(super) async fn adopt(
    entry: Arc<Entry>,
    remains: Remains,
    state: SandboxState,
    orders: mpsc::Receiver<Order>,
    answer: oneshot::Sender<()>,
) {
    match Sandbox::adopt(entry.site(), remains).await {
        Ok(sandbox) => {
            entry.is_up(sandbox.up());
            entry.note("adopted", None, Details::default());
            if state == SandboxState::Running {
                command::follow_all(&entry).await;
            }
            let _ = answer.send(());
            live(&entry, sandbox, orders).await;
        }
        Err(ended) => {
            if let Err(error) = entry.site().unwind() {
                tracing::error!(sandbox = %entry.id, error = in_full(&error), "cannot remove what is left");
            }
            over(&entry, ended).await;
            let _ = answer.send(());
        }
    }
}

/// Somebody wants its end.
async fn asked(terminations: &mut watch::Receiver<Option<Termination>>) -> Termination {
    let asked = terminations.wait_for(Option::is_some).await.ok().and_then(|asked| asked.clone());
    match asked {
        Some(asked) => asked,
        // The entry holds the sender, and we hold the entry.
        None => std::future::pending().await,
    }
}

/// Its time is up.
async fn due(entry: &Entry) -> Due {
    loop {
        let sleep = match entry.due() {
            Some((at, due)) => {
                let left = at.saturating_sub(boot_ms());
                if left == 0 {
                    return due;
                }
                Duration::from_millis(left).min(LONGEST_SLEEP)
            }
            None => LONGEST_SLEEP,
        };
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = entry.activities.changed() => {}
        }
    }
}

impl Due {
    fn termination(self, entry: &Entry) -> Termination {
        let (reason, forgotten) = match self {
            Due::Lease => ("its lease ran out", true),
            Due::Lifetime => ("its lifetime is over", entry.life == Life::Session),
            Due::Idle => ("nothing was asked of it for its idle timeout", entry.life == Life::Session),
        };
        entry.note("limit-hit", None, Details::default().with("reason", reason));
        if forgotten {
            Termination::Destroy
        } else {
            Termination::Stop { grace: Duration::from_secs(10), reason: reason.to_owned() }
        }
    }
}

async fn live(entry: &Arc<Entry>, mut sandbox: Sandbox, mut orders: mpsc::Receiver<Order>) {
    let mut terminations = entry.terminations();
    let released = entry.shared.released();
    tokio::pin!(released);
    let end = loop {
        tokio::select! {
            biased;
            termination = asked(&mut terminations) => break End::Asked(termination),
            () = &mut released => {
                sandbox.release();
                return;
            }
            ended = sandbox.ended() => break End::Itself(ended),
            Some(order) = orders.recv() => match order {
                Order::Console(answer) => {
                    let _ = answer.send(sandbox.console());
                }
                Order::Work(work, answer) => {
                    let done = tokio::select! {
                        biased;
                        termination = asked(&mut terminations) => break End::Asked(termination),
                        done = obey(entry, &mut sandbox, work) => done,
                    };
                    let _ = answer.send(done);
                }
            },
            due = due(entry) => break End::Asked(due.termination(entry)),
        }
    };
    orders.close();
    match end {
        End::Itself(ended) => {
            let ended = sandbox.why(ended);
            entry.leave_console(sandbox.console());
            sandbox.destroy().await;
            over(entry, ended).await;
        }
        End::Asked(termination) => terminate(entry, sandbox, termination, &mut terminations).await,
    }
}

/// It has ended by itself, and nothing of it is left.
async fn over(entry: &Entry, ended: Ended) {
    let reason = in_full(&ended);
    entry.note("failed", None, Details::default().with("reason", reason.as_str()));
    let ended = Some(Arc::new(ended));
    if entry.life == Life::Ephemeral {
        entry.is_gone(ended);
    } else {
        entry.is_over(Occurrence::Failed, reason, ended);
    }
}

async fn terminate(
    entry: &Arc<Entry>,
    mut sandbox: Sandbox,
    termination: Termination,
    terminations: &mut watch::Receiver<Option<Termination>>,
) {
    let paused = entry.status().state == SandboxState::Paused;
    entry.occurred(Occurrence::Stopping);
    if termination != Termination::Destroy && paused {
        // What stands still cannot end orderly.
        let _ = sandbox.resume().await;
    }
    let mut forgotten = !matches!(termination, Termination::Stop { .. });
    let orderly = async {
        match &termination {
            Termination::Stop { grace, .. } => {
                command::end_all(entry, &sandbox.up(), *grace).await;
                sandbox.sync().await
            }
            Termination::Finish => sandbox.sync().await,
            Termination::Destroy => Ok(()),
        }
    };
    let synced = tokio::select! {
        biased;
        _ = stronger(terminations, &termination) => {
            forgotten = true;
            Ok(())
        }
        synced = orderly => synced,
    };
    failpoint::reached("ending");
    if forgotten && let Err(error) = entry.shared.records.doom(entry.id) {
        tracing::warn!(sandbox = %entry.id, error = in_full(&error), "cannot write the record");
    }
    failpoint::reached("doomed");
    let unsynced = synced.err().map(|ended| sandbox.why(ended)).map(Arc::new);
    sandbox.destroy().await;
    failpoint::reached("destroyed");
    if forgotten {
        entry.is_gone(unsynced);
        entry.note("destroyed", None, Details::default());
        return;
    }
    let reason = match termination {
        Termination::Stop { reason, .. } => reason,
        Termination::Finish | Termination::Destroy => String::new(),
    };
    entry.note("stopped", None, Details::default().with("reason", reason.as_str()));
    entry.is_over(Occurrence::Stopped, reason, unsynced);
}

/// Somebody wants more than `termination`.
async fn stronger(terminations: &mut watch::Receiver<Option<Termination>>, termination: &Termination) {
    let more = |asked: &Option<Termination>| {
        *asked == Some(Termination::Destroy) && *termination != Termination::Destroy
    };
    let asked = terminations.wait_for(more).await.is_ok();
    if !asked {
        std::future::pending::<()>().await;
    }
}

async fn obey(entry: &Entry, sandbox: &mut Sandbox, work: Work) -> Result<(), OperationError> {
    match work {
        Work::Pause => {
            sandbox.pause().await?;
            entry.occurred(Occurrence::Paused);
        }
        Work::Resume => {
            sandbox.resume().await?;
            entry.occurred(Occurrence::Resumed);
        }
        Work::Limit(limits) => sandbox.limit(&limits)?,
    }
    Ok(())
}
