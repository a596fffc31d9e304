//! [`SecretRef`]: the name of a secret's place, as the configuration writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::credentials::file::{READ_TIMEOUT, SECRET_BYTES_MAX};

/// Where a secret is. Shown as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretRef {
    /// `env://NAME`: an environment variable of the process.
    Env(String),
    /// `file:///path`: a regular file. The path is taken as it stands, without
    /// percent-decoding.
    File(PathBuf),
    /// `credential://NAME`: the file of that name in `$CREDENTIALS_DIRECTORY`,
    /// where systemd's `LoadCredential=` and `LoadCredentialEncrypted=` put it.
    Credential(String),
}

impl SecretRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// [`RefError`]. It never quotes `text`, which may be a key in the wrong place.
    pub fn parse(text: &str) -> Result<Self, RefError> {
        let (scheme, rest) = text.split_once("://").ok_or(RefError::NotAReference)?;
        match scheme {
            "env" => match is_variable_name(rest) {
                true => Ok(SecretRef::Env(rest.to_owned())),
                false => Err(RefError::VariableName),
            },
            "file" => match rest.starts_with('/') && rest.len() > 1 && !rest.contains('\0') {
                true => Ok(SecretRef::File(PathBuf::from(rest))),
                false => Err(RefError::NotAbsolute),
            },
            "credential" => match is_credential_name(rest) {
                true => Ok(SecretRef::Credential(rest.to_owned())),
                false => Err(RefError::CredentialName),
            },
            _ => Err(RefError::UnknownScheme),
        }
    }

    /// The file behind the reference, known without reading anything. `None` for
    /// `env://`, and for `credential://` where systemd gave us no directory.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            SecretRef::Env(_) => None,
            SecretRef::File(path) => Some(path.clone()),
            SecretRef::Credential(name) => {
                credential_path(std::env::var_os("CREDENTIALS_DIRECTORY")?.as_ref(), name)
            }
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Env(name) => write!(f, "env://{name}"),
            SecretRef::File(path) => write!(f, "file://{}", path.display()),
            SecretRef::Credential(name) => write!(f, "credential://{name}"),
        }
    }
}

impl FromStr for SecretRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        Self::parse(text)
    }
}

/// Why a text is no reference. The texts never quote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// No scheme: perhaps the key itself.
    #[error(
        "this is not a reference to a secret; put the key into a file that only the service may \
         read and write `file:///path/to/key` here (or `env://NAME`, `credential://NAME`)"
    )]
    NotAReference,
    /// A scheme that we do not know.
    #[error(
        "unknown kind of reference; known are `file:///path`, `env://NAME` and `credential://NAME`"
    )]
    UnknownScheme,
    /// `env://` with something that no shell could export.
    #[error(
        "the name after `env://` must be letters, digits and `_`, and must not start with a digit"
    )]
    VariableName,
    /// `file://` with a relative path.
    #[error("a file must be named by its absolute path, with three slashes: `file:///path/to/key`")]
    NotAbsolute,
    /// `credential://` with something that is no plain file name.
    #[error(
        "the name after `credential://` must be that of a systemd credential: letters, digits, \
         `.`, `_` and `-`, without a path"
    )]
    CredentialName,
}

