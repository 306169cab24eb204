//! Who may ask: names and passwords.
//!
//! In: users with bcrypt hashes, and `Authorization` headers. Out: yes or no. A wrong name takes as long as a wrong password,
//! since a hash is computed for it too. A password is checked on a blocking thread, one at a time; who was right before is known
//! again by a keyed digest, so a scrape costs no bcrypt. No password is kept.

use super::web_config::WebConfigError;
use axum::http::HeaderValue;
use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{hmac, rand::SystemRandom};
use std::{
    collections::{BTreeMap, HashSet},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// Highest cost of a hash: 2^16 rounds take seconds.
const COST_MAX: u32 = 15;
/// Cost of the hash that a wrong name is checked against where there is no other.
const COST_DEFAULT: u32 = 10;
/// Digests of right answers that are kept; where there are more, all are forgotten.
const KNOWN_MAX: usize = 128;
/// Bytes that bcrypt looks at; a longer password would be cut short silently.
const PASSWORD_BYTES_MAX: usize = 72;

/// Users, and who was right before.
#[derive(Debug)]
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// What a wrong name is checked against: nobody's hash, of the highest cost that is in use.
    nobody: String,
    key: hmac::Key,
    known: Mutex<HashSet<Vec<u8>>>,
    turns: Semaphore,
}

impl Default for Users {
    fn default() -> Self {
        Self::checked(BTreeMap::new(), COST_DEFAULT)
    }
}

impl Users {
    /// Users by name, each with a bcrypt hash.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, WebConfigError> {
        let mut cost = 0;
        for (user, hash) in &hashes {
            let refused = |problem| WebConfigError::User {
                user: user.clone(),
                problem,
            };
            let parts = bcrypt::HashParts::from_str(hash)
                .map_err(|_| refused("has no bcrypt hash: make one with `htpasswd -nBC 10 \"\"`"))?;
            if parts.get_cost() > COST_MAX {
                return Err(refused("has a hash of a cost above 15, which takes too long"));
            }
            if user.is_empty() || user.contains(':') {
                return Err(refused("is no name: it is empty or has a colon"));
            }
            cost = cost.max(parts.get_cost());
        }
        Ok(Self::checked(hashes, if cost == 0 { COST_DEFAULT } else { cost }))
    }

    fn checked(hashes: BTreeMap<String, String>, cost: u32) -> Self {
        // A digest that no password gives: its salt and bits are all zero.
        let nobody = format!("$2b${cost:02}${}", ".".repeat(53));
        // Random numbers come from the kernel and can't run out once it has booted; a fixed key would only make the digests of
        // this process's memory comparable.
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, b"no random numbers"));
        Self {
            hashes,
            nobody,
            key,
            known: Mutex::default(),
            turns: Semaphore::new(1),
        }
    }

    /// Whether there are none, so that everybody may ask.
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether the header names a user and that user's password.
    pub(super) async fn allows(self: &Arc<Self>, header: Option<&HeaderValue>) -> bool {
        if self.is_empty() {
            return true;
        }
        let Some((user, password)) = header.and_then(credentials) else {
            return false;
        };
        let digest = self.digest(&user, &password);
        if self.known(&digest) {
            return true;
        }
        // Held while the hash is computed: many wrong passwords at once take one processor, not all.
        let Ok(turn) = self.turns.acquire().await else {
            return false;
        };
        let users = Arc::clone(self);
        let right = tokio::task::spawn_blocking(move || users.verify(&user, &password)).await;
        drop(turn);
        let right = right.unwrap_or(false);
        if right {
            self.remember(digest);
        }
        right
    }

    fn verify(&self, user: &str, password: &[u8]) -> bool {
        let hash = self.hashes.get(user);
        // bcrypt compares in constant time.
        let right = password.len() <= PASSWORD_BYTES_MAX
            && bcrypt::verify(password, hash.unwrap_or(&self.nobody)).unwrap_or(false);
        right && hash.is_some()
    }

    fn digest(&self, user: &str, password: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [
            user.as_bytes(),
            &[0],
            self.hashes.get(user).map_or(&[][..], |hash| hash.as_bytes()),
            &[0],
            password,
        ] {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }

    /// Looked up by a keyed digest, whose bits nobody can choose: the time it takes tells nothing.
    fn known(&self, digest: &[u8]) -> bool {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(digest)
    }

    fn remember(&self, digest: Vec<u8>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(digest);
    }
}

/// Name and password of a header `Basic BASE64(name:password)` (RFC 7617).
fn credentials(header: &HeaderValue) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cheap hash, as `htpasswd` would make it.
    fn users(names: &[(&str, &str)]) -> Arc<Users> {
        let hashes = names
            .iter()
            .map(|(name, password)| ((*name).to_owned(), bcrypt::hash(password, 4).unwrap()));
        Arc::new(Users::new(hashes.collect()).unwrap())
    }

    fn basic(text: &str) -> HeaderValue {
        HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(text))).unwrap()
    }

    #[tokio::test]
    async fn the_right_password_of_the_right_user_is_let_in() {
        let long = "x".repeat(PASSWORD_BYTES_MAX);
        let users = users(&[("anna", "secret"), ("bert", "other:colon"), ("carl", &long)]);
        for (text, allowed) in [
            ("anna:secret", true),
            ("bert:other:colon", true),
            ("anna:other:colon", false),
            ("anna:", false),
            ("anna", false),
            ("nobody:secret", false),
            (":secret", false),
            (&format!("carl:{long}"), true),
            // bcrypt alone would not look at the last letter.
            (&format!("carl:{long}y"), false),
        ] {
            // Twice: what was right before is known again, what was wrong is not.
            for _ in 0..2 {
                assert_eq!(users.allows(Some(&basic(text))).await, allowed, "{text}");
            }
        }
        for header in ["Basic", "Basic %%%", "Bearer YW5uYTpzZWNyZXQ=", ""] {
            assert!(!users.allows(Some(&HeaderValue::from_static(header))).await, "{header}");
        }
        assert!(!users.allows(None).await);
        assert_eq!(users.known.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn without_users_everybody_may_ask() {
        assert!(Arc::new(Users::default()).allows(None).await);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let users = users(&[("anna", "secret")]);
        for number in 0..KNOWN_MAX {
            users.remember(vec![u8::try_from(number).unwrap()]);
        }
        assert_eq!(users.known.lock().unwrap().len(), KNOWN_MAX);
        users.remember(vec![0, 0]);
        assert_eq!(users.known.lock().unwrap().len(), 1);
    }

    #[test]
    fn only_bcrypt_hashes_of_a_bearable_cost_are_taken() {
        for (user, hash, word) in [
            ("anna", "secret", "bcrypt"),
            ("anna", "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "bcrypt"),
            ("anna", &format!("$2y$16${}", ".".repeat(53)), "cost"),
            ("an:na", &bcrypt::hash("x", 4).unwrap(), "colon"),
        ] {
            let error = Users::new(BTreeMap::from([(user.to_owned(), hash.to_owned())])).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn nobodys_hash_is_one() {
        let nobody = Users::default().nobody;
        assert_eq!(bcrypt::HashParts::from_str(&nobody).unwrap().get_cost(), COST_DEFAULT);
        assert!(!bcrypt::verify("", &nobody).unwrap());
    }
}
