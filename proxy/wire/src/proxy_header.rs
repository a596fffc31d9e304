//! [`ProxyHeader`]: what a load balancer says of a connection in front of its first byte.
//!
//! The PROXY protocol, version 1 (a line of text) and version 2 (binary), as
//! `doc/proxy-protocol.txt` of HAProxy describes it. Whether the peer is to be believed is
//! not decided here.
//!
//! What it lacks: the extensions behind the addresses (TLVs), which are skipped, their
//! checksum among them; UDP and local sockets, whose addresses say nothing of a caller.

use core::net::{IpAddr, SocketAddr};

/// The longest line of version 1, its CRLF included (section 2.1).
const V1_BYTES_MAX: usize = 107;

/// Bytes behind the fixed part of version 2 that are taken: the addresses and what is
/// skipped. A longer header is refused.
const V2_BYTES_MAX: usize = 2048;

/// What version 2 begins with (section 2.2).
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The signature, version and command, family, and length.
const V2_FIXED_BYTES: usize = 16;

/// A header that was read, or as much of it as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// More bytes are needed.
    Partial,
    /// The whole of it.
    Complete {
        /// Its bytes; what follows is the caller's.
        length: usize,
        /// Where the caller is; `None` where the balancer speaks for itself (a health
        /// check), or does not know.
        source: Option<SocketAddr>,
    },
}

/// Why bytes are no such header. What a peer sends in place of one says nothing of what is wrong
/// with it, so there is one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAProxyHeader;

impl ProxyHeader {
    /// Reads the header that `bytes` begin with.
    ///
    /// # Errors
    /// Anything else, as soon as it can be told.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAProxyHeader> {
        if bytes.first() == Some(&V2_SIGNATURE[0]) {
            return v2(bytes);
        }
        v1(bytes)
    }
}

fn v1(bytes: &[u8]) -> Result<ProxyHeader, NotAProxyHeader> {
    const START: &[u8] = b"PROXY ";
    let seen = bytes.len().min(START.len());
    if bytes[..seen] != START[..seen] {
        return Err(NotAProxyHeader);
    }
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return match window.len() {
            V1_BYTES_MAX => Err(NotAProxyHeader),
            _ => Ok(ProxyHeader::Partial),
        };
    };
    let line = core::str::from_utf8(&bytes[START.len()..end]).map_err(|_| NotAProxyHeader)?;
    let mut words = line.split(' ');
    let source = match words.next() {
        // Whatever else the line says must be ignored.
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let mut address = || {
                let address: IpAddr = words.next()?.parse().ok()?;
                (address.is_ipv4() == (family == "TCP4")).then_some(address)
            };
            let (source, _) = address().zip(address()).ok_or(NotAProxyHeader)?;
            let mut port = || {
                let text = words.next()?;
                let plain = text.bytes().all(|byte| byte.is_ascii_digit())
                    && (text == "0" || !text.starts_with('0'));
                text.parse::<u16>().ok().filter(|_| plain)
            };
            let (port, _) = port().zip(port()).ok_or(NotAProxyHeader)?;
            if words.next().is_some() {
                return Err(NotAProxyHeader);
            }
            Some(SocketAddr::new(source, port))
        }
        _ => return Err(NotAProxyHeader),
    };
    Ok(ProxyHeader::Complete {
        length: end + 2,
        source,
    })
}

fn v2(bytes: &[u8]) -> Result<ProxyHeader, NotAProxyHeader> {
    let seen = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..seen] != V2_SIGNATURE[..seen] {
        return Err(NotAProxyHeader);
    }
    let Some((fixed, behind)) = bytes.split_first_chunk::<V2_FIXED_BYTES>() else {
        return Ok(ProxyHeader::Partial);
    };
    let [command, family, high, low] = [fixed[12], fixed[13], fixed[14], fixed[15]];
    let length = usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 || command & 0xf > 1 || length > V2_BYTES_MAX {
        return Err(NotAProxyHeader);
    }
    let Some(told) = behind.get(..length) else {
        return Ok(ProxyHeader::Partial);
    };
    let source = match (command & 0xf, family) {
        // LOCAL: the connection is the balancer's own.
        (0, _) => None,
        // Over TCP: source and destination, then their ports.
        (_, 0x11) => Some(source::<4>(told, 8)?),
        (_, 0x21) => Some(source::<16>(told, 32)?),
        (_, 0x00) => None,
        _ => return Err(NotAProxyHeader),
    };
    Ok(ProxyHeader::Complete {
        length: V2_FIXED_BYTES + length,
        source,
    })
}

