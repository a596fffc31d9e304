//! What must hold of [`length`](super::length) and [`Opener`] for every input.
//!
//! The records are made here by a plain reading of the RFCs that shares nothing with
//! [`Sealer`](super::Sealer) but aws-lc, so that their contents may be what no sealer would send.

use aws_lc_rs::aead::Algorithm;

use super::*;
use crate::fuzz::Input;

/// A header is what a plain reading says, whatever is behind it.
pub fn length(data: &[u8]) {
    let expected = match data {
        [20..=23, 3, _, high, low, ..] => {
            let body = usize::from(*high) * 256 + usize::from(*low);
            // RFC 5246, section 6.2.3: 2^14 + 2048.
            if body <= 18_432 {
                Ok(Some(5 + body))
            } else {
                Err(())
            }
        }
        [_, _, _, _, _, ..] => Err(()),
        _ => Ok(None),
    };
    assert_eq!(super::length(data).map_err(drop), expected);
    if let Some(header) = data.get(..HEADER_BYTES) {
        assert_eq!(super::length(header).map_err(drop), expected);
    }
}

/// A cipher of a version of TLS, with keys that are always the same.
#[derive(Clone, Copy)]
struct Suite {
    version: ProtocolVersion,
    algorithm: &'static Algorithm,
}

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2];
const IV: [u8; NONCE_LEN] = [0x5a; NONCE_LEN];
const KEY: [u8; 32] = [0x17; 32];

impl Suite {
    fn of(input: &mut Input<'_>) -> Self {
        Self {
            version: input.pick(&VERSIONS),
            algorithm: input.pick(&[&AES_256_GCM, &CHACHA20_POLY1305]),
        }
    }

    fn is_1_3(self) -> bool {
        self.version == ProtocolVersion::TLSv1_3
    }

    /// Whether part of the nonce travels in the record.
    fn is_explicit(self) -> bool {
        !self.is_1_3() && *self.algorithm != CHACHA20_POLY1305
    }

    fn opener(self, sequence: u64) -> Opener {
        let (key, iv) = (KEY.into(), IV.into());
        let secrets = if *self.algorithm == AES_256_GCM {
            ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        } else {
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }
        };
        Opener::new(self.version, (sequence, secrets)).expect("a cipher that we speak")
    }

    /// The record of this content type and with this inside, the peer's `sequence`th.
    fn protect(self, sequence: u64, outer: u8, inside: &[u8], explicit: [u8; 8]) -> Vec<u8> {
        let key = UnboundKey::new(self.algorithm, &KEY).expect("a key of its length");
        let mut nonce = IV;
        let mut prefix: &[u8] = &[];
        if self.is_explicit() {
            nonce[4..].copy_from_slice(&explicit);
            prefix = &explicit;
        } else {
            for (byte, of_sequence) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
                *byte ^= of_sequence;
            }
        }
        let [high, low] = ((prefix.len() + inside.len() + TAG_BYTES) as u16).to_be_bytes();
        let header = [outer, 3, 3, high, low];
        let [high, low] = (inside.len() as u16).to_be_bytes();
        let data = if self.is_1_3() {
            header.to_vec()
        } else {
            [&sequence.to_be_bytes()[..], &[outer, 3, 3, high, low]].concat()
        };
        let mut text = inside.to_vec();
        LessSafeKey::new(key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(data),
                &mut text,
            )
            .expect("it is not too long");
        [&header, prefix, &text].concat()
    }

    /// What the record says, by a plain reading; `None` if it must be refused.
    fn reading(self, outer: u8, inside: &[u8]) -> Option<(Content, &[u8])> {
        let content = |byte| match byte {
            20 => Some(Content::ChangeCipherSpec),
            21 => Some(Content::Alert),
            22 => Some(Content::Handshake),
            23 => Some(Content::Data),
            _ => None,
        };
        if !self.is_1_3() {
            return (inside.len() <= 16_384).then_some((content(outer)?, inside));
        }
        if outer != 23 || inside.len() > 16_385 {
            return None;
        }
        let mut text = inside;
        while let [front @ .., 0] = text {
            text = front;
        }
        let (&inner, text) = text.split_last()?;
        Some((content(inner)?, text))
    }
}

