//! Which endpoint a path leads to.

macro_rules! endpoints {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Everything that a path may lead to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Endpoint {
            $($(#[$doc])* $variant,)*
        }

        impl Endpoint {
            /// All endpoints, in the order of [`Endpoint::index`].
            pub const ALL: &'static [Endpoint] = &[$(Endpoint::$variant,)*];

            /// The name in statistics, which for all but personalities is the first segment of
            /// the path.
            pub fn name(self) -> &'static str {
                match self {
                    $(Endpoint::$variant => $name,)*
                }
            }
        }
    };
}

endpoints! {
    /// `/ok`: a fixed small answer, for measuring.
    Ok = "ok",
    /// `/healthz`: the same, without the key.
    Healthz = "healthz",
    /// `/echo`: exactly what arrived, as JSON.
    Echo = "echo",
    /// `/bytes/N`: N bytes of a known pattern.
    Bytes = "bytes",
    /// `/upload`: length and digest of the body.
    Upload = "upload",
    /// `/sse`: server-sent events.
    Sse = "sse",
    /// `/ws`: a WebSocket that echoes.
    WebSocket = "ws",
    /// `/status/N`: an answer with this status.
    Status = "status",
    /// `/delay/MS`: an answer that takes its time.
    Delay = "delay",
    /// `/headers?Name=value`: an answer with these fields.
    Headers = "headers",
    /// `/redirect?to=URL`: an answer that leads elsewhere.
    Redirect = "redirect",
    /// `/leak`: the presented key, given back in places where real APIs do that.
    Leak = "leak",
    /// `/trailers`: a chunked answer with trailers.
    Trailers = "trailers",
    /// `/hints/N`: N interim answers before the final one.
    Hints = "hints",
    /// `/hangup/MS`: promises to keep the connection, and closes it.
    Hangup = "hangup",
    /// `/early/N`: 413 after N bytes of the body, the rest unread.
    Early = "early",
    /// `/drop`: the connection ends without an answer.
    Drop = "drop",
    /// `/truncate/N`: half of what was announced.
    Truncate = "truncate",
    /// `/slow-head/MS`: a response head in small pieces.
    SlowHead = "slow-head",
    /// An endpoint of a personality.
    Personality = "personality",
    /// Nothing is known about this path.
    Unknown = "unknown",
}

impl Endpoint {
    /// Its place in [`Endpoint::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Finds the endpoint, and the rest of the path behind its first segment.
    pub fn find(path: &[u8]) -> (Endpoint, &[u8]) {
        let Some(path) = path.strip_prefix(b"/") else {
            return (Endpoint::Unknown, b"");
        };
        let end = memchr::memchr(b'/', path).unwrap_or(path.len());
        let rest = path.get(end + 1..).unwrap_or(b"");
        let endpoint = Endpoint::ALL
            .iter()
            .copied()
            .find(|endpoint| endpoint.name().as_bytes() == &path[..end])
            .filter(|endpoint| !matches!(endpoint, Endpoint::Personality | Endpoint::Unknown))
            .unwrap_or(Endpoint::Unknown);
        (endpoint, rest)
    }

    /// Whether the body is read before the answer begins.
    pub fn reads_body(self) -> bool {
        !matches!(self, Endpoint::WebSocket | Endpoint::Early | Endpoint::Drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_endpoints_by_their_first_segment() {
        assert_eq!(Endpoint::find(b"/ok"), (Endpoint::Ok, &b""[..]));
        assert_eq!(Endpoint::find(b"/bytes/12"), (Endpoint::Bytes, &b"12"[..]));
        assert_eq!(Endpoint::find(b"/bytes"), (Endpoint::Bytes, &b""[..]));
        assert_eq!(Endpoint::find(b"/bytesx"), (Endpoint::Unknown, &b""[..]));
        assert_eq!(Endpoint::find(b"/unknown").0, Endpoint::Unknown);
        assert_eq!(Endpoint::find(b"/personality").0, Endpoint::Unknown);
        assert_eq!(Endpoint::find(b"*").0, Endpoint::Unknown);
    }

    #[test]
    fn an_endpoint_knows_its_place() {
        for (index, endpoint) in Endpoint::ALL.iter().enumerate() {
            assert_eq!(endpoint.index(), index);
        }
    }
}
