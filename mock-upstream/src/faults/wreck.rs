//! What becomes of one answer's bytes on their way out: where they stop, and what happens there.
//!
//! It decides and counts; the stream carries it out.

use std::time::Duration;

use super::action::{Action, At, From};
use super::alert::Alert;

/// An answer that will not arrive as it was written.
#[derive(Debug)]
pub struct Wreck {
    /// After so many bytes of the answer, or of its body; `None`: behind the answer.
    at: Option<u64>,
    /// What happens there; `None`: nothing (the bytes merely drip).
    pub effect: Option<Effect>,
    /// Pieces of so many bytes, and the pause between them.
    pub drip: Option<(usize, Duration)>,
    /// Bytes let through that counted.
    passed: u64,
    /// How much of the head's end (CR LF CR LF) the last bytes were: 0 to 4. Bytes count from 4 on.
    head_end: usize,
}

/// What happens at that byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// RST.
    Reset,
    /// `close_notify` and FIN.
    Close,
    /// FIN alone.
    Cut,
    /// Nothing more comes: for this long, or until the client leaves.
    Stall(Option<Duration>),
    /// A sealed fatal alert, then FIN.
    Alert(Alert),
    /// A record that is not authentic, then FIN.
    BadRecord,
}

impl Wreck {
    /// The wreck that an action makes, if it is one of those that do.
    pub fn of(action: &Action) -> Option<Self> {
        let (at, effect, drip) = match *action {
            Action::Reset(at) => (at, Some(Effect::Reset), None),
            Action::Truncate(at) => (at, Some(Effect::Close), None),
            Action::Cut(at) => (at, Some(Effect::Cut), None),
            Action::BadRecord(at) => (at, Some(Effect::BadRecord), None),
            Action::Stall(stall) => {
                let at = At {
                    at: stall.at,
                    from: stall.from,
                };
                (at, Some(Effect::Stall(stall.time.map(|time| time.0))), None)
            }
            Action::Alert(alert) => {
                let at = At {
                    at: alert.at,
                    from: alert.from,
                };
                (at, Some(Effect::Alert(alert.alert)), None)
            }
            Action::Drip(drip) => {
                let drip = (drip.bytes as usize, drip.every.0);
                (At::default(), None, Some(drip))
            }
            _ => return None,
        };
        Some(Wreck {
            at: at.at,
            effect,
            drip,
            passed: 0,
            head_end: match at.from {
                From::Head => 4,
                From::Body => 0,
            },
        })
    }

    /// How many of these bytes of the answer may leave; whether the place is reached then.
    pub fn admit(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut counted_from = 0;
        while self.head_end < 4 {
            let Some(&byte) = bytes.get(counted_from) else {
                return (bytes.len(), false);
            };
            counted_from += 1;
            self.head_end = match (self.head_end, byte) {
                (0 | 2, b'\r') | (1 | 3, b'\n') => self.head_end + 1,
                (_, b'\r') => 1,
                _ => 0,
            };
        }
        let counting = (bytes.len() - counted_from) as u64;
        match self.at {
            Some(at) if self.effect.is_some() && at <= self.passed + counting => {
                let allowed = at - self.passed;
                self.passed = at;
                (counted_from + allowed as usize, true)
            }
            _ => {
                self.passed += counting;
                (bytes.len(), false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wreck(at: Option<u64>, from: From) -> Wreck {
        Wreck::of(&Action::Reset(At { at, from })).expect("one of those")
    }

    #[test]
    fn counts_across_pieces() {
        let answer = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
        for piece in 1..=answer.len() {
            for (at, from, expected) in [
                (Some(0), From::Head, 0),
                (Some(5), From::Head, 5),
                (Some(0), From::Body, 25),
                (Some(3), From::Body, 28),
                (Some(4), From::Body, 29),
            ] {
                let mut wreck = wreck(at, from);
                let (mut passed, mut reached) = (0, false);
                for bytes in answer.chunks(piece) {
                    let (allowed, due) = wreck.admit(bytes);
                    passed += allowed;
                    if due {
                        reached = true;
                        break;
                    }
                    assert_eq!(allowed, bytes.len());
                }
                assert!(reached, "{at:?} {from:?} {piece}");
                assert_eq!(passed, expected, "{at:?} {from:?} {piece}");
            }
        }
        for at in [None, Some(30)] {
            assert_eq!(wreck(at, From::Head).admit(answer), (29, false));
        }
    }
}
