//! How fast the processor's time stamp counter ticks.
//!
//! An emulated guest is told, because it cannot find out: it would measure against interrupts that
//! come late on a busy host, and hang.
#![allow(unsafe_code, reason = "rdtsc has no safe interface")]

use nix::time::{ClockId, clock_gettime};
use std::io;
use std::time::Duration;

/// Why the time stamp counter's rate is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TscError {
    /// The system's clock could not be read.
    #[error("cannot read the raw monotonic clock")]
    Clock(#[source] io::Error),
    /// Two measurements differ, or are not a rate any processor has.
    #[error("the time stamp counter does not tick evenly ({first_khz} and {second_khz} kHz)")]
    Uneven {
        /// The best measurement, in kHz.
        first_khz: u64,
        /// The next best, in kHz.
        second_khz: u64,
    },
}

/// Rates that a processor may have, in kHz.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=10_000_000;

/// How often to measure before the counter is taken for uneven.
const MEASUREMENTS: usize = 20;

/// The counter and the clock, read together.
struct Tick {
    tsc: u64,
    ns: u64,
    /// How far apart the two readings may be.
    slack_ns: u64,
}

fn raw_ns() -> Result<u64, TscError> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).map_err(|errno| TscError::Clock(errno.into()))?;
    Ok(u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

/// The tightest of a few readings: whoever is interrupted in between reads the two far apart.
fn tick() -> Result<Tick, TscError> {
    let mut best: Option<Tick> = None;
    for _ in 0..8 {
        let before = raw_ns()?;
        // SAFETY: every x86-64 processor has the instruction, and Linux lets user space use it unless
        // the process asked otherwise (PR_SET_TSC), which we do not.
        let tsc = unsafe { core::arch::x86_64::_rdtsc() };
        let after = raw_ns()?;
        let slack_ns = after - before;
        if best.as_ref().is_none_or(|best| slack_ns < best.slack_ns) {
            best = Some(Tick { tsc, ns: before + slack_ns / 2, slack_ns });
        }
    }
    best.ok_or(TscError::Uneven { first_khz: 0, second_khz: 0 })
}

/// Measures how many times the time stamp counter ticks in a millisecond: over 20 ms on an idle
/// host, longer on one that interrupts every measurement.
pub(crate) fn measure_tsc_khz() -> Result<u32, TscError> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut begin = tick()?;
    loop {
        std::thread::sleep(Duration::from_millis(10));
        let end = tick()?;
        let (ticks, ns) = (end.tsc.saturating_sub(begin.tsc), (end.ns - begin.ns).max(1));
        let khz = u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(ns)).unwrap_or(u64::MAX);
        found.push((begin.slack_ns + end.slack_ns, khz));
        found.sort_unstable();
        begin = end;
        if let [(_, first), (_, second), ..] = found[..] {
            let rate = plausible(first, second);
            if rate.is_ok() || found.len() >= MEASUREMENTS {
                return rate;
            }
        }
    }
}

/// `first`, if `second` agrees to 0.1 %. The kernel itself accepts 1 % from its quick calibration.
fn plausible(first_khz: u64, second_khz: u64) -> Result<u32, TscError> {
    let uneven = || TscError::Uneven { first_khz, second_khz };
    if !PLAUSIBLE_KHZ.contains(&first_khz) || first_khz.abs_diff(second_khz) > first_khz / 1000 {
        return Err(uneven());
    }
    u32::try_from(first_khz).ok().ok_or_else(uneven)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_rate_is_measured_the_same_twice() {
        let (first, second) = (measure_tsc_khz().unwrap(), measure_tsc_khz().unwrap());
        assert!(first.abs_diff(second) <= first / 500, "{first} and {second}");
    }

    #[test]
    fn rates_that_differ_or_that_no_processor_has_are_refused() {
        assert_eq!(plausible(2_000_000, 2_001_999).unwrap(), 2_000_000);
        for (first, second) in [(2_000_000, 2_002_001), (99_999, 99_999), (10_000_001, 10_000_001), (0, 0)] {
            assert!(plausible(first, second).is_err(), "{first} {second}");
        }
    }
}
