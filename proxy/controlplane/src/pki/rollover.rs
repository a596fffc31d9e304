//! `claviger ca rollover`: from one root to the next, with a time in which callers may trust either.
//!
//! - [`start`] makes the next root and signs each root by the other. Certificates still come from
//!   the present root, and behind the intermediate goes the present root, signed by the next one.
//! - [`switch`] makes an intermediate of the next root, from which certificates come then, and behind
//!   it goes the next root, signed by the former one.
//! - [`finish`] ends with that, and the former root is trusted no more.
//!
//! So from the start to the finish a caller that trusts the old root, or the new one, or both,
//! verifies what is served: there is one way up, and it ends at whichever root is known first.
//!
//! ```text
//! leaf <- intermediate <- present root
//!                      <- present root, signed by the other <- other root
//! ```
//!
//! On disk the other root's files are called `next-*` or `former-*`: `root.pem`, `root.key`,
//! `cross.pem` (the root in use, signed by the other) and, before the switch, `back.pem` (the other,
//! signed by the root in use), for which both keys had to be there.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::PKCS_RSA_SHA256;

use super::authority::{
    Authority, Certificate, KeyType, ROOT_PATH_LEN, Which, cross_sign, key_hash, key_pem,
    make_intermediate, make_root, permitted_domains, read_key, write_intermediate,
};
use super::error::List;
use super::store::{CERT_MODE, CaDir, Existing, KEY_MODE, Role, write_atomic};
use super::{Passphrase, PkiError, x509};

/// Arguments of `claviger ca rollover`.
#[derive(Clone, Debug)]
pub struct RolloverOptions {
    /// The authority's directory.
    pub dir: PathBuf,
    /// Domains that the next root permits; if there are none, those of the present one.
    pub permit: Vec<String>,
    /// What opens the keys, and what new ones are encrypted under.
    pub passphrase: Option<Passphrase>,
    /// The time now.
    pub now: SystemTime,
}

/// Makes the next root.
///
/// # Errors
/// A roll-over is under way; `root.key` is missing or cannot be opened; domains that leave out what
/// is served.
pub fn start(options: &RolloverOptions) -> Result<RolloverReport, PkiError> {
    let dir = CaDir::new(&options.dir);
    let _lock = dir.lock()?;
    let mut authority = Authority::read(dir.clone(), options.passphrase.as_ref())?;
    if let Some(other) = &authority.other {
        return Err(PkiError::file(
            &options.dir,
            format!(
                "a roll-over is under way: the {} root is here",
                other.which.as_str()
            ),
            match other.which {
                Which::Next => "go on by `claviger ca rollover switch`, or end it by `cancel`",
                Which::Former => "end it by `claviger ca rollover finish`",
            },
        ));
    }
    let permitted = match options.permit.is_empty() {
        true => authority.permitted().to_vec(),
        false => permitted_domains(&options.permit)?,
    };
    refuse_narrower(&authority, &permitted)?;
    let (root_key, _) = read_key(&dir.root_key(), options.passphrase.as_ref())?;
    if key_hash(&root_key) != authority.root.facts.key {
        return Err(PkiError::file(
            &dir.root_key(),
            "does not belong to root.pem",
            "bring back the root.key that was made with it",
        ));
    }
    let key_type = match root_key.algorithm() == &PKCS_RSA_SHA256 {
        true => KeyType::Rsa,
        false => KeyType::Ecdsa,
    };
    let next_key = key_type.generate_ca_key()?;
    let next = make_root(&next_key, &permitted, options.now)?;
    let present = &authority.root;
    let cross = cross_sign(present, &root_key, &next, &next_key, options.now)?;
    // A root that was made before this was possible lets nobody stand between it and an intermediate.
    let has_room = present
        .facts
        .path_len
        .is_none_or(|length| length >= u32::from(ROOT_PATH_LEN));
    let back = match has_room {
        true => Some(cross_sign(
            &next,
            &next_key,
            present,
            &root_key,
            options.now,
        )?),
        false => None,
    };
    authority.state.remember(
        Role::Root,
        &next.facts.key,
        next.facts.not_after,
        options.now,
    );
    dir.write_state(&authority.state)?;
    let put = |file: &str, certificate: &Certificate| {
        put_certificate(&dir.other_root("next", file), certificate)
    };
    put("cross.pem", &cross)?;
    if let Some(back) = &back {
        put("back.pem", back)?;
    }
    let text = key_pem(&next_key, options.passphrase.as_ref())?;
    let path = dir.other_root("next", "root.key");
    write_atomic(&path, text.as_bytes(), KEY_MODE, Existing::Replace)?;
    // Last: with it the roll-over has begun.
    put("root.pem", &next)?;
    Ok(RolloverReport {
        step: Step::Started {
            is_bridged: back.is_some(),
        },
        present: named(present),
        other: Some(named(&next)),
    })
}

