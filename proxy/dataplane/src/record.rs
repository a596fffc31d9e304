//! [`Sealer`] and [`Opener`]: protecting TLS records once a handshake is over.
//!
//! rustls makes the handshake and derives the keys; what follows is one AEAD call
//! per record (RFC 8446, section 5.2; RFC 5246, section 6.2.3.3 with RFC 5288 and
//! RFC 7905). It is done here because here a record is opened where it was
//! received and sealed where it is sent from: rustls's own connection copies each
//! record three times on its way through and keeps a buffer of 4 KiB for as long
//! as the connection lives.
//!
//! What it lacks: handshakes, alerts, and any opinion on what a record says.
//! Those are in [`crate::session`].

use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, Error, PeerMisbehaved, ProtocolVersion};

use crate::buffer::make_room;

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 5;

/// Plaintext in one record at most (RFC 8446, section 5.1). More becomes several.
pub const PLAIN_BYTES_MAX: usize = 16 * 1024;

/// What a record's header may announce at most: TLS 1.2's bound, the larger one.
/// A longer record ends the connection.
pub const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX + 2048;

/// The authentication tag of every AEAD that we speak.
const TAG_BYTES: usize = 16;

/// The part of TLS 1.2's AES-GCM nonce that travels in the record.
const EXPLICIT_NONCE_BYTES: usize = 8;

/// What a record adds to its plaintext at most: header, nonce, content type, tag.
pub const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + EXPLICIT_NONCE_BYTES + 1 + TAG_BYTES;

/// No sequence number comes near its end, whatever the cipher allows.
const SEQUENCE_MAX: u64 = 0xffff_ffff_ffff_0000;

/// What a record carries (RFC 8446, section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    ChangeCipherSpec,
    Alert,
    Handshake,
    Data,
}

impl Content {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            20 => Some(Content::ChangeCipherSpec),
            21 => Some(Content::Alert),
            22 => Some(Content::Handshake),
            23 => Some(Content::Data),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Content::ChangeCipherSpec => 20,
            Content::Alert => 21,
            Content::Handshake => 22,
            Content::Data => 23,
        }
    }
}

/// How long the record at the front of `bytes` is, its header included; `None` while
/// the header is not complete.
///
/// # Errors
/// What stands there is not the header of a record, or announces too much.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(&[content, major, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    if Content::from_byte(content).is_none() {
        return Err(rustls::InvalidMessage::InvalidContentType.into());
    }
    if major != 3 {
        return Err(rustls::InvalidMessage::UnknownProtocolVersion.into());
    }
    let body = usize::from(u16::from_be_bytes([high, low]));
    if body > BODY_BYTES_MAX {
        return Err(rustls::InvalidMessage::MessageTooLarge.into());
    }
    Ok(Some(HEADER_BYTES + body))
}

/// Where the nonce and the additional data come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// TLS 1.3: the content type is inside.
    Inner,
    /// TLS 1.2 with AES-GCM: part of the nonce is in the record.
    Explicit,
    /// TLS 1.2 with ChaCha20-Poly1305: the nonce is as in TLS 1.3.
    Implicit,
}

impl Scheme {
    /// Bytes between a record's header and its ciphertext.
    fn prefix_bytes(self) -> usize {
        match self {
            Scheme::Explicit => EXPLICIT_NONCE_BYTES,
            Scheme::Inner | Scheme::Implicit => 0,
        }
    }
}

/// One direction's key and position. The key lives in aws-lc's own memory, which is
/// cleansed when it is freed; it has no `Debug`.
struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    scheme: Scheme,
}

