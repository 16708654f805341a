//! The phases of a launch: in words for people, and how long each takes for who measures.

use super::metrics::Metrics;
use crate::sandbox::launch::Progress;
use crate::vm::Phase;
use crate::vm::image::Step;
use std::time::Instant;

/// One line about a phase, for people.
pub(super) fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Image => "finding the guest image".to_owned(),
        Progress::Building(step) => describe_step(step),
        Progress::Vm(Phase::Starting) => "starting the microVM".to_owned(),
        Progress::Vm(Phase::Booting) => "booting".to_owned(),
        Progress::Vm(Phase::Attaching | Phase::Configuring) => "mounting".to_owned(),
        Progress::Jail => "starting the jail".to_owned(),
    }
}

/// One line about a step of making an image, for people.
pub(crate) fn describe_step(step: &Step) -> String {
    match step {
        Step::Waiting => "waiting for another firn that builds an image".to_owned(),
        Step::Skipped { reason } => format!("not used: {reason}"),
        Step::Downloading { package, version } => format!("downloading {package} {version}"),
        Step::Unpacking { package } => format!("unpacking {package}"),
        Step::Extracting { kernel } => format!("reading the kernel {}", kernel.display()),
        Step::Writing { id } => format!("writing the image {id}"),
    }
}

/// A phase's name among the metrics.
fn name(progress: &Progress) -> &'static str {
    match progress {
        Progress::Image => "image",
        Progress::Building(_) => "build",
        Progress::Vm(Phase::Starting) => "start",
        Progress::Vm(Phase::Booting) => "boot",
        Progress::Vm(Phase::Attaching) => "attach",
        Progress::Vm(Phase::Configuring) => "configure",
        Progress::Jail => "jail",
    }
}

/// Times the phases of a launch. The last one ends when it is dropped.
#[derive(Debug)]
pub(super) struct Stopwatch {
    metrics: Metrics,
    phase: Option<(&'static str, Instant)>,
}

impl Stopwatch {
    pub(super) fn new(metrics: Metrics) -> Stopwatch {
        Stopwatch { metrics, phase: None }
    }

    /// A phase begins, and with that the one before it has ended.
    pub(super) fn begins(&mut self, progress: &Progress) {
        let name = name(progress);
        if self.phase.is_some_and(|(before, _)| before == name) {
            return;
        }
        self.ends();
        self.phase = Some((name, Instant::now()));
    }

    fn ends(&mut self) {
        if let Some((name, since)) = self.phase.take() {
            let took = since.elapsed();
            tracing::debug!(phase = name, ms = took.as_secs_f64() * 1000.0, "phase of the launch");
            self.metrics.launched(name, took);
        }
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.ends();
    }
}
