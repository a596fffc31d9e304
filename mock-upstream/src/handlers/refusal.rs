//! Refusing a request as the real provider does: without a valid key, or beyond a limit.

use super::{record, take_time};
use crate::connection::{After, Body, BodyWish, Connection, Gone};
use crate::keys::Access;
use crate::personality::Refusal;
use crate::steering::Steering;

/// Sends a refusal. A small body is read, so that the connection may stay; a large one is not. The
/// key is not repeated.
pub(super) async fn send(
    conn: &mut Connection,
    steering: &Steering,
    access: Access,
    refusal: &Refusal,
) -> Result<After, Gone> {
    let mut after = After::Linger;
    let mut body = Body::default();
    if conn.body_is_cheap() {
        after = After::KeepAlive;
        let wish = BodyWish {
            keep_bytes_max: 0,
            digest: conn.worker.settings.record.is_some(),
        };
        body = conn.read_body(wish).await?;
    } else {
        conn.close_afterwards();
    }
    record(conn, access, &body);
    take_time(conn, steering).await?;
    let mut response = conn.respond(refusal.status);
    for (name, value) in &refusal.fields {
        response = response.field(name, value);
    }
    response.content("application/json", &refusal.content);
    Ok(after)
}
