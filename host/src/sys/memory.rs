//! How much memory this host has to give.

/// How much can be had without swapping, in bytes: `MemAvailable` of `proc_meminfo`(5). None: the kernel does
/// not say.
pub(crate) fn available() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read_in_bytes() {
        assert_eq!(
            parse("MemTotal:       24650128 kB\nMemAvailable:   24093544 kB\n"),
            Some(24_093_544 << 10)
        );
        for unknown in ["", "MemAvailable: many", "MemAvailable: 99999999999999999999 kB", "MemAvailable: 5"]
        {
            assert_eq!(parse(unknown), None, "{unknown}");
        }
        assert!(available().is_none_or(|bytes| bytes > 0));
    }
}
