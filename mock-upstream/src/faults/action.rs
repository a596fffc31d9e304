//! Everything that can go wrong, as the rules name it.

use serde::Deserialize;

use super::Abilities;
use super::alert::Alert;
use super::defect::Defect;
use crate::tls::Flaw;
use crate::units::Span;

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident $(($data:ty))? = $name:literal at $moment:ident as $example:literal,)*) => {
        /// What happens to a connection or to an answer.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Action {
            $($(#[$doc])* $variant $(($data))?,)*
        }

        impl Action {
            /// The names of all actions, in the order of [`Action::index`].
            pub const KINDS: &'static [&'static str] = &[$($name,)*];

            /// The action of this name as a rule may write it.
            pub fn example(kind: &str) -> Option<&'static str> {
                match kind {
                    $($name => Some($example),)*
                    _ => None,
                }
            }

            /// Its name in rules and statistics.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Action::$variant { .. } => $name,)*
                }
            }

            /// When it happens.
            pub fn moment(&self) -> Moment {
                match self {
                    Action::HangUp(HangUp { after: Point::Hello, .. }) => Moment::Hello,
                    $(Action::$variant { .. } => Moment::$moment,)*
                }
            }
        }
    };
}

actions! {
    /// The listening sockets are closed: connecting is refused.
    Refuse = "refuse" at Never
        as r#""refuse""#,
    /// The connection ends before the handshake does.
    HangUp(HangUp) = "hang_up" at Accept
        as r#"{"hang_up": {"how": "reset"}}"#,
    /// The connection is accepted and never answered.
    Silence = "silence" at Accept
        as r#""silence""#,
    /// A fatal alert instead of a ServerHello.
    HelloAlert(HelloAlert) = "hello_alert" at Hello
        as r#"{"hello_alert": {"alert": "handshake_failure"}}"#,
    /// Bytes that are no TLS instead of a ServerHello.
    GarbageHello = "garbage_hello" at Hello
        as r#""garbage_hello""#,
    /// The ServerHello takes its time.
    SlowHandshake(SlowHandshake) = "slow_handshake" at Hello
        as r#"{"slow_handshake": {"delay": "20ms"}}"#,
    /// A certificate that must not be accepted.
    Certificate(Certificate) = "certificate" at Hello
        as r#"{"certificate": {"flaw": "expired"}}"#,
    /// The answer ends in a reset (RST).
    Reset(At) = "reset" at Request
        as r#"{"reset": {"at": 100}}"#,
    /// The answer ends early, and properly: `close_notify`, FIN.
    Truncate(At) = "truncate" at Request
        as r#"{"truncate": {"at": 100}}"#,
    /// The connection ends without a `close_notify`, by default behind the answer.
    Cut(At) = "cut" at Request
        as r#"{"cut": {"at": 100}}"#,
    /// The answer stops, for a while or for good.
    Stall(Stall) = "stall" at Request
        as r#"{"stall": {"at": 100, "time": "2s"}}"#,
    /// The answer comes in small pieces.
    Drip(Drip) = "drip" at Request
        as r#"{"drip": {"bytes": 1, "every": "1ms"}}"#,
    /// A fatal alert within the session.
    Alert(SessionAlert) = "alert" at Request
        as r#"{"alert": {"alert": "internal_error"}}"#,
    /// A TLS record that cannot be authentic.
    BadRecord(At) = "bad_record" at Request
        as r#"{"bad_record": {"at": 100}}"#,
    /// The answer is written wrongly.
    Framing(Framing) = "framing" at Request
        as r#"{"framing": {"defect": "bare_lf"}}"#,
    /// Bytes behind the answer that belong to nothing.
    ExtraBytes(ExtraBytes) = "extra_bytes" at Request
        as r#"{"extra_bytes": {"text": "more"}}"#,
    /// A second answer, unasked, while the connection is idle.
    Unasked(Unasked) = "unasked" at Request
        as r#"{"unasked": {"after": "20ms"}}"#,
    /// Interim answers before the answer.
    Flood(Flood) = "flood" at Request
        as r#"{"flood": {"count": 10}}"#,
    /// `101 Switching Protocols` to a client that asked for no such thing.
    Switch = "switch" at Request
        as r#""switch""#,
    /// A head of many bytes.
    LargeHead(LargeHead) = "large_head" at Request
        as r#"{"large_head": {"bytes": 65536}}"#,
}

/// When an action happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Not to a connection: there is none.
    Never,
    /// As soon as the connection is accepted; with `sni`, once the name is known.
    Accept,
    /// Once the ClientHello has arrived.
    Hello,
    /// When a request is answered.
    Request,
}

/// Where in the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    /// After so many bytes. Absent, or more than there are: behind the last.
    pub at: Option<u64>,
    /// From where they count.
    #[serde(default)]
    pub from: From,
}

