//! Percent-encoding (RFC 3986, section 2.1): any bytes in a part of an address.

use std::fmt::Write as _;

/// Appends `bytes`, with all encoded that is not plain in every part of an address (section 2.3).
pub(crate) fn encode(bytes: &[u8], into: &mut String) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            into.push(char::from(*byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

/// The bytes that `text` stands for. None: what follows a `%` is no number.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            other => other,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut text = String::new();
            encode(&bytes, &mut text);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"%-._~".contains(&byte)));
            prop_assert_eq!(decode(&text), Some(bytes));
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert_eq!(decode("/a%2fb%2Fc+d"), Some(b"/a/b/c+d".to_vec()));
        for text in ["%", "%4", "%4g", "%+4", "% 4", "%ä"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