/// Why a secret could not be read. Names the reference and the cure, never the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The variable is not there.
    #[error(
        "the environment variable {name} is not set; set it for the service (systemd: \
         `Environment=` or, better, `LoadCredential=` and `credential://`)"
    )]
    VariableMissing {
        /// The variable.
        name: String,
    },
    /// `credential://` outside of systemd.
    #[error(
        "$CREDENTIALS_DIRECTORY is not set, or is no absolute path; `credential://` works in a \
         systemd unit with `LoadCredential=NAME:/path`; elsewhere use `file:///path`"
    )]
    NoCredentialsDirectory,
    /// There is nothing in it.
    #[error("{place} is empty; write the key into it")]
    Empty {
        /// File or variable.
        place: String,
    },
    /// The file, or a directory on the way, could not be opened.
    #[error("cannot read {path}: {reason}{cure}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
        /// What helps, if that is known; starts with `; `.
        cure: &'static str,
    },
    /// A directory, a pipe, a device, a socket.
    #[error(
        "{path} is {kind}; a secret must be a regular file (a pipe or a device could keep the \
         proxy waiting)", path = path.display()
    )]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Too long to be a key.
    #[error(
        "{path} is larger than {max} bytes, so it is hardly a key; is it the right file?",
        path = path.display(), max = SECRET_BYTES_MAX
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Mode bit 0004.
    #[error(
        "{path} may be read by every user of this machine (mode {mode:04o}); run `chmod 640 {path}` \
         and give it to the service's group, or, in a container that mounts it so, set \
         `allow_world_readable = true` for this source", path = path.display()
    )]
    WorldReadable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Mode bit 0002.
    #[error(
        "{path} may be written by every user of this machine (mode {mode:04o}), who could put \
         another key there; run `chmod o-w {path}`", path = path.display()
    )]
    WorldWritable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It was written to at each of our attempts.
    #[error(
        "{path} was being written while we read it; write it under another name and rename it",
        path = path.display()
    )]
    Unsteady {
        /// The file.
        path: PathBuf,
    },
    /// The file system did not answer.
    #[error(
        "reading {path} took longer than {seconds} s; its file system does not answer (is it a \
         network mount?)", path = path.display(), seconds = READ_TIMEOUT.as_secs()
    )]
    TimedOut {
        /// The file.
        path: PathBuf,
    },
    /// The service user could not read it again after a change.
    #[error(
        "{path} is readable now, but not for the service user (uid {uid}), who must read it again \
         when it changes: {obstacle}; run {cure}", path = path.display()
    )]
    NotForServiceUser {
        /// The file.
        path: PathBuf,
        /// Who should be able to.
        uid: u32,
        /// What stands in the way.
        obstacle: String,
        /// A command, in backticks.
        cure: String,
    },
    /// No such user or group.
    #[error(
        "there is no {kind} `{name}` on this machine; create it (`{command} --system {name}`) or name another one"
    )]
    NoSuchUser {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What creates it.
        command: &'static str,
    },
}

/// What POSIX lets a shell export (XBD 8.1).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A plain file name. systemd allows more; nobody uses it, and this cannot climb
/// out of the directory.
fn is_credential_name(name: &str) -> bool {
    !name.is_empty()
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// systemd always gives an absolute directory; anything else is not from systemd.
fn credential_path(directory: &Path, name: &str) -> Option<PathBuf> {
    directory.is_absolute().then(|| directory.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<SecretRef, RefError>) {
        let parsed = SecretRef::parse(text);
        assert_eq!(parsed, expected);
        match parsed {
            Ok(reference) => assert_eq!(reference.to_string(), text),
            Err(error) => assert!(!error.to_string().contains("sk_live"), "{error}"),
        }
    }

    #[test]
    fn references() {
        use RefError::*;
        check("env://STRIPE_KEY", Ok(SecretRef::Env("STRIPE_KEY".into())));
        check("env://_1", Ok(SecretRef::Env("_1".into())));
        check("file:///run/key", Ok(SecretRef::File("/run/key".into())));
        check(
            "credential://stripe.key",
            Ok(SecretRef::Credential("stripe.key".into())),
        );
        check("sk_live_123", Err(NotAReference));
        check("", Err(NotAReference));
        check("env://", Err(VariableName));
        check("env://1A", Err(VariableName));
        check("env://sk_live-1", Err(VariableName));
        check("file://relative/sk_live", Err(NotAbsolute));
        check("file:///", Err(NotAbsolute));
        check("file:///a\0b", Err(NotAbsolute));
        check("credential://", Err(CredentialName));
        check("credential://..", Err(CredentialName));
        check("credential://../etc/shadow", Err(CredentialName));
        check("vault://sk_live", Err(UnknownScheme));
        check("FILE:///run/key", Err(UnknownScheme));
    }

    #[test]
    fn a_credential_is_a_file_of_systemds_directory() {
        let path = credential_path(Path::new("/run/credentials/claviger.service"), "stripe");
        assert_eq!(
            path,
            Some("/run/credentials/claviger.service/stripe".into())
        );
        assert_eq!(credential_path(Path::new("relative"), "stripe"), None);
    }
}
