//! Times as people write and read them.

use std::time::Duration;

/// `30s`, `1h30m`, or a number of seconds.
pub(super) fn parse(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(u64::from(seconds))),
        Err(_not_a_number) => humantime::parse_duration(text),
    }
}

/// The same, but not nothing: where that could only be a mistake.
pub(super) fn parse_some(text: &str) -> Result<Duration, humantime::DurationError> {
    parse(text).and_then(|time| if time.is_zero() { Err(humantime::DurationError::Empty) } else { Ok(time) })
}

/// Processor time, as `ps`(1) has it.
pub(super) fn clock(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        assert_eq!(parse_some("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_some("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_some("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse("0").unwrap(), Duration::ZERO);
        for wrong in ["", "0", "0s", "-1", "soon"] {
            assert!(parse_some(wrong).is_err(), "{wrong}");
        }
        assert_eq!(clock(3_723_999), "01:02:03");
    }
}
