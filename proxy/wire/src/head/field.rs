//! Field lines and what the proxy knows of their names.

use crate::Span;
use crate::names::{eq_folded, fold};

/// One field line. Positions are within the head's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name.
    pub name: Span,
    /// The value, without the white space around it.
    pub value: Span,
    /// The whole line, CRLF included. The next field's line starts where this one ends.
    pub line: Span,
    /// Which name it is, if the proxy cares.
    pub id: FieldId,
}

/// The names that mean something to a proxy. Everything else is [`Other`](FieldId::Other).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldId {
    /// `Host`.
    Host,
    /// `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Connection`.
    Connection,
    /// `TE`.
    Te,
    /// `Trailer`.
    Trailer,
    /// `Upgrade`.
    Upgrade,
    /// `Keep-Alive`.
    KeepAlive,
    /// `Proxy-Connection`.
    ProxyConnection,
    /// `Proxy-Authenticate` and `Proxy-Authentication-Info`: for the next hop only.
    ProxyAuthenticate,
    /// `Proxy-Authorization`: for us, if for anyone.
    ProxyAuthorization,
    /// `HTTP2-Settings`, which only makes sense beside an `h2c` upgrade.
    Http2Settings,
    /// `Expect`.
    Expect,
    /// `CDN-Loop` (RFC 8586).
    CdnLoop,
    /// `Cookie`.
    Cookie,
    /// `Accept-Encoding`, in any `_`/`-` spelling.
    AcceptEncoding,
    /// `Content-Encoding`, in any `_`/`-` spelling.
    ContentEncoding,
    /// `Alt-Svc`: an upstream's invitation to go around the proxy.
    AltSvc,
    /// `Via`, `Forwarded`, `X-Forwarded-For`, `-Host` and `-Proto`, in any `_`/`-` spelling: where a
    /// request came from. In a request only the proxy may write these.
    Origin,
    /// `Claviger` or `Claviger-...`, in any `_`/`-` spelling: only the proxy may write these.
    Own,
    /// A name above spelt with `_`. Some servers fold it into the real one, so it never passes.
    Shadow,
    /// Any other name.
    Other,
}

/// Which name this is.
#[inline]
pub(crate) fn classify(name: &[u8]) -> FieldId {
    // The length tells most names apart, so most fields cost one jump.
    let id = match name.len() {
        2 if eq_folded(name, b"te") => return FieldId::Te,
        3 if eq_folded(name, b"via") => return FieldId::Origin,
        4 if eq_folded(name, b"host") => return FieldId::Host,
        6 if eq_folded(name, b"expect") => return FieldId::Expect,
        6 if eq_folded(name, b"cookie") => return FieldId::Cookie,
        7 if eq_folded(name, b"trailer") => return FieldId::Trailer,
        7 if eq_folded(name, b"upgrade") => return FieldId::Upgrade,
        7 if eq_folded(name, b"alt-svc") => FieldId::AltSvc,
        8 if eq_folded(name, b"cdn-loop") => FieldId::CdnLoop,
        9 if eq_folded(name, b"forwarded") => return FieldId::Origin,
        10 if eq_folded(name, b"connection") => return FieldId::Connection,
        10 if eq_folded(name, b"keep-alive") => FieldId::KeepAlive,
        14 if eq_folded(name, b"content-length") => FieldId::ContentLength,
        14 if eq_folded(name, b"http2-settings") => FieldId::Http2Settings,
        15 if eq_folded(name, b"accept-encoding") => return FieldId::AcceptEncoding,
        16 if eq_folded(name, b"content-encoding") => return FieldId::ContentEncoding,
        15 if eq_folded(name, b"x-forwarded-for") => return FieldId::Origin,
        16 if eq_folded(name, b"proxy-connection") => FieldId::ProxyConnection,
        16 if eq_folded(name, b"x-forwarded-host") => return FieldId::Origin,
        17 if eq_folded(name, b"x-forwarded-proto") => return FieldId::Origin,
        17 if eq_folded(name, b"transfer-encoding") => FieldId::TransferEncoding,
        18 if eq_folded(name, b"proxy-authenticate") => FieldId::ProxyAuthenticate,
        19 if eq_folded(name, b"proxy-authorization") => return FieldId::ProxyAuthorization,
        25 if eq_folded(name, b"proxy-authentication-info") => FieldId::ProxyAuthenticate,
        8.. if is_own(name) => return FieldId::Own,
        _ => return FieldId::Other,
    };
    if name.contains(&b'_') {
        FieldId::Shadow
    } else {
        id
    }
}

#[inline]
fn is_own(name: &[u8]) -> bool {
    const OWN: &[u8] = b"claviger";
    fold(name[0]) == OWN[0]
        && eq_folded(&name[..OWN.len()], OWN)
        && name.get(OWN.len()).is_none_or(|&byte| fold(byte) == b'-')
}
