//! What waits to become a sandbox: a guest that has booted and knows nothing, or a jail that shows no folder
//! of the caller's.
//!
//! A spare has an id, a record and a place like a sandbox, so whatever happens to the daemon nothing of it is
//! left. What has to be fixed before it starts decides which create it fits: the memory, processors and image
//! of a guest; everything but its limits in time for a jail, since nothing can be mounted into one that runs.
//! A jail may have an interpreter in it that has started and has run nobody's code.

use super::SandboxId;
use super::launch::{self, Ended, LaunchError};
use super::place::{Place, Site};
use crate::api::types::CreateRequest;
use crate::config::Config;
use crate::env::{Environment, GuestImage, Interpreter, Store};
use crate::jail::Jail;
use crate::spec::{Degraded, Grade, Purpose, Size, Spec, SpecError};
use crate::sys::limits::Cpus;
use crate::sys::process::Unmounting;
use crate::vm::Guest;
use crate::vm::vmm::Backend;

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Spare {
    // In this order: the place is removed when nothing uses it any more.
    pub(super) kind: Kind,
    pub(super) place: Place,
    spec: Spec,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// A guest, and what runs it.
    Vm(Box<Guest>, Backend),
    /// A jail, and what has started in it to run code, as its agent's first session.
    Jail(Box<Jail>, Option<Interpreter>),
}

/// What of a vm is fixed when it has booted.
fn booted(spec: &Spec) -> (Grade, Option<Cpus>, Size, Option<&GuestImage>) {
    let image = match &spec.environment {
        Environment::Guest(image) => Some(image.as_ref()),
        _ => None,
    };
    (spec.grade, spec.cpus, spec.memory, image)
}

/// What there is in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Jails.
    Jail,
    /// Jails with an interpreter.
    Code(Interpreter),
    /// Guests.
    Vm,
}

impl Sort {
    /// What would serve `spec`, whatever its folders.
    pub(super) fn of(spec: &Spec) -> Sort {
        match (spec.grade, &spec.environment) {
            (Grade::Vm, _) => Sort::Vm,
            (Grade::Jail, Environment::Code(interpreter)) if spec.purpose == Purpose::Sessions => {
                Sort::Code(*interpreter)
            }
            (Grade::Jail, _) => Sort::Jail,
        }
    }

    /// What one is made for: the create that asks for nothing else.
    pub(super) fn request(self) -> CreateRequest {
        let (grade, environment) = match self {
            Sort::Vm => (Grade::Vm, None),
            Sort::Jail => (Grade::Jail, None),
            Sort::Code(interpreter) => (Grade::Jail, Some(interpreter.environment().into())),
        };
        CreateRequest { isolation: Some(grade.into()), environment, ..CreateRequest::default() }
    }

    /// The same, as it is understood.
    pub(super) fn spec(self) -> Result<Spec, SpecError> {
        let purpose = match self {
            Sort::Code(_) => Purpose::Sessions,
            Sort::Jail | Sort::Vm => Purpose::Commands,
        };
        Spec::asked(&self.request())?.for_purpose(purpose)
    }
}

impl Spare {
    /// Brings one up at `site` that fits `spec`.
    pub(super) async fn prepare(config: &Config, spec: Spec, site: Site) -> Result<Spare, LaunchError> {
        let (kind, place) = match spec.grade {
            Grade::Vm => launch::spare_vm(config, &spec, site).await?,
            Grade::Jail => launch::spare_jail(config, &spec, site).await?,
        };
        Ok(Spare { kind, place, spec })
    }

    /// Its id, which will be the sandbox's.
    pub(super) fn id(&self) -> SandboxId {
        self.place.id()
    }

    /// What it is.
    pub(super) fn sort(&self) -> Sort {
        Sort::of(&self.spec)
    }

    /// Whether it can become what is wanted.
    pub(super) fn fits(&self, wanted: &Spec) -> bool {
        match &self.kind {
            Kind::Vm(_, backend) => {
                booted(wanted) == booted(&self.spec) && wanted.vmm.is_none_or(|vmm| vmm == backend.kind())
            }
            Kind::Jail(_, waiting) => {
                let fixed = |spec: &Spec| Spec {
                    environment: Environment::Host,
                    store: Store::Closure,
                    purpose: Purpose::Commands,
                    degraded: Degraded::Refused,
                    timeout: None,
                    output: None,
                    ..spec.clone()
                };
                let of_host = match (&wanted.environment, waiting) {
                    // What has started is not for another language, nor for a command.
                    (Environment::Code(wanted_is), Some(waiting)) => {
                        wanted_is == waiting && wanted.purpose == Purpose::Sessions
                    }
                    (_, Some(_)) => false,
                    // One with an environment sees other files.
                    (environment, None) => matches!(environment, Environment::Host | Environment::Code(_)),
                };
                of_host && fixed(wanted) == fixed(&self.spec)
            }
        }
    }

    /// Returns when it is no more. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Ended {
        match &mut self.kind {
            Kind::Vm(guest, _) => guest.ended().await.into(),
            Kind::Jail(jail, _) => jail.ended().await.into(),
        }
    }

    /// Ends it. Nothing is left when this returns.
    pub(super) async fn destroy(self) {
        let Spare { kind, place, .. } = self;
        match kind {
            Kind::Vm(guest, _) => guest.destroy().await,
            Kind::Jail(jail, _) => drop(jail.destroy(place.cgroup(), Unmounting::First, || {}).await),
        }
        launch::remove(place).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::guest_image;

    #[test]
    fn a_guest_image_is_not_had_from_the_pool() {
        let spare = Sort::Vm.spec().unwrap();
        let with_code = Spec { timeout: Some(std::time::Duration::from_secs(1)), ..spare.clone() };
        assert_eq!(booted(&with_code), booted(&spare));
        let folder = guest_image();
        let environment = Environment::find(folder.path().as_os_str()).unwrap();
        assert_ne!(booted(&Spec { environment, ..spare.clone() }), booted(&spare));
    }
}
