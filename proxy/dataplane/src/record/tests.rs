use super::*;
use rustls::InvalidMessage;

fn keys(seed: u8) -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm {
        key: [seed; 32].into(),
        iv: [seed; NONCE_LEN].into(),
    }
}

fn pair(version: ProtocolVersion) -> (Sealer, Opener) {
    (
        Sealer::new(version, (0, keys(7)), u64::MAX).expect("a good key"),
        Opener::new(version, (0, keys(7))).expect("a good key"),
    )
}

fn seal(sealer: &mut Sealer, content: Content, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer
        .seal(content, plain.len(), &mut out, |out| {
            out.extend_from_slice(plain);
        })
        .expect("the key is fresh");
    out
}

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3];

#[test]
fn what_was_sealed_is_opened() {
    for version in VERSIONS {
        let (mut sealer, mut opener) = pair(version);
        for content in [Content::Data, Content::Handshake, Content::Alert] {
            for length in [0, 1, 15, 16, 17, PLAIN_BYTES_MAX] {
                let plain = vec![b'p'; length];
                let mut record = seal(&mut sealer, content, &plain);
                assert_eq!(super::length(&record), Ok(Some(record.len())));
                assert!(record.len() <= length + OVERHEAD_BYTES_MAX);
                let (opened, at) = opener.open(&mut record).expect("it is the next one");
                assert_eq!((opened, &record[at]), (content, &plain[..]));
            }
        }
    }
}

/// Whatever is changed, left out, sent again or swapped is noticed.
#[test]
fn nothing_but_the_next_record_is_opened() {
    for version in VERSIONS {
        let (mut sealer, mut opener) = pair(version);
        let first = seal(&mut sealer, Content::Data, b"first");
        let second = seal(&mut sealer, Content::Data, b"second");
        assert!(opener.open(&mut second.clone()).is_err(), "out of turn");
        for at in 0..first.len() {
            for bit in 0..8 {
                let mut forged = first.clone();
                forged[at] ^= 1 << bit;
                let opened = opener.open(&mut forged);
                // In TLS 1.2 the length is that of what was given, by which it was cut off.
                let ignored = version == ProtocolVersion::TLSv1_2 && (3..5).contains(&at);
                assert_eq!(opened.is_ok(), ignored, "byte {at}, bit {bit}");
                if opened.is_ok() {
                    opener.0.sequence -= 1;
                } else {
                    assert!(!forged.windows(5).any(|part| part == b"first"));
                }
            }
        }
        for length in 0..first.len() {
            assert!(opener.open(&mut first[..length].to_vec()).is_err());
        }
        assert!(opener.open(&mut first.clone()).is_ok());
        assert!(opener.open(&mut first.clone()).is_err(), "again");
        assert!(opener.open(&mut second.clone()).is_ok());
    }
}

#[test]
fn a_spent_key_protects_nothing() {
    let (mut sealer, _) = pair(ProtocolVersion::TLSv1_2);
    sealer.spend_all_but(2);
    assert!(!sealer.is_nearly_spent());
    seal(&mut sealer, Content::Data, b"one");
    assert!(sealer.is_nearly_spent());
    seal(&mut sealer, Content::Data, b"two");
    let mut out = b"before".to_vec();
    let refused = sealer.seal(Content::Data, 5, &mut out, |out| {
        out.extend_from_slice(b"three");
    });
    assert_eq!(refused, Err(Error::EncryptError));
    assert_eq!(out, b"before");
}

/// Memory that a growing buffer moves out of would keep what was written to it.
#[test]
fn plaintext_is_written_where_it_stays() {
    for version in VERSIONS {
        let (mut sealer, _) = pair(version);
        let mut out = Vec::new();
        for length in [1, 300, 5_000, PLAIN_BYTES_MAX] {
            let mut place = std::ptr::null();
            sealer
                .seal(Content::Data, length, &mut out, |out| {
                    place = out.as_ptr();
                    out.resize(out.len() + length, b'k');
                })
                .expect("the key is fresh");
            assert_eq!(out.as_ptr(), place);
            assert!(!out.windows(8).any(|part| part == b"kkkkkkkk"));
        }
    }
}