/// From where the bytes of an answer count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// The first byte of the status line.
    #[default]
    Head,
    /// The first byte behind the (first) head.
    Body,
}

/// See [`Action::HangUp`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HangUp {
    /// RST or FIN.
    pub how: How,
    /// When.
    #[serde(default)]
    pub after: Point,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// RST.
    Reset,
    /// FIN.
    Close,
}

/// After which step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Nothing has been read.
    #[default]
    Accept,
    /// The ClientHello has been read.
    Hello,
}

/// See [`Action::HelloAlert`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HelloAlert {
    /// Which one.
    pub alert: Alert,
}

/// See [`Action::SlowHandshake`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowHandshake {
    /// How long the ServerHello is held back.
    pub delay: Span,
}

/// See [`Action::Certificate`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// See [`Action::Stall`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// As in [`At`].
    pub at: Option<u64>,
    /// As in [`At`].
    #[serde(default)]
    pub from: From,
    /// How long; absent: until the client leaves.
    pub time: Option<Span>,
}

/// See [`Action::Drip`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drip {
    /// Bytes per piece.
    pub bytes: u32,
    /// The pause between pieces.
    pub every: Span,
}

/// See [`Action::Alert`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionAlert {
    /// As in [`At`].
    pub at: Option<u64>,
    /// As in [`At`].
    #[serde(default)]
    pub from: From,
    /// Which one.
    pub alert: Alert,
}

/// See [`Action::Framing`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Framing {
    /// What is wrong.
    pub defect: Defect,
    /// Whether the connection ends (properly) behind the answer. By default it stays.
    #[serde(default)]
    pub close: bool,
}

/// See [`Action::ExtraBytes`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraBytes {
    /// The bytes, as text.
    pub text: String,
}

/// See [`Action::Unasked`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unasked {
    /// How long after the answer.
    pub after: Span,
}

/// See [`Action::Flood`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flood {
    /// How many.
    pub count: u32,
    /// 100, or 102 to 199; 103 if absent.
    #[serde(default = "early_hints")]
    pub status: u16,
}

/// See [`Action::LargeHead`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LargeHead {
    /// Bytes of fields to add, in lines of 1 KiB.
    pub bytes: u32,
}

fn early_hints() -> u16 {
    103
}

impl Action {
    /// Its place in [`Action::KINDS`].
    pub fn index(&self) -> usize {
        let kind = self.kind();
        Self::KINDS
            .iter()
            .position(|known| *known == kind)
            .unwrap_or(0)
    }

    /// Refuses what this mock cannot do, and numbers that make no sense.
    pub fn check(&self, abilities: Abilities) -> Result<(), String> {
        let tls = matches!(self, Action::Alert(_) | Action::BadRecord(_))
            || self.moment() == Moment::Hello;
        if tls && !abilities.tls {
            return Err(format!(
                "`{}` needs TLS, and this mock speaks clear text",
                self.kind()
            ));
        }
        match self {
            Action::Certificate(_) if !abilities.bad_certificates => {
                Err("a bad certificate can be made only with --self-signed".into())
            }
            Action::Flood(flood) if flood.status != 100 && !(102..=199).contains(&flood.status) => {
                Err("`status` must be 100 or 102 to 199; `switch` sends 101".into())
            }
            Action::Flood(flood) if flood.count > FLOOD_MAX => {
                Err(format!("`count` must be at most {FLOOD_MAX}"))
            }
            Action::Drip(drip) if drip.bytes == 0 => {
                Err("a piece has at least one byte: `bytes`".into())
            }
            Action::LargeHead(head) if head.bytes > LARGE_HEAD_MAX => {
                Err(format!("`bytes` must be at most {LARGE_HEAD_MAX}"))
            }
            _ => match self.idle() {
                Some(field) => Err(format!(
                    "`{}` would do nothing with this value of `{field}`; example: {}",
                    self.kind(),
                    Self::example(self.kind()).unwrap_or_default()
                )),
                None => Ok(()),
            },
        }
    }

    /// The field whose value makes the action do nothing at all.
    fn idle(&self) -> Option<&'static str> {
        match self {
            Action::SlowHandshake(slow) if slow.delay.0.is_zero() => Some("delay"),
            Action::Stall(stall) if stall.time.is_some_and(|time| time.0.is_zero()) => Some("time"),
            Action::Drip(drip) if drip.every.0.is_zero() => Some("every"),
            Action::ExtraBytes(extra) if extra.text.is_empty() => Some("text"),
            Action::Flood(flood) if flood.count == 0 => Some("count"),
            Action::LargeHead(head) if head.bytes == 0 => Some("bytes"),
            _ => None,
        }
    }
}

/// More interim answers than this are refused.
const FLOOD_MAX: u32 = 1_000_000;

/// Larger heads than this are refused.
const LARGE_HEAD_MAX: u32 = 16 * 1024 * 1024;
