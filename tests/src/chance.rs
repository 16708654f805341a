//! Chance that can be had again: what it decides follows from a number, which is said.

use crate::host::setting;
use std::time::{Duration, SystemTime};

/// See the module.
#[derive(Debug)]
pub struct Chance(u64);

impl Default for Chance {
    fn default() -> Chance {
        Chance::new()
    }
}

impl Chance {
    /// From the time, or from the number in `FIRN_TEST_SEED`. It is written to stderr, which is shown when the
    /// test fails.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "it is the test that says it")]
    pub fn new() -> Chance {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let named = setting("FIRN_TEST_SEED");
        let seed =
            named.map_or(now, |seed| seed.to_str().unwrap().parse().expect("FIRN_TEST_SEED is a number"));
        eprintln!("FIRN_TEST_SEED={seed}");
        // Nothing comes of nothing.
        Chance(seed.max(1))
    }

    /// xorshift64 (Marsaglia 2003).
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A time below `end`, to the microsecond.
    pub fn time(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(end.as_micros()).unwrap()))
    }

    /// Whether what happens in one of so many cases happens.
    pub fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }

    /// One of them, if there is any.
    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(choices.len()).unwrap();
        (count > 0).then(|| &choices[usize::try_from(self.below(count)).unwrap()])
    }
}
