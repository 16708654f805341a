//! The parts that a jail comes up from.

use super::sight::Sight;
use super::{Ended, Facts, LaunchError};
use crate::config::{Config, Program};
use crate::env::{Environment, Wrapper};
use crate::jail::{self, Jail};
use crate::sandbox::place::{Helpers, Place, Site};
use crate::sandbox::{session, spare};
use crate::spec::protection::{Isolation, Maker};
use crate::spec::{Degraded, Purpose, Spec};
use crate::sys::limits::Limits;
use crate::sys::process::Station;
use firn_protocol::NotStarted;

/// Processes of a jail that are not the command's: bubblewrap outside, the agent, and the supervisor
/// of the command.
const JAIL_PROCESSES: u64 = 3;

/// How many processes a jail's control group is held to, when its commands may have so many.
pub(crate) fn with_ours(processes: u64) -> u64 {
    processes.saturating_add(JAIL_PROCESSES)
}

/// A jail, for whoever will ask for one like `spec`: with an interpreter, if that is for code.
pub(in crate::sandbox) async fn spare_jail(
    config: &Config,
    spec: &Spec,
    site: Site,
) -> Result<(spare::Kind, Place), LaunchError> {
    let (jail, place, ..) = start(config, spec, site)?;
    let waiting = match spec.environment {
        Environment::Code(interpreter) if spec.purpose == Purpose::Sessions => Some(interpreter),
        _ => None,
    };
    let dialer = jail.dialer();
    let made = async {
        let mut connection = dialer.dial().await?;
        let Some(interpreter) = waiting else { return connection.ping().await.map(Ok) };
        let isolation = Isolation::Jail { maker: Maker::Firn, instead_of_vm: None };
        let facts = Facts::new(spec, &isolation, place.mechanisms(), limits(spec), None);
        let first = session::first(interpreter, facts.user, facts.resource_limits);
        Ok(connection.create_session(first).await?.map(drop))
    };
    let made = tokio::select! {
        made = made => made.map_err(Ended::from)?,
        ended = jail.ended() => return Err(Ended::from(ended).into()),
    };
    made.map_err(|NotStarted { message, .. }| LaunchError::NotInterpreted(message))?;
    Ok((spare::Kind::Jail(Box::new(jail), waiting), place))
}

pub(super) fn limits(spec: &Spec) -> Limits {
    Limits { memory: Some(spec.memory.0), processes: Some(with_ours(spec.processes)), cpus: spec.cpus }
}

/// Starts one at a place of its own.
pub(super) fn start(
    config: &Config,
    spec: &Spec,
    site: Site,
) -> Result<(Jail, Place, Maker, Option<Wrapper>), LaunchError> {
    let bwrap = config.program(Program::Bwrap)?;
    let agent = config.program(Program::Agent)?;
    let limits = limits(spec);
    let id = site.id;
    let hostname = format!("firn-{id}");
    let place = site.claim(None, &limits, Helpers::One)?;
    if place.mechanisms().cannot_limit_cpus(&limits) && spec.degraded == Degraded::Refused {
        return Err(LaunchError::Unenforceable);
    }
    let record = |role: &'static str, id| place.record(role, id);
    let bringup = jail::Bringup {
        bwrap: &bwrap,
        agent: &agent,
        spec,
        hostname: &hostname,
        identity: place.identity(),
        station: Station { cgroup: place.cgroup(), folder: place.folder(), record: &record },
    };
    let (jail, maker, wrapper) = match &spec.environment {
        Environment::Host | Environment::Code(_) | Environment::Closure(_) => {
            let Sight { view, wrapper, .. } = Sight::of(spec, id);
            (bringup.run(&view).map_err(Ended::from)?, Maker::Firn, wrapper)
        }
        Environment::Artifact(artifact) if spec.purpose == Purpose::Sessions => {
            let jail = bringup.serving(artifact).map_err(Ended::from)?;
            (jail, Maker::Environment, None)
        }
        Environment::Guest(guest) => return Err(LaunchError::NoJail(guest.name().to_owned())),
        Environment::Artifact(artifact) => {
            let (jail, wrapper) = bringup.wrapped(artifact).map_err(Ended::from)?;
            (jail, Maker::Environment, Some(wrapper))
        }
    };
    Ok((jail, place, maker, wrapper))
}
