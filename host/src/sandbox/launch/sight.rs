//! What a sandbox is to see of the host.

use crate::env::{Environment, Wrapper};
use crate::sandbox::SandboxId;
use crate::spec::Spec;
use crate::view::{Share, View, closure_tools, host_tools, store_of};

/// See the module.
pub(super) struct Sight {
    pub(super) hostname: String,
    pub(super) view: View,
    pub(super) wrapper: Option<Wrapper>,
}

impl Sight {
    pub(super) fn of(spec: &Spec, id: SandboxId) -> Sight {
        let hostname = format!("firn-{id}");
        let view = |base| View { base, shares: spec.shares.clone() };
        let (view, wrapper) = match &spec.environment {
            Environment::Host | Environment::Code(_) => (view(host_tools(&hostname)), None),
            Environment::Artifact(artifact) => {
                let mut view = view(host_tools(&hostname));
                view.show(&artifact.folder);
                let project = |share: &Share| artifact.project(&share.target, &share.target);
                (view, Some(artifact.wrapper(spec.shares.iter().flat_map(project).collect())))
            }
            Environment::Closure(closure) => {
                (view(closure_tools(closure, spec.store, &hostname)), Some(closure.wrapper()))
            }
            Environment::Guest(guest) => {
                let shown = guest.store.as_ref().map(|share| store_of(&share.paths, spec.store));
                (view(shown.unwrap_or_default()), None)
            }
        };
        Sight { hostname, view, wrapper }
    }
}