/// The address in front, and its port behind both addresses.
fn source<const BYTES: usize>(told: &[u8], port_at: usize) -> Result<SocketAddr, NotAProxyHeader>
where
    [u8; BYTES]: Into<IpAddr>,
{
    let address = told.first_chunk::<BYTES>().ok_or(NotAProxyHeader)?;
    // Both ports belong to it, though one is read.
    let ports = told.get(port_at..port_at + 4).ok_or(NotAProxyHeader)?;
    let port = u16::from_be_bytes([ports[0], ports[1]]);
    Ok(SocketAddr::new((*address).into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole it is `expected`, with something behind it too; cut anywhere it is partial.
    #[track_caller]
    fn check(header: &[u8], expected: Option<&str>) {
        let expected = ProxyHeader::Complete {
            length: header.len(),
            source: expected.map(|text| text.parse().expect("an address")),
        };
        assert_eq!(ProxyHeader::parse(header), Ok(expected));
        let more = [header, b"\x16\x03\x01"].concat();
        assert_eq!(ProxyHeader::parse(&more), Ok(expected));
        for cut in 0..header.len() {
            assert_eq!(
                ProxyHeader::parse(&header[..cut]),
                Ok(ProxyHeader::Partial),
                "cut at {cut}"
            );
        }
    }

    #[track_caller]
    fn refused(header: &[u8]) {
        assert_eq!(
            ProxyHeader::parse(header),
            Err(NotAProxyHeader),
            "{:?}",
            String::from_utf8_lossy(header)
        );
    }

    fn binary(command: u8, family: u8, told: &[u8]) -> Vec<u8> {
        let length = u16::try_from(told.len()).expect("short").to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, told].concat()
    }

    #[test]
    fn version_1() {
        check(
            b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n",
            Some("203.0.113.7:56324"),
        );
        check(
            b"PROXY TCP6 2001:db8::7 fd00::1 1 65535\r\n",
            Some("[2001:db8::7]:1"),
        );
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None);
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 203.0.113.7 10.0.0.1 56324 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443 \r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 65536\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 +6324 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 056324 443\r\n",
            "PROXY TCP4 203.0.113.07 10.0.0.1 56324 443\r\n",
            "PROXY TCP4 2001:db8::7 fd00::1 1 2\r\n",
            "PROXY TCP6 203.0.113.7 10.0.0.1 56324 443\r\n",
            "PROXY  TCP4 203.0.113.7 10.0.0.1 56324 443\r\n",
            "PROXY UDP4 203.0.113.7 10.0.0.1 56324 443\r\n",
            "PROXY \r\n",
        ] {
            refused(wrong.as_bytes());
        }
        refused(&[b"PROXY ".as_slice(), &[b'x'; 101]].concat());
    }

    #[test]
    fn version_2() {
        let v4 = [
            &[203, 0, 113, 7, 10, 0, 0, 1][..],
            &56324u16.to_be_bytes(),
            &[1, 187],
        ]
        .concat();
        check(&binary(0x21, 0x11, &v4), Some("203.0.113.7:56324"));
        // Extensions behind the addresses.
        let long = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        check(&binary(0x21, 0x11, &long), Some("203.0.113.7:56324"));
        let mut v6 = [0u8; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[15] = 7;
        v6[33] = 9;
        check(&binary(0x21, 0x21, &v6), Some("[2001:db8::7]:9"));
        check(&binary(0x20, 0x00, &[]), None);
        check(&binary(0x20, 0x11, &v4), None);
        check(&binary(0x21, 0x00, &[]), None);
        refused(&binary(0x21, 0x11, &v4[..11]));
        refused(&binary(0x21, 0x21, &v6[..35]));
        refused(&binary(0x11, 0x11, &v4));
        refused(&binary(0x22, 0x11, &v4));
        refused(&binary(0x21, 0x12, &v4));
        refused(&binary(0x21, 0x31, &[0; 216]));
        refused(&binary(0x21, 0x11, &[0; V2_BYTES_MAX + 1]));
        refused(b"\r\n\r\nGET");
    }
}
