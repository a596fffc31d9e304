//! [`Secret`]: bytes that cannot be printed and are wiped when dropped.

use zeroize::Zeroizing;

/// Key material. `Debug` shows nothing of it, there is no `Display` and no
/// `Clone`, and reading it is private to this crate.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over. A caller that has other copies wipes them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Length in bytes, which `check` warns about when it is too short to search for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a source gave the same twice. For two secrets of our own: a caller's
    /// guess must never get here, since the time that it takes tells.
    pub fn is_unchanged_from(&self, earlier: &Secret) -> bool {
        self.0 == earlier.0
    }

    /// Shows the bytes to `open`, which opens something of our own with them: a private key
    /// under a passphrase, an account. Never for a key that goes upstream, which only a
    /// [`Permit`](crate::Permit) writes. `open` keeps no copy.
    pub fn unlock<R>(&self, open: impl FnOnce(&[u8]) -> R) -> R {
        open(self.expose())
    }

    /// The bytes. A search for this name is the whole audit of who reads keys.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(
            format!("{:?}", Secret::new(b"sk_live".to_vec())),
            "Secret(..)"
        );
    }
}