impl Keys {
    /// # Errors
    /// A cipher or a version that we do not speak.
    fn new(
        version: ProtocolVersion,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        // The secrets wipe themselves when they are dropped at the end of this.
        let (algorithm, key, iv, gcm) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv, true),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv, true),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&CHACHA20_POLY1305, key, iv, false)
            }
            _ => return Err(Error::General("a cipher suite that is not known".into())),
        };
        let scheme = match version {
            ProtocolVersion::TLSv1_3 => Scheme::Inner,
            ProtocolVersion::TLSv1_2 if gcm => Scheme::Explicit,
            ProtocolVersion::TLSv1_2 => Scheme::Implicit,
            _ => return Err(Error::General("a TLS version that is not known".into())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| Error::General("a key of the wrong length".into()))?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_| Error::General("an IV of the wrong length".into()))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            sequence,
            scheme,
        })
    }

    /// RFC 8446, section 5.3: the sequence number, padded on the left, XOR the IV.
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.sequence.to_be_bytes())
        {
            *byte ^= of_sequence;
        }
        nonce
    }

    /// RFC 5246, section 6.2.3.3: of the record's header, its type and its version.
    fn additional_data_of_1_2(
        &self,
        [content, major, minor]: [u8; 3],
        plain_bytes: usize,
    ) -> [u8; 13] {
        let mut data = [0; 13];
        data[..8].copy_from_slice(&self.sequence.to_be_bytes());
        data[8..11].copy_from_slice(&[content, major, minor]);
        data[11..].copy_from_slice(&length_bytes(plain_bytes));
        data
    }
}

fn length_bytes(length: usize) -> [u8; 2] {
    // At most `BODY_BYTES_MAX`, everywhere.
    (length as u16).to_be_bytes()
}

/// Protects what is sent.
pub struct Sealer {
    keys: Keys,
    /// Records that may be sealed with this key (RFC 8446, section 5.5).
    records_max: u64,
}

impl Sealer {
    /// `records_max` is the cipher suite's confidentiality limit.
    ///
    /// # Errors
    /// A cipher or a version that we do not speak.
    pub fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
        records_max: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            keys: Keys::new(version, secrets)?,
            records_max: records_max.min(SEQUENCE_MAX),
        })
    }

    /// Whether the next record is the last one that this key may protect: a key
    /// update or the end.
    pub fn is_nearly_spent(&self) -> bool {
        self.keys.sequence + 1 >= self.records_max
    }

    /// Lets the key protect this many records more.
    #[cfg(test)]
    pub fn spend_all_but(&mut self, records: u64) {
        self.records_max = self.keys.sequence + records;
    }

    /// Appends one record to `out` whose plaintext are the `plain_bytes` bytes, at
    /// most [`PLAIN_BYTES_MAX`], that `fill` appends.
    ///
    /// # Errors
    /// The key is spent; `out` is as it was then.
    pub fn seal(
        &mut self,
        content: Content,
        plain_bytes: usize,
        out: &mut Vec<u8>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Error> {
        if self.keys.sequence >= self.records_max {
            return Err(Error::EncryptError);
        }
        let keys = &mut self.keys;
        // Room first: a buffer that grew now would leave plaintext, a key perhaps, in
        // the memory that it moved out of.
        make_room(out, plain_bytes + OVERHEAD_BYTES_MAX);
        let start = out.len();
        let nonce = keys.nonce();
        let outer = match keys.scheme {
            Scheme::Inner => Content::Data.byte(),
            Scheme::Explicit | Scheme::Implicit => content.byte(),
        };
        out.extend_from_slice(&[outer, 3, 3, 0, 0]);
        if keys.scheme == Scheme::Explicit {
            out.extend_from_slice(&nonce[NONCE_LEN - EXPLICIT_NONCE_BYTES..]);
        }
        let at = out.len();
        fill(out);
        debug_assert_eq!(out.len() - at, plain_bytes);
        debug_assert!(plain_bytes <= PLAIN_BYTES_MAX);
        let mut tail = [0; 1 + TAG_BYTES];
        let (inner, tail): (&[u8], &mut [u8]) = match keys.scheme {
            Scheme::Inner => (&[content.byte()], &mut tail),
            Scheme::Explicit | Scheme::Implicit => (&[], &mut tail[..TAG_BYTES]),
        };
        let body_bytes = at - start - HEADER_BYTES + plain_bytes + tail.len();
        out[start + 3..start + HEADER_BYTES].copy_from_slice(&length_bytes(body_bytes));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = match keys.scheme {
            Scheme::Inner => {
                // RFC 8446, section 5.2: the header as it is sent.
                let header = [outer, 3, 3, out[start + 3], out[start + 4]];
                let text = &mut out[at..];
                keys.key
                    .seal_in_place_scatter(nonce, Aad::from(header), text, inner, tail)
            }
            Scheme::Explicit | Scheme::Implicit => {
                let data = keys.additional_data_of_1_2([outer, 3, 3], plain_bytes);
                let text = &mut out[at..];
                keys.key
                    .seal_in_place_scatter(nonce, Aad::from(data), text, inner, tail)
            }
        };
        if sealed.is_err() {
            out[start..].fill(0);
            out.truncate(start);
            return Err(Error::EncryptError);
        }
        out.extend_from_slice(tail);
        keys.sequence += 1;
        Ok(())
    }
}

