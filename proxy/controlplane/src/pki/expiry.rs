//! [`Expiry`]: until when each certificate serves, and when to say something about it.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::x509;

/// One certificate that is in use, or that somebody relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// What it is for.
    pub kind: CertificateKind,
    /// Which one of its kind: a host, a file, a subject.
    pub name: String,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl Expiry {
    /// How it stands.
    pub fn state(&self, now: SystemTime) -> ExpiryState {
        if now >= self.not_after {
            ExpiryState::Expired
        } else if now + self.notice() >= self.not_after {
            ExpiryState::Expiring
        } else {
            ExpiryState::Good
        }
    }

    /// How long before its end something is said. What is renewed by itself is due after two
    /// thirds of its life; if half of the last third is over, something keeps it from happening.
    fn notice(&self) -> Duration {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        match self.kind.is_renewed_by_itself() {
            true => life / 6,
            false => match self.kind {
                // Trust takes long to spread: a roll-over is begun months ahead.
                CertificateKind::CaRoot => (life / 10).min(ROOT_NOTICE),
                _ => (life / 3).min(NOTICE),
            },
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} ({}), until {}",
            self.kind.in_words(),
            self.name,
            x509::moment(self.not_after)
        )
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertificateKind {
    /// A root of the internal CA.
    CaRoot,
    /// The intermediate of the internal CA.
    CaIntermediate,
    /// A host's, from the internal CA.
    Leaf,
    /// A host's, from a public authority by ACME.
    Acme,
    /// A host's, from a file.
    File,
    /// An authority whose certificates callers show.
    ClientCa,
    /// Our own, which an upstream asks for.
    Client,
}

impl CertificateKind {
    /// The word of the status and of the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            CertificateKind::CaRoot => "ca_root",
            CertificateKind::CaIntermediate => "ca_intermediate",
            CertificateKind::Leaf => "leaf",
            CertificateKind::Acme => "acme",
            CertificateKind::File => "file",
            CertificateKind::ClientCa => "client_ca",
            CertificateKind::Client => "client",
        }
    }

    /// Whether the running process sees to it.
    pub fn is_renewed_by_itself(self) -> bool {
        use CertificateKind::*;
        matches!(self, CaIntermediate | Leaf | Acme)
    }

    /// What to do before it ends.
    pub fn cure(self) -> &'static str {
        match self {
            CertificateKind::CaRoot => "replace it by `claviger ca rollover start`",
            CertificateKind::CaIntermediate => {
                "let `claviger run` make it anew: it needs root.key in the CA's directory"
            }
            CertificateKind::Leaf => "look for earlier warnings that say why it is not renewed",
            CertificateKind::Acme => "look for earlier warnings of `acme` that say why",
            CertificateKind::File => {
                "put a newer one in its place: it is read as soon as it is there"
            }
            CertificateKind::ClientCa => {
                "add the authority's newer certificate to the file: it is read as soon as it is there"
            }
            CertificateKind::Client => {
                "put a newer one in its place: it is read as soon as it is there"
            }
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            CertificateKind::CaRoot => "root certificate of the internal CA",
            CertificateKind::CaIntermediate => "intermediate certificate of the internal CA",
            CertificateKind::Leaf => "internal CA's certificate of a host",
            CertificateKind::Acme => "ACME certificate of a host",
            CertificateKind::File => "certificate file of a host",
            CertificateKind::ClientCa => "certificate of a client CA",
            CertificateKind::Client => "client certificate for an upstream",
        }
    }
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryState {
    /// Nothing to do.
    Good,
    /// Its end is near.
    Expiring,
    /// Its end is over: who checks it refuses it.
    Expired,
}

impl ExpiryState {
    /// The word of the status.
    pub fn as_str(self) -> &'static str {
        match self {
            ExpiryState::Good => "good",
            ExpiryState::Expiring => "expiring",
            ExpiryState::Expired => "expired",
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);
/// For what an operator replaces by hand, a third of its life at most.
const NOTICE: Duration = DAY.saturating_mul(30);
/// For the root, a tenth of its life at most.
const ROOT_NOTICE: Duration = DAY.saturating_mul(180);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: CertificateKind, life_days: u32, left_days: u32, expected: ExpiryState) {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let not_after = now + DAY * left_days;
        let expiry = Expiry {
            kind,
            name: "x".to_owned(),
            not_before: not_after - DAY * life_days,
            not_after,
        };
        assert_eq!(expiry.state(now), expected, "{expiry}");
    }

    #[test]
    fn something_is_said_in_time_and_not_before() {
        use CertificateKind::*;
        use ExpiryState::*;
        check(Leaf, 30, 9, Good);
        check(Leaf, 30, 5, Expiring);
        check(Acme, 90, 29, Good);
        check(Acme, 90, 15, Expiring);
        check(Acme, 90, 0, Expired);
        check(File, 365, 31, Good);
        check(File, 365, 30, Expiring);
        check(File, 9, 4, Good);
        check(File, 9, 3, Expiring);
        check(CaRoot, 3_652, 181, Good);
        check(CaRoot, 3_652, 180, Expiring);
        check(CaRoot, 3_652, 0, Expired);
    }
}
