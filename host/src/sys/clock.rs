//! Clocks: one for people, and one that nobody sets.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Milliseconds since 1970: for people.
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the host booted, sleep included (`CLOCK_BOOTTIME`, `clock_gettime`(2)): for what is
/// waited for. It goes on over the end of a process, and no set clock moves it.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A number of [`unix_ms`] as RFC 3339 has it.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    // A year that the format cannot write is a clock that was never set.
    const LAST: u64 = 253_402_300_799_000;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Which boot of the host this is (`random`(4)).
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_whatever_the_clock_says() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.000Z");
        assert!(boot_ms() > 0);
        assert!(!boot_id().is_empty());
    }
}