/// A record is opened to what a plain reading of it gives, in its turn and as it was sent; whatever
/// was done to it on the way is noticed, shows nothing, and does not keep the true one from being
/// opened.
///
/// The input: version, cipher, where in the sequence, the content type, zeros behind the inside (two
/// bytes), what is done to the record and where (two bytes) and with what, then the inside.
pub fn open(data: &[u8]) {
    let mut input = Input::new(data);
    let suite = Suite::of(&mut input);
    let sequence = input.pick(&[0, 1, 255, u64::from(u32::MAX), SEQUENCE_MAX - 2]);
    let outer = input.byte();
    let zeros = input.number() % (BODY_BYTES_MAX + 1);
    let (kind, at, with) = (input.byte(), input.number(), input.byte());
    let explicit = [with; EXPLICIT_NONCE_BYTES];
    let mut inside = input.rest().to_vec();
    let room = BODY_BYTES_MAX - EXPLICIT_NONCE_BYTES - TAG_BYTES;
    inside.truncate(room);
    inside.resize((inside.len() + zeros).min(room), 0);

    // Bytes that nobody protected, as they are: never opened, in whatever place they are.
    let mut bare = [
        &[outer, 3, 3][..],
        &(inside.len() as u16).to_be_bytes(),
        &inside,
    ]
    .concat();
    refuse(&mut suite.opener(sequence), &mut bare);

    let record = suite.protect(sequence, outer, &inside, explicit);
    let mut opener = suite.opener(sequence);
    let changed = change(&record, kind, at, with, || {
        suite.protect(sequence + 1, outer, &inside, explicit)
    });
    // The caller's part: what is given is whole, and no more than that.
    let is_whole = |bytes: &[u8]| super::length(bytes) == Ok(Some(bytes.len()));
    if let Some(mut changed) = changed.filter(|changed| is_whole(changed)) {
        refuse(&mut opener, &mut changed);
        // It is unreadable: zeros, or what was sent. Short texts may be in that by chance, and
        // what precedes the text is what we chose.
        let prefix = if suite.is_explicit() {
            EXPLICIT_NONCE_BYTES
        } else {
            0
        };
        let text = changed.get(HEADER_BYTES + prefix..).unwrap_or_default();
        let tells = inside.len() >= 8 && inside.iter().any(|&byte| byte != 0);
        assert!(!(tells && text.windows(inside.len()).any(|part| part == inside)));
    }
    if !is_whole(&record) {
        return;
    }
    let mut opened = record.clone();
    match (opener.open(&mut opened), suite.reading(outer, &inside)) {
        (Ok((content, at)), Some((expected, text))) => {
            assert_eq!((content, &opened[at]), (expected, text));
            // Once.
            refuse(&mut opener, &mut record.clone());
        }
        (Err(_), None) => {}
        (found, expected) => {
            let expected = expected.map(|(content, text)| (content, text.len()));
            panic!("{found:?}, and a plain reading says {expected:?}")
        }
    }
}

/// What is not the next record is refused, and moves nothing.
fn refuse(opener: &mut Opener, record: &mut [u8]) {
    let sequence = opener.0.sequence;
    assert!(opener.open(record).is_err(), "not made by the peer");
    assert_eq!(opener.0.sequence, sequence);
}

/// What somebody on the way does to a record; `None` if nothing comes of it.
fn change(
    record: &[u8],
    kind: u8,
    at: usize,
    with: u8,
    next: impl FnOnce() -> Vec<u8>,
) -> Option<Vec<u8>> {
    let mut changed = record.to_vec();
    let at = at % changed.len();
    match kind % 4 {
        0 => changed[at] ^= with,
        // With a header that fits again.
        1 => {
            changed.truncate(at.max(HEADER_BYTES));
            fit(&mut changed);
        }
        2 => {
            changed.insert(at.max(HEADER_BYTES), with);
            fit(&mut changed);
        }
        _ => changed = next(),
    }
    (changed != record).then_some(changed)
}

fn fit(record: &mut [u8]) {
    let body = (record.len() - HEADER_BYTES) as u16;
    record[3..HEADER_BYTES].copy_from_slice(&body.to_be_bytes());
}
