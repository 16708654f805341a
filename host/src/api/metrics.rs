//! What the daemon counts, in Prometheus' text format: `GET /metrics`.

use super::types::{Isolation, RefusalKind, SandboxInfo};
use axum::http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The shortest phase that is told apart, in seconds: a jail's takes about one.
const SHORTEST: f64 = 0.001;

/// All counters. A handle: clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    registry: Registry,
    sandboxes: Family<Kind, Gauge>,
    created: Family<Grade, Counter>,
    refused: Family<Refused, Counter>,
    commands: Counter,
    launch: Family<Phase, Histogram>,
    requests: Family<Request, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    state: &'static str,
    isolation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Grade {
    isolation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: String,
    path: String,
    status: u16,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("firn");
        let sandboxes = Family::<Kind, Gauge>::default();
        registry.register("sandboxes", "Sandboxes that are known", sandboxes.clone());
        let created = Family::<Grade, Counter>::default();
        registry.register("sandboxes_created", "Sandboxes that came up", created.clone());
        let refused = Family::<Refused, Counter>::default();
        registry.register("failures", "Requests and commands that failed or were refused", refused.clone());
        let commands = Counter::default();
        registry.register("commands_started", "Commands that were started", commands.clone());
        let launch = Family::<Phase, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(SHORTEST, 2.0, 16))
        });
        registry.register_with_unit(
            "launch",
            "How long the phases of a launch take",
            Unit::Seconds,
            launch.clone(),
        );
        let requests = Family::<Request, Counter>::default();
        registry.register("requests", "Requests to the API that were answered", requests.clone());
        Metrics(Arc::new(Counters { registry, sandboxes, created, refused, commands, launch, requests }))
    }

    /// A sandbox came up.
    pub(super) fn created(&self, isolation: Isolation) {
        self.0.created.get_or_create(&Grade { isolation: isolation_name(isolation) }).inc();
    }

    /// Something was refused, or failed.
    pub(super) fn refused(&self, kind: RefusalKind) {
        self.0.refused.get_or_create(&Refused { kind: kind_name(kind) }).inc();
    }

    /// A command was started.
    pub(super) fn command(&self) {
        self.0.commands.inc();
    }

    /// A phase of a launch is over.
    pub(super) fn launched(&self, phase: &'static str, took: Duration) {
        self.0.launch.get_or_create(&Phase { phase }).observe(took.as_secs_f64());
    }

    /// A request was answered. `path` is that of the operation, not the client's: those are endless.
    pub(super) fn answered(&self, method: &Method, path: &str, status: StatusCode) {
        let request = Request { method: method.to_string(), path: path.to_owned(), status: status.as_u16() };
        self.0.requests.get_or_create(&request).inc();
    }

    /// All of it, with the sandboxes as they are now.
    pub(super) fn render(&self, sandboxes: &[SandboxInfo]) -> String {
        let mut counted: HashMap<Kind, i64> = HashMap::new();
        for sandbox in sandboxes {
            let kind = Kind { state: sandbox.state.name(), isolation: isolation_name(sandbox.isolation) };
            *counted.entry(kind).or_default() += 1;
        }
        self.0.sandboxes.clear();
        for (kind, count) in counted {
            self.0.sandboxes.get_or_create(&kind).set(count);
        }
        let mut rendered = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut rendered, &self.0.registry);
        rendered
    }
}

fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Jail => "jail",
        Isolation::Vm => "vm",
    }
}

fn kind_name(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::Invalid => "invalid",
        RefusalKind::NotFound => "not-found",
        RefusalKind::Ambiguous => "ambiguous",
        RefusalKind::Conflict => "conflict",
        RefusalKind::TooMany => "too-many",
        RefusalKind::Launch => "launch",
        RefusalKind::Sandbox => "sandbox",
        RefusalKind::Unsupported => "unsupported",
        RefusalKind::Stopping => "stopping",
        RefusalKind::Internal => "internal",
    }
}