/// Puts the next root in the present one's place.
///
/// # Errors
/// No roll-over has begun, or the next root's key cannot be opened.
pub fn switch(options: &RolloverOptions) -> Result<RolloverReport, PkiError> {
    let dir = CaDir::new(&options.dir);
    let _lock = dir.lock()?;
    let mut authority = Authority::read(dir.clone(), options.passphrase.as_ref())?;
    let next = match &authority.other {
        Some(other) if other.which == Which::Next => other.root.clone(),
        _ => {
            return Err(PkiError::file(
                &options.dir,
                "there is no next root here",
                "begin by `claviger ca rollover start`",
            ));
        }
    };
    let key_path = dir.other_root("next", "root.key");
    let (next_key, _) = read_key(&key_path, options.passphrase.as_ref())?;
    if key_hash(&next_key) != next.facts.key {
        return Err(PkiError::file(
            &key_path,
            "does not belong to next-root.pem",
            "bring back the key that was made with it, or `claviger ca rollover cancel`",
        ));
    }
    let present = authority.root.clone();
    // What is served now stays so without another step.
    let mut names = authority.intermediate_permitted().to_vec();
    if names.is_empty() {
        names = next.facts.permitted.clone();
    }
    let (intermediate, key) = make_intermediate(&next, &next_key, names, options.now)?;
    let passphrase = options.passphrase.as_ref();
    let intermediate_key = key_pem(&key, passphrase)?;
    let next_key = key_pem(&next_key, passphrase)?;
    // A crash on the way leaves `next-root.pem` there, and all of it can be done again.
    put_certificate(&dir.other_root("former", "root.pem"), &present)?;
    move_if_there(
        &dir.other_root("next", "back.pem"),
        &dir.other_root("former", "cross.pem"),
    )?;
    if !dir.other_root("former", "root.key").exists() {
        move_if_there(&dir.root_key(), &dir.other_root("former", "root.key"))?;
    }
    let (state, now) = (&mut authority.state, options.now);
    write_intermediate(&dir, &intermediate, &intermediate_key, state, now)?;
    write_atomic(
        &dir.root_key(),
        next_key.as_bytes(),
        KEY_MODE,
        Existing::Replace,
    )?;
    put_certificate(&dir.root_pem(), &next)?;
    for path in dir.rollover_files("next") {
        remove_if_there(&path)?;
    }
    let authority = Authority::read(dir, options.passphrase.as_ref())?;
    let is_bridged = authority.leaf_issuer().is_ok()
        && authority
            .other
            .as_ref()
            .is_some_and(|other| other.has_cross());
    Ok(RolloverReport {
        step: Step::Switched { is_bridged },
        present: named(&next),
        other: Some(named(&present)),
    })
}

/// Ends the roll-over: the former root is moved aside with its key.
///
/// # Errors
/// There is no former root.
pub fn finish(options: &RolloverOptions) -> Result<RolloverReport, PkiError> {
    end(options, Which::Former)
}

/// Gives a roll-over up that has not been switched: the next root is moved aside with its key.
///
/// # Errors
/// There is no next root.
pub fn cancel(options: &RolloverOptions) -> Result<RolloverReport, PkiError> {
    end(options, Which::Next)
}