#[test]
fn padding_is_not_data() {
    // RFC 8446, section 5.4. A sealer that pads, by hand.
    let (mut sealer, mut opener) = pair(ProtocolVersion::TLSv1_3);
    let check = |sealer: &mut Sealer, opener: &mut Opener, plain: &[u8], tail: Content| {
        let mut record = seal(sealer, tail, plain);
        opener
            .open(&mut record)
            .map(|(content, at)| (content, record[at].to_vec()))
    };
    // Its own type byte is the last one; a type in front and zeros behind cannot be
    // made by it, so the zero is the type that is refused.
    assert_eq!(
        check(&mut sealer, &mut opener, b"a\x00\x00", Content::Data),
        Ok((Content::Data, b"a\x00\x00".to_vec())),
    );
    let mut keys = Keys::new(ProtocolVersion::TLSv1_3, (1, keys(7))).expect("a good key");
    let mut padded = |plain: &[u8]| {
        let body = (plain.len() + TAG_BYTES) as u16;
        let mut record = vec![23, 3, 3, (body >> 8) as u8, body as u8];
        let header = Aad::from(<[u8; 5]>::try_from(&record[..]).expect("five"));
        let mut text = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(keys.nonce());
        keys.key
            .seal_in_place_append_tag(nonce, header, &mut text)
            .expect("a good key");
        keys.sequence += 1;
        record.extend_from_slice(&text);
        record
    };
    let mut record = padded(b"event\x17\x00\x00\x00");
    let (content, at) = opener.open(&mut record).expect("padded");
    assert_eq!((content, &record[at]), (Content::Data, &b"event"[..]));
    let nothing = opener.open(&mut padded(&[0; 9]));
    assert_eq!(
        nothing,
        Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into())
    );
    let unknown = opener.open(&mut padded(b"event\x63"));
    assert_eq!(unknown, Err(InvalidMessage::InvalidContentType.into()));
    let mut most = vec![b'x'; PLAIN_BYTES_MAX];
    most.push(23);
    assert!(opener.open(&mut padded(&most)).is_ok());
    most.push(0);
    assert_eq!(
        opener.open(&mut padded(&most)),
        Err(Error::PeerSentOversizedRecord)
    );
}

/// RFC 8446, section 5: what is not protected is not from the peer.
#[test]
fn clear_text_is_not_taken_after_a_handshake() {
    let (_, mut opener) = pair(ProtocolVersion::TLSv1_3);
    for clear in [&[21, 3, 3, 0, 2, 1, 0][..], &[20, 3, 3, 0, 1, 1]] {
        assert!(opener.open(&mut clear.to_vec()).is_err());
    }
    let mut long = vec![21, 3, 3, 0, 40];
    long.extend_from_slice(&[0; 40]);
    let refused = opener.open(&mut long);
    assert!(matches!(refused, Err(Error::InappropriateMessage { .. })));
}

#[test]
fn headers() {
    let most = (BODY_BYTES_MAX as u16).to_be_bytes();
    let over = (BODY_BYTES_MAX as u16 + 1).to_be_bytes();
    for short in 0..HEADER_BYTES {
        assert_eq!(length(&[23, 3, 3, 0, 9][..short]), Ok(None));
    }
    assert_eq!(length(&[23, 3, 3, 0, 9]), Ok(Some(14)));
    assert_eq!(
        length(&[22, 3, 1, most[0], most[1], 9]),
        Ok(Some(HEADER_BYTES + BODY_BYTES_MAX))
    );
    for (bad, why) in [
        ([19, 3, 3, 0, 9], InvalidMessage::InvalidContentType),
        ([24, 3, 3, 0, 9], InvalidMessage::InvalidContentType),
        (
            [b'H', b'T', b'T', b'P', b'/'],
            InvalidMessage::InvalidContentType,
        ),
        ([23, 2, 3, 0, 9], InvalidMessage::UnknownProtocolVersion),
        (
            [23, 3, 3, over[0], over[1]],
            InvalidMessage::MessageTooLarge,
        ),
        ([23, 3, 3, 255, 255], InvalidMessage::MessageTooLarge),
    ] {
        assert_eq!(length(&bad), Err(why.into()));
    }
}
