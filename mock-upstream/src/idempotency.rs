//! Idempotency keys: a request that is repeated gets the first one's answer, as Stripe does it.
//!
//! The state is shared by all workers. A key belongs to the credential that it came with. While
//! the first request is under way, a second one is a conflict; once it is answered, the same
//! request gets the same answer, and another one with the same key is refused. If the first
//! request comes to nothing (its client goes away), the key is free again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// The keys that were seen, and what was answered.
#[derive(Debug, Default)]
pub struct Store {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Identity, Entry>,
    /// Content bytes in all entries.
    bytes: usize,
}

/// The digest of a credential and a key.
type Identity = [u8; 32];

#[derive(Debug)]
struct Entry {
    /// The digest of method, target and body.
    parameters: [u8; 32],
    begun: Instant,
    answer: Option<Arc<Answer>>,
}

/// An answer to be given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Fields besides `Content-Type` and the framing.
    pub fields: Vec<(String, String)>,
    /// The JSON content.
    pub content: Option<String>,
}

/// What a key means for the request at hand.
#[derive(Debug)]
pub enum Claim {
    /// The key is new: answer, and [`Pending::complete`] it.
    New(Pending),
    /// This was answered before.
    Again(Arc<Answer>),
    /// The key was used with another request.
    Mismatch,
    /// The first request with this key is still under way.
    InProgress,
}

/// The right, and the duty, to answer for a key. Dropping it frees the key.
#[derive(Debug)]
pub struct Pending {
    store: Arc<Store>,
    identity: Identity,
    completed: bool,
}

impl Store {
    /// Claims `key` for a request of this credential. Entries older than `keep` do not count.
    pub fn claim(
        self: &Arc<Self>,
        credential: &[u8],
        key: &[u8],
        parameters: &[&[u8]],
        keep: Duration,
        now: Instant,
    ) -> Claim {
        let identity = digest(&[credential, key]);
        let parameters = digest(parameters);
        let mut state = self.lock();
        let expired = |entry: &Entry| {
            entry.answer.is_some() && now.saturating_duration_since(entry.begun) >= keep
        };
        if state.entries.get(&identity).is_some_and(expired) {
            state.remove(&identity);
        }
        if let Some(entry) = state.entries.get(&identity) {
            return match &entry.answer {
                _ if entry.parameters != parameters => Claim::Mismatch,
                None => Claim::InProgress,
                Some(answer) => Claim::Again(Arc::clone(answer)),
            };
        }
        if state.entries.len() >= ENTRIES_MAX {
            state.remove_oldest();
        }
        let entry = Entry {
            parameters,
            begun: now,
            answer: None,
        };
        state.entries.insert(identity, entry);
        Claim::New(Pending {
            store: Arc::clone(self),
            identity,
            completed: false,
        })
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, identity: &Identity) {
        if let Some(entry) = self.entries.remove(identity) {
            self.bytes -= entry.answer.as_deref().map_or(0, Answer::bytes);
        }
    }

    /// Forgets the oldest answered entry; those under way stay.
    fn remove_oldest(&mut self) -> bool {
        let answered = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.answer.is_some());
        let oldest = answered.min_by_key(|(_, entry)| entry.begun);
        match oldest.map(|(identity, _)| *identity) {
            Some(identity) => {
                self.remove(&identity);
                true
            }
            None => false,
        }
    }
}

impl Answer {
    fn bytes(&self) -> usize {
        self.content.as_deref().map_or(0, str::len)
    }
}

impl Pending {
    /// Keeps the answer for whoever repeats the request.
    pub fn complete(mut self, answer: Answer) {
        self.completed = true;
        let mut state = self.store.lock();
        let bytes = answer.bytes();
        // One answer is at most a personality's body, hence far smaller than the whole.
        while state.bytes + bytes > BYTES_MAX && state.remove_oldest() {}
        if let Some(entry) = state.entries.get_mut(&self.identity) {
            entry.answer = Some(Arc::new(answer));
            state.bytes += bytes;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.completed {
            self.store.lock().remove(&self.identity);
        }
    }
}

/// A digest that tells where one part ends and the next begins.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// Keys remembered. Beyond that the oldest answered one is forgotten: its request, repeated, is
/// carried out again.
pub const ENTRIES_MAX: usize = 10_000;

/// Content bytes remembered over all keys. Beyond that the oldest answers are forgotten.
pub const BYTES_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn answer(content: &str) -> Answer {
        Answer {
            status: 200,
            fields: Vec::new(),
            content: Some(content.to_string()),
        }
    }

    #[test]
    fn the_first_request_decides() {
        let store = Arc::new(Store::default());
        let now = Instant::now();
        let claim = |credential: &str, body: &str, at| {
            let at = now + Duration::from_secs(at);
            store.claim(
                credential.as_bytes(),
                b"k",
                &[b"POST", body.as_bytes()],
                KEEP,
                at,
            )
        };
        let Claim::New(pending) = claim("a", "x", 0) else {
            panic!()
        };
        assert!(matches!(claim("a", "x", 1), Claim::InProgress));
        assert!(matches!(claim("a", "y", 1), Claim::Mismatch));
        let Claim::New(other) = claim("b", "y", 1) else {
            panic!()
        };
        drop(other);
        assert_eq!(store.len(), 1);
        pending.complete(answer("first"));
        let Claim::Again(again) = claim("a", "x", 59) else {
            panic!()
        };
        assert_eq!(*again, answer("first"));
        assert!(matches!(claim("a", "y", 59), Claim::Mismatch));
        // Its time is up.
        assert!(matches!(claim("a", "y", 60), Claim::New(_)));
        assert!(store.is_empty());
    }

    #[test]
    fn is_bounded() {
        let store = Arc::new(Store::default());
        let now = Instant::now();
        for key in 0..ENTRIES_MAX as u64 + 5 {
            let at = now + Duration::from_micros(key);
            match store.claim(b"", &key.to_be_bytes(), &[], KEEP, at) {
                Claim::New(pending) => pending.complete(answer("")),
                claim => panic!("{claim:?}"),
            }
        }
        assert_eq!(store.len(), ENTRIES_MAX);
        let big = "x".repeat(BYTES_MAX / 2 + 1);
        for key in [b"a", b"b"] {
            let Claim::New(pending) = store.claim(b"", key, &[], KEEP, now + KEEP / 2) else {
                panic!()
            };
            pending.complete(answer(&big));
        }
        assert!(store.lock().bytes <= BYTES_MAX);
    }
}
