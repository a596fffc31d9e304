//! What was upgraded: bytes both ways, until one side ends.

use std::io;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::relay::FLUSHES_PER_TURN;
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
}

/// Carries both directions until either one ends; then both are closed.
pub async fn run(down: &mut Transport, up: &mut Transport, write_timeout: Duration) -> Carried {
    let mut carried = Carried::default();
    {
        let (mut down_in, mut down_out) = down.split();
        let (mut up_in, mut up_out) = up.split();
        let upward = std::pin::pin!(carry(
            &mut down_in,
            &mut up_out,
            write_timeout,
            &mut carried.bytes_in
        ));
        let downward = std::pin::pin!(carry(
            &mut up_in,
            &mut down_out,
            write_timeout,
            &mut carried.bytes_out
        ));
        // The loser's receive is dropped: both connections close.
        match select(upward, downward).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }
    up.goodbye().await;
    down.goodbye().await;
    carried
}

async fn carry(
    from: &mut Incoming<'_>,
    to: &mut Outgoing<'_>,
    write_timeout: Duration,
    bytes: &mut u64,
) -> io::Result<()> {
    let mut pending = 0;
    let mut flushes = 0u32;
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
            return to.flush(write_timeout).await;
        }
        let n = from.take(|chunk| (chunk.len(), to.write(&[chunk]).map(|()| chunk.len())))?;
        *bytes += n as u64;
        // Movement one way keeps both ways open.
        to.peer_must_answer_within(IDLE_TIMEOUT);
        pending += n;
        if pending >= SEND_PENDING_BYTES {
            to.flush(write_timeout).await?;
            pending = 0;
        }
    }
}