/// Opens what was received.
pub struct Opener(Keys);

impl Opener {
    /// # Errors
    /// A cipher or a version that we do not speak.
    pub fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        Keys::new(version, secrets).map(Self)
    }

    /// Opens one whole record where it lies (see [`length`]). Returns what it carries,
    /// and which part of `record` is the plaintext now.
    ///
    /// # Errors
    /// [`Error::DecryptError`] if it was not made by the peer, or is not the next one;
    /// the connection must end. `record` holds no plaintext then.
    pub fn open(&mut self, record: &mut [u8]) -> Result<(Content, Range<usize>), Error> {
        let keys = &mut self.0;
        let (header, body) = record
            .split_first_chunk_mut::<HEADER_BYTES>()
            .ok_or(Error::DecryptError)?;
        let outer = Content::from_byte(header[0]).ok_or(Error::DecryptError)?;
        let prefix_bytes = keys.scheme.prefix_bytes();
        let cipher_bytes = body
            .len()
            .checked_sub(prefix_bytes + TAG_BYTES)
            .ok_or(Error::DecryptError)?;
        let plain_bytes = match keys.scheme {
            Scheme::Inner => {
                // RFC 8446, section 5: nothing travels unprotected after a handshake.
                if outer != Content::Data {
                    return Err(Error::InappropriateMessage {
                        expect_types: vec![rustls::ContentType::ApplicationData],
                        got_type: rustls::ContentType::from(outer.byte()),
                    });
                }
                let nonce = Nonce::assume_unique_for_key(keys.nonce());
                keys.key
                    .open_in_place(nonce, Aad::from(*header), body)
                    .map_err(|_| Error::DecryptError)?
                    .len()
            }
            Scheme::Explicit | Scheme::Implicit => {
                let mut nonce = keys.nonce();
                if keys.scheme == Scheme::Explicit {
                    nonce[..4].copy_from_slice(&keys.iv[..4]);
                    nonce[4..].copy_from_slice(&body[..EXPLICIT_NONCE_BYTES]);
                }
                let data =
                    keys.additional_data_of_1_2([header[0], header[1], header[2]], cipher_bytes);
                let nonce = Nonce::assume_unique_for_key(nonce);
                keys.key
                    .open_in_place(nonce, Aad::from(data), &mut body[prefix_bytes..])
                    .map_err(|_| Error::DecryptError)?
                    .len()
            }
        };
        keys.sequence += 1;
        if keys.sequence >= SEQUENCE_MAX {
            return Err(Error::DecryptError);
        }
        let at = HEADER_BYTES + prefix_bytes;
        if keys.scheme != Scheme::Inner {
            if plain_bytes > PLAIN_BYTES_MAX {
                return Err(Error::PeerSentOversizedRecord);
            }
            return Ok((outer, at..at + plain_bytes));
        }
        // RFC 8446, section 5.4: padding is zeros behind the type, which is not zero.
        if plain_bytes > PLAIN_BYTES_MAX + 1 {
            return Err(Error::PeerSentOversizedRecord);
        }
        let plain = &record[at..at + plain_bytes];
        let inner_at = plain
            .iter()
            .rposition(|&byte| byte != 0)
            .ok_or(PeerMisbehaved::IllegalTlsInnerPlaintext)?;
        let content = Content::from_byte(plain[inner_at])
            .ok_or(rustls::InvalidMessage::InvalidContentType)?;
        Ok((content, at..at + inner_at))
    }
}

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
#[cfg(test)]
mod tests;
