//! The tokens by which clients over HTTP are let in and told apart.

use super::session::Principal;
use sha2::{Digest as _, Sha256};
use std::hint::black_box;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The shortest token, in bytes. What is shorter could be guessed.
const SHORTEST: usize = 16;

/// The longest name of a client, so that sessions have names besides.
const LONGEST_NAME: usize = 16;

/// The largest file of tokens that is read, in bytes.
const MOST: u64 = 1 << 20;

type Fingerprint = [u8; 32];

/// Who is let in.
#[derive(Clone)]
pub(crate) enum Keys {
    /// Whoever can connect.
    Anyone,
    /// Who has a token: its digest, and who that is.
    Holders(Vec<(Fingerprint, Principal)>),
}

/// Tokens that are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The file cannot be read.
    #[error("cannot read the tokens in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others can read it.
    #[error("{} can be read by others: chmod 600 it, and make new tokens", .0.display())]
    Open(PathBuf),
    /// A line is something else.
    #[error(
        "line {line} of the tokens is not NAME TOKEN; a name has 1 to {LONGEST_NAME} letters, digits and '-'"
    )]
    Line {
        /// Which, from 1.
        line: usize,
    },
    /// It could be guessed.
    #[error("a token is shorter than {SHORTEST} characters: `openssl rand -hex 32` makes one")]
    Short,
    /// Two clients could not be told apart.
    #[error("two clients have the same name or the same token")]
    Twice,
    /// There is none.
    #[error("there is no token")]
    None,
}

/// Nothing of tokens is shown.
impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Keys::Anyone => formatter.write_str("Anyone"),
            Keys::Holders(holders) => write!(formatter, "Holders({})", holders.len()),
        }
    }
}

fn fingerprint(token: &str) -> Result<Fingerprint, KeysError> {
    match token.len() >= SHORTEST {
        true => Ok(Sha256::digest(token.as_bytes()).into()),
        false => Err(KeysError::Short),
    }
}

impl Keys {
    /// One token, whose holders are not told apart.
    pub(crate) fn one(token: &str) -> Result<Keys, KeysError> {
        Ok(Keys::Holders(vec![(fingerprint(token)?, Principal::default())]))
    }

    /// Those in a file that nobody else can read: a name and a token a line.
    pub(crate) fn read(path: &Path) -> Result<Keys, KeysError> {
        let failed = |source| KeysError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(KeysError::Open(path.to_owned()));
        }
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text).map_err(failed)?;
        Keys::parse(&text)
    }

    fn parse(text: &str) -> Result<Keys, KeysError> {
        let mut holders: Vec<(Fingerprint, Principal)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            let words: Vec<&str> = line.split_whitespace().collect();
            let (name, token) = match words.as_slice() {
                [name, token] if name.len() <= LONGEST_NAME && name.bytes().all(named) => (*name, *token),
                _ => return Err(KeysError::Line { line: index + 1 }),
            };
            let (fingerprint, principal) = (fingerprint(token)?, Principal::named(name));
            if holders.iter().any(|(other, whose)| *other == fingerprint || *whose == principal) {
                return Err(KeysError::Twice);
            }
            holders.push((fingerprint, principal));
        }
        if holders.is_empty() { Err(KeysError::None) } else { Ok(Keys::Holders(holders)) }
    }

    /// Those who can be told apart, in an order that stays.
    pub(super) fn principals(&self) -> Vec<Principal> {
        match self {
            Keys::Anyone => vec![Principal::default()],
            Keys::Holders(holders) => holders.iter().map(|(_, principal)| principal.clone()).collect(),
        }
    }

    /// Which of them this `Authorization` header (RFC 6750, section 2.1) is, if any. How long that takes says
    /// nothing of any token.
    pub(super) fn holder(&self, authorization: Option<&[u8]>) -> Option<usize> {
        let holders = match self {
            Keys::Anyone => return Some(0),
            Keys::Holders(holders) => holders,
        };
        let (scheme, token) = authorization?.split_at_checked(b"Bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return None;
        }
        // Digests are compared, so that what is learned of the time is of no use to make a token from.
        let asked: Fingerprint = Sha256::digest(token.trim_ascii()).into();
        let mut found = None;
        for (index, (held, _)) in holders.iter().enumerate() {
            let differences = held.iter().zip(&asked).fold(0, |all, (held, asked)| all | (held ^ asked));
            if black_box(differences) == 0 {
                found = Some(index);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const ALICE: &str = "0123456789abcdef-alice";
    const BOB: &str = "0123456789abcdef-bob";

    #[test]
    fn holders_of_tokens_are_told_apart() {
        let keys = Keys::parse(&format!("# mine\n\nalice {ALICE}\n bob\t{BOB} \n")).unwrap();
        let holder = |text: &str| keys.holder(Some(text.as_bytes()));
        assert_eq!(holder(&format!("Bearer {ALICE}")), Some(0));
        assert_eq!(holder(&format!("bearer {BOB}")), Some(1));
        assert_eq!(keys.principals(), [Principal::named("alice"), Principal::named("bob")]);
        for wrong in
            [ALICE, "", "Bearer", "Bearer ", "Basic 0123456789abcdef-alice", "Bearer 0123456789abcdef"]
        {
            assert_eq!(holder(wrong), None, "{wrong}");
        }
        assert_eq!(keys.holder(None), None);
        assert_eq!(Keys::Anyone.holder(None), Some(0));
        assert_eq!(Keys::one(ALICE).unwrap().holder(Some(format!("Bearer {ALICE}").as_bytes())), Some(0));
        assert!(!format!("{keys:?}").contains("abcdef"));
    }

    #[test]
    fn what_is_no_list_of_tokens_is_refused() {
        let refused = |text: &str| Keys::parse(text).unwrap_err();
        assert!(matches!(refused(""), KeysError::None));
        assert!(matches!(refused("alice short"), KeysError::Short));
        assert!(matches!(refused(ALICE), KeysError::Line { line: 1 }));
        assert!(matches!(refused(&format!("\na.b {ALICE}")), KeysError::Line { line: 2 }));
        assert!(matches!(refused(&format!("a {ALICE}\nb {ALICE}")), KeysError::Twice));
        assert!(matches!(refused(&format!("a {ALICE}\na {BOB}")), KeysError::Twice));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, format!("a {ALICE}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Keys::read(&path), Err(KeysError::Open(_))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Keys::read(&path).is_ok());
    }
}
