//! What stands for a TLS handshake in [`crate::simulation`]: one record each way that agrees on
//! keys. Test builds only.
//!
//! From there on all is real: the [`Session`], its records, their AEAD, alerts and tickets. A
//! handshake of rustls's would cost more than the exchanges behind it, and its random numbers
//! and signatures would make no two runs of a seed alike. It is held against rustls elsewhere.

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384 as SUITE;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error, InvalidMessage, ProtocolVersion};

use super::{Kernel, Progress, Session, records_max};
use crate::record::{self, HEADER_BYTES, Opener, Sealer};
use crate::rt::simulated::World;

const CLIENT_SAYS: &[u8] = b"simulated hello ";
const SERVER_SAYS: &[u8] = b"simulated welcome ";

/// Our half of it.
pub struct Greeting {
    name: Vec<u8>,
    number: u64,
    has_spoken: bool,
}

impl Greeting {
    /// `None` outside of a simulation.
    pub fn new(name: &ServerName<'_>) -> Option<Self> {
        let world = World::current()?;
        Some(Self {
            name: name.to_str().as_bytes().to_vec(),
            number: world.number(),
            has_spoken: false,
        })
    }

    pub fn advance(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Result<Progress, Error>) {
        if !std::mem::replace(&mut self.has_spoken, true) {
            let mut says = CLIENT_SAYS.to_vec();
            says.extend_from_slice(&self.number.to_be_bytes());
            says.extend_from_slice(&self.name);
            out.extend(record_of(&says));
        }
        match record::length(input) {
            Ok(Some(length)) if input.len() >= length => (
                length,
                self.welcomed(&input[..length]).map(|()| Progress::Done),
            ),
            Ok(_) => (0, Ok(Progress::Waits)),
            Err(error) => (0, Err(error)),
        }
    }

    fn welcomed(&self, record: &[u8]) -> Result<(), Error> {
        if record[0] == ALERT {
            return Err(Error::AlertReceived(AlertDescription::HandshakeFailure));
        }
        if record != welcome(self.number) {
            return Err(InvalidMessage::InvalidContentType.into());
        }
        Ok(())
    }

    pub fn into_session(self) -> Result<Session, Error> {
        let (opener, sealer) = keys(self.number, false)?;
        Ok(Session {
            opener,
            sealer,
            kernel: Kernel::Simulated,
            version: ProtocolVersion::TLSv1_3,
            suite: SUITE,
            is_resumed: false,
            message: Vec::new(),
            dataless: 0,
            renegotiations: 0,
            owes_key_update: false,
            is_over: false,
            failure: None,
        })
    }
}

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

fn record_of(says: &[u8]) -> Vec<u8> {
    let mut record = vec![HANDSHAKE, 3, 3];
    record.extend_from_slice(&(says.len() as u16).to_be_bytes());
    record.extend_from_slice(says);
    record
}

/// What the other end says to a client's number.
pub fn welcome(number: u64) -> Vec<u8> {
    let mut says = SERVER_SAYS.to_vec();
    says.extend_from_slice(&number.to_be_bytes());
    record_of(&says)
}

/// The number and the server name of the client's record, whole.
pub fn read_hello(record: &[u8]) -> Option<(u64, &[u8])> {
    let says = record.get(HEADER_BYTES..)?.strip_prefix(CLIENT_SAYS)?;
    let (number, name) = says.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), name))
}

/// What one end opens and seals with.
///
/// # Errors
/// As [`Opener::new`].
pub fn keys(number: u64, is_server: bool) -> Result<(Opener, Sealer), Error> {
    let secrets = |by_server: bool| {
        let mut key = [u8::from(by_server); 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        let secrets = ConnectionTrafficSecrets::Aes256Gcm {
            key: key.into(),
            iv: [7; 12].into(),
        };
        (0, secrets)
    };
    let version = ProtocolVersion::TLSv1_3;
    Ok((
        Opener::new(version, secrets(!is_server))?,
        Sealer::new(version, secrets(is_server), records_max(SUITE))?,
    ))
}