fn end(options: &RolloverOptions, which: Which) -> Result<RolloverReport, PkiError> {
    let dir = CaDir::new(&options.dir);
    let _lock = dir.lock()?;
    let authority = Authority::read(dir.clone(), options.passphrase.as_ref())?;
    let other = match &authority.other {
        Some(other) if other.which == which => named(&other.root),
        _ => {
            return Err(PkiError::file(
                &options.dir,
                format!("there is no {} root here", which.as_str()),
                match which {
                    Which::Next => "there is nothing to cancel",
                    Which::Former => "first `claviger ca rollover switch`",
                },
            ));
        }
    };
    let aside = dir.set_aside_these(&dir.rollover_files(which.as_str()), options.now)?;
    Ok(RolloverReport {
        step: match which {
            Which::Next => Step::Cancelled { aside },
            Which::Former => Step::Finished { aside },
        },
        present: named(&authority.root),
        other: Some(other),
    })
}

/// The next root has to permit what is served.
fn refuse_narrower(authority: &Authority, permitted: &[String]) -> Result<(), PkiError> {
    let is_within = |name: &str, domain: &String| {
        name == domain
            || name
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
    };
    let outside: Vec<String> = authority
        .intermediate_permitted()
        .iter()
        .filter(|name| !permitted.iter().any(|domain| is_within(name, domain)))
        .cloned()
        .collect();
    match outside.is_empty() {
        true => Ok(()),
        false => Err(PkiError::Host {
            host: outside.join(", "),
            problem: format!(
                "is served now and outside of what the next root would permit ({}); name its domain by --permit too",
                List(permitted)
            ),
        }),
    }
}

fn put_certificate(path: &Path, certificate: &Certificate) -> Result<(), PkiError> {
    let pem = x509::to_pem(&certificate.der);
    write_atomic(path, pem.as_bytes(), CERT_MODE, Existing::Replace)
}

fn move_if_there(from: &Path, to: &Path) -> Result<(), PkiError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PkiError::Io {
            path: from.to_owned(),
            action: "move",
            cure: "see the system's message".to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PkiError::Io {
            path: path.to_owned(),
            action: "remove",
            cure: "see the system's message".to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Name and fingerprint.
fn named(root: &Certificate) -> (String, String) {
    (root.facts.subject.clone(), x509::fingerprint(&root.der))
}

/// What a step of a roll-over did, and what comes next.
#[derive(Clone, Debug)]
pub struct RolloverReport {
    step: Step,
    present: (String, String),
    other: Option<(String, String)>,
}

#[derive(Clone, Debug)]
enum Step {
    Started { is_bridged: bool },
    Switched { is_bridged: bool },
    Finished { aside: PathBuf },
    Cancelled { aside: PathBuf },
}

impl fmt::Display for RolloverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (present, fingerprint) = &self.present;
        writeln!(f, "in use    {present}\n          SHA-256 {fingerprint}")?;
        if let Some((other, fingerprint)) = &self.other {
            let what = match self.step {
                Step::Started { .. } => "next  ",
                Step::Switched { .. } | Step::Finished { .. } => "former",
                Step::Cancelled { .. } => "given up",
            };
            writeln!(f, "{what:<9} {other}\n          SHA-256 {fingerprint}")?;
        }
        match &self.step {
            Step::Started { is_bridged } => {
                writeln!(
                    f,
                    "A process that serves takes it up by itself. From then on callers verify with either root.\n\
                     Next: `claviger ca export` gives both roots; have every machine trust them. Then \
                     `claviger ca rollover switch`."
                )?;
                if !is_bridged {
                    writeln!(
                        f,
                        "The root in use was made without room for a roll-over: after the switch, a machine \
                         that trusts it alone does not verify any more."
                    )?;
                }
                Ok(())
            }
            Step::Switched { is_bridged } => {
                writeln!(f, "Certificates come from the new root now.")?;
                match is_bridged {
                    true => writeln!(f, "Callers still verify with either root.")?,
                    false => writeln!(f, "Callers need the new root to verify.")?,
                }
                writeln!(
                    f,
                    "Next: when every machine trusts the new root, `claviger ca rollover finish`."
                )
            }
            Step::Finished { aside } => writeln!(
                f,
                "The former root is in {}; destroy its key. `claviger ca export` gives the new root alone: \
                 where the old one was installed, take it away.",
                aside.display()
            ),
            Step::Cancelled { aside } => writeln!(
                f,
                "The next root is in {}; no certificate comes from it. Where it was installed, take it away.",
                aside.display()
            ),
        }
    }
}
