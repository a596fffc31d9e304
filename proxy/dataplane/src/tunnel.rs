//! What was upgraded: bytes both ways, until one side ends. What the upstream sends
//! is searched for the key: a WebSocket's messages frame by frame, anything else as
//! one text.

use std::io;
use std::time::Duration;

use futures_util::future::{Either, select};
use policy::{OnEcho, Permit};
use wire::frames::FrameSieve;
use wire::sieve::Sieve;

use crate::relay::{FLUSHES_PER_TURN, on_hit};
use crate::rt;
use crate::transport::{Filled, Incoming, Outgoing, SEND_PENDING_BYTES, Transport};

/// A tunnel in which nothing moves for so long, either way, is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// What went through.
#[derive(Debug, Default, Clone, Copy)]
pub struct Carried {
    /// Bytes from the caller.
    pub bytes_in: u64,
    /// Bytes to the caller.
    pub bytes_out: u64,
    /// How often the key was found in them.
    pub hits: usize,
    /// Why it was ended by us.
    pub refused: Option<&'static str>,
}

/// What stands between an upstream's bytes and the caller.
pub enum Screen<'s> {
    /// Nothing.
    Open,
    /// A search of WebSocket messages.
    Frames(FrameSieve<'s>, OnEcho),
    /// A search of a protocol that is not known.
    Stream(Sieve<'s>, OnEcho),
}

impl<'s> Screen<'s> {
    /// What the route asks for, in the protocol that the upstream switched to.
    pub fn new(permit: &Permit<'s>, protocol: Option<&[u8]>) -> Self {
        let on_echo = permit.route().on_echo;
        let is_websocket = |name: &[u8]| name.eq_ignore_ascii_case(b"websocket");
        match permit.scrubber() {
            None => Screen::Open,
            Some(scrubber) if protocol.is_some_and(is_websocket) => {
                Screen::Frames(FrameSieve::new(scrubber, on_hit(on_echo)), on_echo)
            }
            Some(scrubber) => Screen::Stream(Sieve::new(scrubber, on_hit(on_echo)), on_echo),
        }
    }

    /// Puts into `out` what may go on, or says why nothing may any more.
    fn pass(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        out.clear();
        let on_echo = match self {
            Screen::Open => {
                out.extend_from_slice(input);
                return Ok(());
            }
            Screen::Frames(sieve, on_echo) => {
                sieve
                    .pass(input, out)
                    .map_err(|_| "websocket_frames_malformed")?;
                *on_echo
            }
            Screen::Stream(sieve, on_echo) => {
                out.extend_from_slice(sieve.pass(&[input], false).0);
                *on_echo
            }
        };
        if on_echo == OnEcho::Block && self.hits() > 0 {
            return Err("key_echoed");
        }
        Ok(())
    }

    /// What was held back when the upstream ended.
    fn rest(&mut self, out: &mut Vec<u8>) {
        out.clear();
        if let Screen::Stream(sieve, _) = self {
            out.extend_from_slice(sieve.pass(&[], true).0);
        }
    }

    fn hits(&self) -> usize {
        match self {
            Screen::Open => 0,
            Screen::Frames(sieve, _) => sieve.hits(),
            Screen::Stream(sieve, _) => sieve.hits(),
        }
    }
}

/// Carries both directions until either one ends; then both are closed. `first` came
/// from the upstream along with its consent.
pub async fn run(
    down: &mut Transport,
    up: &mut Transport,
    first: &[u8],
    mut screen: Screen<'_>,
    write_timeout: Duration,
) -> Carried {
    let mut carried = Carried::default();
    let mut refused = None;
    let mut open = Screen::Open;
    {
        let (mut down_in, mut down_out) = down.split();
        let (mut up_in, mut up_out) = up.split();
        let upward = std::pin::pin!(carry(
            &mut down_in,
            &mut up_out,
            &[],
            &mut open,
            write_timeout,
            &mut carried.bytes_in
        ));
        let downward = std::pin::pin!(carry(
            &mut up_in,
            &mut down_out,
            first,
            &mut screen,
            write_timeout,
            &mut carried.bytes_out
        ));
        // The loser's receive is dropped: both connections close.
        if let Either::Left((Err(End::Refused(reason)), _))
        | Either::Right((Err(End::Refused(reason)), _)) = select(upward, downward).await
        {
            refused = Some(reason);
        }
    }
    carried.hits = screen.hits();
    carried.refused = refused;
    up.goodbye().await;
    if refused.is_some() {
        // No goodbye: nobody takes this for the upstream's own end.
        down.outgoing().reset();
    } else {
        down.goodbye().await;
    }
    carried
}

/// Why a direction ended before its source did.
enum End {
    /// A socket failed.
    Io,
    /// We ended it.
    Refused(&'static str),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Io
    }
}

async fn carry(
    from: &mut Incoming<'_>,
    to: &mut Outgoing<'_>,
    first: &[u8],
    screen: &mut Screen<'_>,
    write_timeout: Duration,
    bytes: &mut u64,
) -> Result<(), End> {
    let mut flushes = 0u32;
    let mut screened = Vec::new();
    let mut pass = |chunk: &[u8], to: &mut Outgoing<'_>| -> Result<usize, End> {
        if let Screen::Open = screen {
            to.write(&[chunk])?;
            return Ok(chunk.len());
        }
        screen.pass(chunk, &mut screened).map_err(End::Refused)?;
        if !screened.is_empty() {
            to.write(&[&screened])?;
        }
        Ok(screened.len())
    };
    let mut pending = 0;
    if !first.is_empty() {
        pending = pass(first, to)?;
        *bytes += pending as u64;
    }
    loop {
        let ready = match from.ready()? {
            Some(ready) => ready,
            None => {
                to.flush(write_timeout).await?;
                pending = 0;
                flushes += 1;
                if flushes.is_multiple_of(FLUSHES_PER_TURN) {
                    rt::yield_now().await;
                }
                from.fill(IDLE_TIMEOUT).await?
            }
        };
        if ready == Filled::End {
            break;
        }
        let n = from.take(|chunk| (chunk.len(), pass(chunk, to)))?;
        *bytes += n as u64;
        // Movement one way keeps both ways open.
        to.peer_must_answer_within(IDLE_TIMEOUT);
        pending += n;
        if pending >= SEND_PENDING_BYTES {
            to.flush(write_timeout).await?;
            pending = 0;
        }
    }
    screen.rest(&mut screened);
    if !screened.is_empty() {
        to.write(&[&screened])?;
        *bytes += screened.len() as u64;
    }
    to.flush(write_timeout).await?;
    Ok(())
}
