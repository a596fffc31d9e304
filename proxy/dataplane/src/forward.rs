//! Towards the upstream: the rewritten head and the request's body.

use std::io;
use std::time::Duration;

use policy::Outbound;
use policy::verdict::PoolKey;
use wire::head::RequestHead;
use wire::rewrite::Plan;

use crate::transport::Outgoing;

/// Encrypts the head, with the key where it belongs, and `body` behind it, as
/// one message. The key goes from where the snapshot holds it into the cipher,
/// and is copied nowhere else.
pub fn write_head(
    up: &mut Outgoing<'_>,
    lease: PoolKey,
    outbound: &Outbound<'_>,
    plan: &Plan,
    head: &RequestHead,
    body: &[u8],
) -> io::Result<()> {
    let mut slices = Vec::with_capacity(24);
    outbound.slices(lease, plan, head, &mut slices);
    if !body.is_empty() {
        slices.push(body);
    }
    up.write(&slices)
}

/// How far a request got on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it was given to the kernel.
    Whole,
    /// The connection failed when part of it had left.
    Partly,
    /// The connection failed, and the kernel took none of it: the upstream cannot
    /// have seen it.
    Nothing,
}

/// Sends what was written.
pub async fn flush(up: &mut Outgoing<'_>, limit: Duration) -> Sent {
    let before = up.bytes_sent();
    match up.flush(limit).await {
        Ok(()) => Sent::Whole,
        Err(_) if up.bytes_sent() == before => Sent::Nothing,
        Err(_) => Sent::Partly,
    }
}
