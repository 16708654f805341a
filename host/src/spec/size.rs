//! Sizes of memory and disks, as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// What was typed is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a size is a number with K, M, G or T (powers of 1024): 512M, 2G")]
pub(crate) struct NotASize;

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Size, NotASize> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| bare.strip_suffix(*unit).map(|digits| (digits, *shift)))
            .unwrap_or((bare, 0));
        let number: u64 = digits.trim().parse().map_err(|_not_a_number| NotASize)?;
        number.checked_mul(1 << shift).map(Size).ok_or(NotASize)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((unit, shift)) => write!(f, "{} {unit}iB", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in
            [("512M", 512 << 20), ("2g", 2 << 30), ("1GiB", 1 << 30), ("64kb", 64 << 10), ("7", 7)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "M", "-1M", "1.5G", "12X", "99999999999T"] {
            assert_eq!(text.parse::<Size>(), Err(NotASize), "{text}");
        }
        assert_eq!(Size(512 << 20).to_string(), "512 MiB");
        assert_eq!(Size(1000).to_string(), "1000 B");
    }
}
