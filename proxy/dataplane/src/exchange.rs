//! One request and its answer: the whole story.
//!
//! [`run`] reads like the sentence one would say aloud: read the head, ask
//! policy, take a place on the audit trail, write the key in, lease a
//! connection, forward, relay, and give the connection back or close it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use handoff::Counter;
use policy::{OnEcho, OnUninspected, Permit, Refuser, Verdict};
use wire::coding::Coded;
use wire::framing::{self, BodyFraming};
use wire::head::{
    Field, FieldId, HeadError, HeadLimits, Method, Parse, RequestHead, ResponseHead, Version,
};
use wire::inspect::Uninspected;
use wire::rewrite::{self, Plan, ResponseEdit};

use crate::admission::Member;
use crate::connection::Peer;
use crate::core::{Core, Desk};
use crate::forward::{self, Sent};
use crate::ledger::Draft;
use crate::pool::{self, Lease, LeaseError, Purpose};
use crate::relay::{Body, BodyError, BodyReader, BodyWriter, Pace, Search};
use crate::respond::{self, Problem};
use crate::rt;
use crate::transport::{Filled, Incoming, Outgoing, Transport};
use crate::tunnel::{self, Screen};

/// Informational responses passed on for one request; more are an attack.
const INFORMATIONAL_MAX: usize = 16;

/// A body of at most this length is gathered before the request goes on: many
/// clients send it right behind the head, and a request that is at hand whole is
/// one message to the upstream and can be sent again. Larger ones stream.
const GATHER_BYTES_MAX: u64 = 16 * 1024;

/// So much of an answer that has arrived in several records goes on as one. Past it the body is
/// carried from record to record, and one that is cut is seen to be cut by the caller.
const GATHER_ANSWER_BYTES_MAX: usize = 4 * 1024;

/// How long an upstream that takes no more of a request may take to say why.
const ANSWER_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// What becomes of the caller's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It waits for another request.
    KeepAlive,
    /// It is closed with a goodbye.
    Close,
    /// It is closed, but the caller may still be sending.
    Linger,
    /// It is closed at once, so that an unfinished answer cannot look finished.
    Drop,
}

/// Serves one request, from its first byte to its audit record.
pub async fn run(
    core: &Rc<Core>,
    peer: &Peer,
    member: &Member,
    draft: &Rc<RefCell<Draft>>,
    down: &mut Transport,
    desk: &mut Desk,
) -> Next {
    let read = read_head(core, down, desk).await;
    if matches!(read, Err(HeadEnd::Gone)) {
        return Next::Drop;
    }
    core.count(Counter::exchanges);
    core.count(Counter::exchanges_open);
    let _open = Open(core);
    let view = core.view();
    draft.borrow_mut().begin(
        core.instance,
        core.index,
        core.next_request(),
        Rc::clone(&view),
    );
    core.ledger.watch(draft);
    let mut exchange = Exchange {
        core,
        draft,
        down,
        write_timeout: view.limits.read_timeout,
        consumed: 0,
    };
    desk.request_plan.clear();
    if let Err(end) = read {
        return exchange.refuse(desk, &end.problem(), Rest::Unknown).await;
    }
    {
        let mut draft = draft.borrow_mut();
        draft.method.push_str(desk.request.method_str());
        draft.path.extend_from_slice(desk.request.path());
        if peer.server_name.is_none()
            && let Some(host) = desk.request.host()
        {
            draft.host.extend(host.iter().map(|&byte| char::from(byte)));
        }
    }
    let framing = match framing::of_request(&desk.request) {
        Ok(framing) => framing,
        Err(error) => {
            let problem = Problem::new(
                error.status(),
                error.reason(),
                Refuser::Caller,
                "The request's body length is missing, malformed or ambiguous (RFC 9112, section 6).",
            );
            return exchange.refuse(desk, &problem, Rest::Unknown).await;
        }
    };
    let mut rest = Rest::of(framing, desk.request.rest().len());
    let _place = match member.enter(view.limits.exchanges_max) {
        Ok(place) => place,
        Err(full) => {
            core.count(Counter::exchanges_refused_limit);
            if let Some(unsaid) = core.complaints.exchanges.may(core.tick.now_ms()) {
                tracing::warn!(
                    exchanges_max = view.limits.exchanges_max,
                    client = %peer.client.ip(),
                    held = full.held,
                    unsaid,
                    "a request was answered 503: exchanges_max requests are under way on this core, or all but what is kept for other callers; raise it if memory allows, or look at which upstream is slow"
                );
            }
            return exchange.refuse(desk, &OVERLOADED, rest).await;
        }
    };
    if let BodyFraming::Length(length) = framing
        && length <= GATHER_BYTES_MAX
        && !desk.request.expects_continue()
    {
        match exchange.gather(desk, length as usize).await {
            Ok(()) => rest = Rest::AtHand(length as usize),
            Err(failed) => return exchange.fail(desk, failed, rest).await,
        }
    }
    // Decided after the wait, and by what is in force now.
    let view = core.view();
    draft.borrow_mut().view = Some(Rc::clone(&view));
    let verdict = view.authorize(&peer.listener, &peer.caller(), &desk.request);
    let mut permit = match verdict {
        Verdict::Allow(permit) => permit,
        refused => {
            let problem = match refused {
                Verdict::Deny(denial) => {
                    draft.borrow_mut().deny(&denial);
                    Problem::from(&denial)
                }
                _ => GREETING,
            };
            return exchange.refuse(desk, &problem, rest).await;
        }
    };
    let route = permit.route();
    {
        let mut draft = draft.borrow_mut();
        draft.route = Some(permit.index());
        draft.admitted = Some(permit.admitted());
        draft.told = permit.told().cloned().map(Box::new);
    }
    if let BodyFraming::Length(length) = framing
        && length > route.body_bytes_max
    {
        return exchange.refuse(desk, &BODY_TOO_LARGE, rest).await;
    }
    // The place comes before the key: what cannot be recorded does not happen.
    if route.audit_required && !core.ledger.reserve(&mut draft.borrow_mut()) {
        return exchange.refuse(desk, &AUDIT_UNAVAILABLE, rest).await;
    }
    let next = exchange.proxy(desk, &mut permit, framing, rest).await;
    core.ledger
        .end(&mut draft.borrow_mut(), Some(&desk.request_plan));
    next
}

/// Why there is no request head.
enum HeadEnd {
    /// The caller left, or the connection failed: nobody to answer.
    Gone,
    /// It did not finish its head in time.
    TimedOut,
    /// It is not a request that we would pass on.
    Bad(HeadError),
}

impl HeadEnd {
    fn problem(&self) -> Problem {
        match self {
            HeadEnd::Bad(error) => Problem::new(
                error.status(),
                error.reason(),
                Refuser::Caller,
                "The request head is malformed or too large (RFC 9112, sections 3 and 5).",
            ),
            HeadEnd::TimedOut | HeadEnd::Gone => Problem::new(
                408,
                "request_head_timeout",
                Refuser::Caller,
                "The request head did not arrive in time (head_timeout).",
            ),
        }
    }
}

/// What is still to come of a request when it is refused.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// The body is at hand, whole: so many bytes.
    AtHand(usize),
    /// The caller is still sending, or its framing is not to be trusted.
    Unknown,
}

impl Rest {
    fn of(framing: BodyFraming, at_hand: usize) -> Self {
        match framing {
            BodyFraming::None => Rest::AtHand(0),
            BodyFraming::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= at_hand => Rest::AtHand(length),
                _ => Rest::Unknown,
            },
            BodyFraming::Chunked | BodyFraming::UntilClose => Rest::Unknown,
        }
    }
}

async fn read_head(core: &Core, down: &mut Transport, desk: &mut Desk) -> Result<(), HeadEnd> {
    let limits = core.view().limits;
    let begun_ms = core.tick.now_ms();
    let mut waits = false;
    let mut incoming = down.incoming();
    loop {
        if desk.request.buffered() > 0 {
            let parsed = desk.request.parse(&limits.head);
            if waits && !matches!(parsed, Ok(Parse::Partial)) {
                incoming.watch().busy();
            }
            match parsed {
                Ok(Parse::Complete) => return Ok(()),
                Ok(Parse::Partial) if !waits => {
                    waits = true;
                    incoming.watch().may_be_evicted();
                }
                Ok(Parse::Partial) => {}
                Err(error) => return Err(HeadEnd::Bad(error)),
            }
        }
        let spent = Duration::from_millis(core.tick.now_ms().saturating_sub(begun_ms));
        let left = limits.head_timeout.saturating_sub(spent);
        match incoming.fill(left).await {
            Ok(Filled::Data) => incoming.take(|chunk| {
                desk.request.buffer().extend_from_slice(chunk);
                (chunk.len(), ())
            }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(HeadEnd::TimedOut),
            Ok(Filled::End) | Err(_) => return Err(HeadEnd::Gone),
        }
    }
}

/// To an edge that asks whether its hub is there. It has no body and leaves no record.
const GREETING: Problem = Problem::new(204, "edge_greeted", Refuser::Claviger, "");
const BODY_TOO_LARGE: Problem = Problem::new(
    413,
    "body_too_large",
    Refuser::Policy,
    "The request body is larger than the route allows (body_bytes_max).",
);
const AUDIT_UNAVAILABLE: Problem = Problem::new(503, "audit_unavailable", Refuser::Claviger,
    "The route requires an audit record and the audit trail cannot take one now. Check the disk under the audit file.")
    .retry_after(1);
const OVERLOADED: Problem = Problem::new(
    503,
    "core_overloaded",
    Refuser::Claviger,
    "Too many requests are under way (exchanges_max).",
)
.retry_after(1);
const BAD_UPSTREAM_ANSWER: Problem = Problem::new(
    502,
    "upstream_answer_malformed",
    Refuser::Upstream,
    "The upstream's answer is not well-formed HTTP/1.1, so it was not passed on.",
);
const UPSTREAM_BODY_CUT: Problem = Problem::new(
    502,
    "upstream_body_cut",
    Refuser::Upstream,
    "The upstream closed in the middle of its answer, of which nothing was passed on.",
);
const KEY_ECHOED: Problem = Problem::new(
    502,
    "key_echoed",
    Refuser::Policy,
    "The upstream's answer contains the key that was used, so it was not passed on (on_echo).",
);
const ANSWER_NOT_INSPECTED: Problem = Problem::new(
    502,
    "answer_not_inspected",
    Refuser::Policy,
    "The body of the upstream's answer cannot be searched for the key because of how it is coded, so it was not passed on (on_uninspected).",
);
const UPSTREAM_CLOSED: Problem = Problem::new(
    502,
    "upstream_closed",
    Refuser::Upstream,
    "The upstream closed the connection before it answered.",
);
const UPSTREAM_HEAD_TIMEOUT: Problem = Problem::new(
    504,
    "upstream_response_timeout",
    Refuser::Upstream,
    "The upstream did not answer in time (response_head_timeout).",
);
const REQUEST_BODY_BROKEN: Problem = Problem::new(
    400,
    "request_body_malformed",
    Refuser::Caller,
    "The request body's chunks are malformed (RFC 9112, section 7.1).",
);
const REQUEST_BODY_TIMEOUT: Problem = Problem::new(
    408,
    "request_body_timeout",
    Refuser::Caller,
    "The request body did not arrive in time (read_timeout, body_rate_min).",
);

/// Counts an exchange as open for as long as it lives.
struct Open<'a>(&'a Core);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.counters.sub(Counter::exchanges_open);
    }
}

/// What every step of an exchange needs.
struct Exchange<'a> {
    core: &'a Rc<Core>,
    draft: &'a Rc<RefCell<Draft>>,
    down: &'a mut Transport,
    write_timeout: Duration,
    /// Bytes behind the head that belong to this request and were used up.
    consumed: usize,
}

/// How the upstream's side of an exchange ended well.
struct Answered {
    /// The request has gone out whole.
    uploaded: bool,
    /// The upstream's connection can carry another exchange.
    up_reusable: bool,
    /// The caller was told that its connection stays open.
    down_persists: bool,
    /// The connection is a tunnel now.
    upgraded: bool,
}

/// How the upstream's side of an exchange failed.
enum Failed {
    /// Before the answer's first byte; a second try may be safe.
    BeforeAnswer {
        problem: Problem,
        /// Not a byte of the request has left.
        nothing_sent: bool,
    },
    /// With part of an answer received, and nothing of it passed on.
    Unanswered(Problem),
    /// With the answer's head passed on: the caller must see that it is cut.
    Cut(Refuser, &'static str),
    /// The caller went away.
    Abandoned,
}

impl Exchange<'_> {
    /// Answers by ourselves, and keeps the connection if the request is over.
    async fn refuse(&mut self, desk: &mut Desk, problem: &Problem, rest: Rest) -> Next {
        self.core.count(Counter::exchanges_answered_here);
        let head_is_good = !desk.request.bytes().is_empty();
        let (consumed, persists) = match rest {
            // A caller of HTTP/1.0 would have to be told that it stays open.
            Rest::AtHand(length)
                if head_is_good
                    && desk.request.keep_alive()
                    && !is_tunnel_begun(&desk.request, length)
                    && desk.request.version() == Version::Http11 =>
            {
                (length, !self.core.draining.get())
            }
            _ => (usize::MAX, false),
        };
        let is_head = head_is_good && desk.request.method() == Method::Head;
        let request_id = {
            let mut draft = self.draft.borrow_mut();
            draft.status = problem.status;
            draft.refused = Some((problem.refuser, problem.reason));
            draft.request_id.clone()
        };
        let sent = respond::answer(
            self.down,
            problem,
            &request_id,
            is_head,
            !persists,
            self.write_timeout,
        )
        .await;
        {
            let mut draft = self.draft.borrow_mut();
            match sent {
                Ok(bytes) => draft.bytes_out = bytes,
                Err(_) => draft.status = 0,
            }
            if problem.status == GREETING.status {
                self.core.ledger.forget(&mut draft);
            }
            self.core.ledger.end(&mut draft, Some(&desk.request_plan));
        }
        desk.request.finish(consumed);
        match sent {
            Ok(_) if persists => Next::KeepAlive,
            Ok(_) => Next::Linger,
            Err(_) => Next::Drop,
        }
    }

    /// Waits for a short body, as long as for a head.
    async fn gather(&mut self, desk: &mut Desk, length: usize) -> Result<(), Failed> {
        let limit = self.core.view().limits.head_timeout;
        let begun_ms = self.core.tick.now_ms();
        let mut incoming = self.down.incoming();
        while desk.request.rest().len() < length {
            let spent = self.core.tick.now_ms().saturating_sub(begun_ms);
            match incoming
                .fill(limit.saturating_sub(Duration::from_millis(spent)))
                .await
            {
                Ok(Filled::Data) => incoming.take(|chunk| {
                    desk.request.buffer().extend_from_slice(chunk);
                    (chunk.len(), ())
                }),
                Ok(Filled::End) => return Err(Failed::Abandoned),
                Err(error) => return Err(upload_failed(BodyError::Source(error), true)),
            }
        }
        Ok(())
    }

    /// Carries an authorised request to its upstream and the answer back.
    async fn proxy(
        &mut self,
        desk: &mut Desk,
        permit: &mut Permit<'_>,
        framing: BodyFraming,
        rest: Rest,
    ) -> Next {
        let core = self.core;
        let mut tried_again = false;
        let mut hubs_tried = 0;
        loop {
            let purpose = if tried_again {
                Purpose::SecondTry
            } else {
                Purpose::Request
            };
            let asked = rt::now();
            let caller = self.draft.borrow().client.ip();
            let leased = match core.hubs.choose(permit, hubs_tried) {
                false => Err(LeaseError::NoHub),
                true => {
                    pool::lease(core, permit.pool_key(), permit.upstream(), purpose, caller).await
                }
            };
            self.draft.borrow_mut().upstream_wait += rt::now() - asked;
            let mut lease = match leased {
                Ok(lease) => lease,
                Err(error) if core.hubs.is_loss(permit, &error) => {
                    (hubs_tried, tried_again) = (hubs_tried + 1, false);
                    continue;
                }
                Err(error) => return self.refuse(desk, &lease_problem(&error), rest).await,
            };
            {
                let mut draft = self.draft.borrow_mut();
                draft.way = permit.way();
                draft.upstream_address = Some(lease.address());
                draft.injected = permit.credential().is_some();
            }
            // A caller that hangs up while we wait ends the upstream's side too.
            self.down.watch().watch(Some(lease.connection().watch()));
            desk.response.finish(usize::MAX);
            let outcome = match rest {
                Rest::AtHand(length) => self.whole(desk, permit, &mut lease, framing, length).await,
                // Boxed: both directions at once take room that few requests need.
                Rest::Unknown => Box::pin(self.streamed(desk, permit, &mut lease, framing)).await,
            };
            self.down.watch().unwatch();
            if let Err(failed) = &outcome
                && failed.is_the_upstreams(lease.reused)
                && core
                    .failures
                    .exchange_failed(lease.address(), core.tick.now_ms())
            {
                core.pool.avoid(lease.address());
            }
            match outcome {
                Ok(answered) => {
                    core.failures.exchanged(lease.address());
                    core.hubs.heard(permit, core.tick.now_ms());
                    return self.settle(desk, permit, lease, answered).await;
                }
                // The connection was closed while it was idle, as servers do. Again
                // only where that is safe: nothing was sent, or the method may be
                // repeated (RFC 9110, 9.2.2), and the body is still at hand.
                Err(Failed::BeforeAnswer { nothing_sent, .. })
                    if lease.reused
                        && !tried_again
                        && matches!(rest, Rest::AtHand(_))
                        && (nothing_sent || may_repeat(&desk.request, permit))
                        && self.within_retry_budget(&lease) =>
                {
                    core.count(Counter::upstream_retries);
                    tried_again = true;
                }
                // Not even a new connection brought an answer: another hub does the same.
                Err(Failed::BeforeAnswer { nothing_sent, .. })
                    if permit.upstream().is_hub
                        && matches!(rest, Rest::AtHand(_))
                        && (nothing_sent || may_repeat(&desk.request, permit))
                        && self.within_retry_budget(&lease) =>
                {
                    core.count(Counter::upstream_retries);
                    core.hubs.lose(permit);
                    (hubs_tried, tried_again) = (hubs_tried + 1, false);
                }
                #[cfg(test)]
                Err(failed) if crate::simulation::is(crate::simulation::Break::KeepsUnfinished) => {
                    lease.give_back(permit.upstream());
                    return self.fail(desk, failed, rest).await;
                }
                Err(failed) => {
                    drop(lease);
                    return self.fail(desk, failed, rest).await;
                }
            }
        }
    }

    fn within_retry_budget(&self, lease: &Lease) -> bool {
        let allowed = self.core.pool.may_retry(lease.key());
        if !allowed {
            self.core.count(Counter::upstream_retries_refused);
        }
        allowed
    }

    /// A request that is at hand, whole: one message up, then the answer.
    async fn whole(
        &mut self,
        desk: &mut Desk,
        permit: &Permit<'_>,
        lease: &mut Lease,
        framing: BodyFraming,
        length: usize,
    ) -> Result<Answered, Failed> {
        let Desk {
            request,
            response,
            request_plan,
            response_plan,
        } = desk;
        // Nothing may follow a request that asks for a tunnel: it would be taken
        // for the tunnel's first bytes (CVE-2026-2833 and its kin).
        let upgrade = if length == 0 && request.rest().is_empty() {
            permit.upgrade(request)
        } else {
            None
        };
        let outbound = permit.inject(
            &self.draft.borrow().request_id,
            request,
            framing,
            upgrade,
            false,
            request_plan,
        );
        let key = lease.key();
        let (mut up_in, mut up_out) = lease.connection().split();
        let (_, mut down_out) = self.down.split();
        let limits = &permit.upstream().limits;
        let body = &request.rest()[..length];
        let written = forward::write_head(&mut up_out, key, &outbound, request_plan, request, body);
        let sent = match written {
            Ok(()) => forward::flush(&mut up_out, limits.read_timeout).await,
            Err(_) => Sent::Nothing,
        };
        if sent == Sent::Nothing {
            return Err(Failed::BeforeAnswer {
                problem: UPSTREAM_CLOSED,
                nothing_sent: true,
            });
        }
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::KeepsUnfinished)
            && (self.core.counters)
                .get(Counter::exchanges)
                .is_multiple_of(3)
        {
            return Err(Failed::Abandoned);
        }
        // An upstream that takes no more may have said why: its answer is read.
        let now_ms = self.core.tick.now_ms();
        let uploaded = Cell::new(match sent {
            Sent::Whole => Upload::Whole(now_ms),
            Sent::Partly | Sent::Nothing => Upload::Failed(now_ms),
        });
        self.draft.borrow_mut().bytes_in = length as u64;
        self.consumed = length;
        Answer {
            core: self.core,
            draft: self.draft,
            permit,
            method: request.method(),
            http10: request.version() == Version::Http10,
            keep_alive: request.keep_alive() && !is_tunnel_begun(request, length),
            expects_continue: false,
            upgrade,
            uploaded: &uploaded,
            awaiting: &Cell::new(true),
            write_timeout: self.write_timeout,
        }
        .relay(response, response_plan, &mut up_in, &mut down_out)
        .await
    }

    /// A request whose body is still coming: both directions at once, since the
    /// upstream may answer before it has all of it.
    async fn streamed(
        &mut self,
        desk: &mut Desk,
        permit: &Permit<'_>,
        lease: &mut Lease,
        framing: BodyFraming,
    ) -> Result<Answered, Failed> {
        let Desk {
            request,
            response,
            request_plan,
            response_plan,
        } = desk;
        let expects_continue = request.expects_continue() && request.rest().is_empty();
        let outbound = permit.inject(
            &self.draft.borrow().request_id,
            request,
            framing,
            None,
            expects_continue,
            request_plan,
        );
        let key = lease.key();
        let (mut up_in, mut up_out) = lease.connection().split();
        let (mut down_in, mut down_out) = self.down.split();
        let limits = &permit.upstream().limits;
        let uploaded = Cell::new(Upload::UnderWay);
        let awaiting = Cell::new(true);
        let route = permit.route();
        let server = self.core.view().limits;
        let mut body = Body {
            reader: BodyReader::new(framing),
            writer: if framing == BodyFraming::Chunked {
                BodyWriter::Chunked
            } else {
                BodyWriter::Plain
            },
            bytes: 0,
            bytes_max: route.body_bytes_max,
            pace: Pace::new(server.body_rate_min, server.head_timeout),
            strip_trailers: &route.strip_fields,
            search: None,
        };
        let mut at_hand = Vec::new();
        let consumed = match body.copy_into(request.rest(), &mut at_hand) {
            Ok(used) => used,
            Err(error) => return Err(upload_failed(error, true)),
        };
        self.consumed = consumed;
        if forward::write_head(&mut up_out, key, &outbound, request_plan, request, &at_hand)
            .is_err()
        {
            return Err(Failed::BeforeAnswer {
                problem: UPSTREAM_CLOSED,
                nothing_sent: true,
            });
        }
        drop(at_hand);
        let answer = Answer {
            core: self.core,
            draft: self.draft,
            permit,
            method: request.method(),
            http10: request.version() == Version::Http10,
            keep_alive: request.keep_alive(),
            expects_continue,
            upgrade: None,
            uploaded: &uploaded,
            awaiting: &awaiting,
            write_timeout: self.write_timeout,
        };
        let read_timeout = self.write_timeout;
        let core = self.core;
        let outcome = {
            let upload = async {
                let carried = body
                    .carry(&mut down_in, &mut up_out, read_timeout, limits.read_timeout)
                    .await;
                let now_ms = core.tick.now_ms();
                let mut due = permit.response_head_timeout();
                if carried.is_ok() {
                    uploaded.set(Upload::Whole(now_ms));
                } else {
                    uploaded.set(Upload::Failed(now_ms));
                    due = due.min(ANSWER_AFTER_FAILURE);
                }
                if awaiting.get() {
                    // The time for the answer's head runs from the request's end.
                    up_out.peer_must_answer_within(due);
                }
                carried
            };
            let upload = std::pin::pin!(upload);
            let relay =
                std::pin::pin!(answer.relay(response, response_plan, &mut up_in, &mut down_out));
            match select(upload, relay).await {
                Either::Left((Ok(()), relay)) => relay.await,
                // It takes no more; perhaps it has already said why.
                Either::Left((Err(BodyError::Sink), relay)) => relay.await,
                Either::Left((Err(error), _)) => Err(upload_failed(error, awaiting.get())),
                Either::Right((outcome, _)) => outcome,
            }
        };
        // A receive that was given up with its connection has left its due time.
        self.down.watch().recv_done();
        self.draft.borrow_mut().bytes_in = body.bytes;
        outcome
    }

    /// After a complete answer: what becomes of both connections.
    async fn settle(
        &mut self,
        desk: &mut Desk,
        permit: &Permit<'_>,
        mut lease: Lease,
        answered: Answered,
    ) -> Next {
        if answered.upgraded {
            // What came along with the 101 is the tunnel's.
            let first = desk.response.rest();
            let screen = Screen::new(permit, desk.response.upgrade());
            let tunnel = tunnel::run(
                self.down,
                lease.connection(),
                first,
                screen,
                self.write_timeout,
            );
            // Boxed, as above.
            let carried = Box::pin(tunnel).await;
            note_hits(self.core, self.draft, carried.hits);
            let mut draft = self.draft.borrow_mut();
            draft.bytes_in += carried.bytes_in;
            draft.bytes_out += carried.bytes_out;
            if let Some(reason) = carried.refused {
                draft.refused = Some((Refuser::Policy, reason));
            }
            desk.request.finish(usize::MAX);
            return Next::Drop;
        }
        if answered.up_reusable {
            lease.give_back(permit.upstream());
        }
        if answered.down_persists {
            desk.request.finish(self.consumed);
            Next::KeepAlive
        } else {
            desk.request.finish(usize::MAX);
            if answered.uploaded {
                Next::Close
            } else {
                Next::Linger
            }
        }
    }

    /// After a failure: an answer of our own if nothing was passed on yet.
    async fn fail(&mut self, desk: &mut Desk, failed: Failed, rest: Rest) -> Next {
        match failed {
            Failed::BeforeAnswer { problem, .. } | Failed::Unanswered(problem) => {
                self.refuse(desk, &problem, rest).await
            }
            Failed::Cut(refuser, reason) => {
                self.draft.borrow_mut().refused = Some((refuser, reason));
                // No goodbye, and a reset: nobody takes this for the whole answer.
                self.down.outgoing().reset();
                Next::Drop
            }
            Failed::Abandoned => {
                self.core.count(Counter::exchanges_abandoned);
                self.draft.borrow_mut().refused = Some((Refuser::Caller, "caller_gone"));
                // Perhaps only its sending direction is closed, and it reads on: to a caller of
                // HTTP/1.0 a plain end would be the body's.
                self.down.outgoing().reset();
                Next::Drop
            }
        }
    }
}

/// Whether bytes stand behind a request that asked for an upgrade: the caller may mean them for the
/// tunnel, so they are never read as a request (CVE-2026-2833).
fn is_tunnel_begun(request: &RequestHead, body_len: usize) -> bool {
    request.upgrade().is_some() && request.rest().len() > body_len
}

impl Failed {
    /// Whether it speaks against the upstream's address. A re-used connection that was closed before
    /// an answer does not: servers end idle connections as they like.
    fn is_the_upstreams(&self, reused: bool) -> bool {
        match self {
            Failed::BeforeAnswer { .. } => !reused,
            Failed::Unanswered(problem) => problem.refuser == Refuser::Upstream,
            Failed::Cut(refuser, _) => *refuser == Refuser::Upstream,
            Failed::Abandoned => false,
        }
    }
}

/// Whether a request that may have arrived may be sent once more: its method says so (RFC 9110,
/// 9.2.2), or its caller does, where the route believes an `Idempotency-Key`.
fn may_repeat(request: &RequestHead, permit: &Permit<'_>) -> bool {
    request.method().is_idempotent()
        || (permit.route().retry_with_idempotency_key
            && request.fields().iter().any(|field| {
                request.name(field).eq_ignore_ascii_case(b"idempotency-key")
                    && !request.value(field).is_empty()
            }))
}

fn lease_problem(error: &LeaseError) -> Problem {
    let (status, reason, detail, refuser) = error.answer();
    let problem = Problem::new(status, reason, refuser, detail);
    if status == 503 {
        problem.retry_after(1)
    } else {
        problem
    }
}

/// What a broken upload means; `unanswered` says that nothing was passed on yet.
fn upload_failed(error: BodyError, unanswered: bool) -> Failed {
    let (problem, reason) = match error {
        BodyError::TooLarge => (BODY_TOO_LARGE, "body_too_large"),
        BodyError::Framing => (REQUEST_BODY_BROKEN, "request_body_malformed"),
        BodyError::Source(error) if error.kind() == io::ErrorKind::TimedOut => {
            (REQUEST_BODY_TIMEOUT, "request_body_timeout")
        }
        // A request's body is not searched.
        BodyError::Source(_) | BodyError::Sink | BodyError::Echo | BodyError::Uninspected => {
            return Failed::Abandoned;
        }
    };
    if unanswered {
        Failed::Unanswered(problem)
    } else {
        Failed::Cut(problem.refuser, reason)
    }
}

/// How far a request's way to the upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// More is to come.
    UnderWay,
    /// It went out whole, at this time of the core's clock.
    Whole(u64),
    /// The upstream takes no more, since this time; perhaps it says why.
    Failed(u64),
}

/// The way of an answer from the upstream to the caller.
struct Answer<'a, 's> {
    core: &'a Core,
    draft: &'a RefCell<Draft>,
    permit: &'a Permit<'s>,
    method: Method,
    /// The caller speaks HTTP/1.0: no chunks, no informational responses.
    http10: bool,
    /// The caller wants its connection kept.
    keep_alive: bool,
    expects_continue: bool,
    upgrade: Option<&'a str>,
    /// When the request had gone out, by the core's clock, and how.
    uploaded: &'a Cell<Upload>,
    /// Whether nothing was passed on yet.
    awaiting: &'a Cell<bool>,
    write_timeout: Duration,
}

impl Answer<'_, '_> {
    async fn relay(
        &self,
        response: &mut ResponseHead,
        plan: &mut Plan,
        up: &mut Incoming<'_>,
        down: &mut Outgoing<'_>,
    ) -> Result<Answered, Failed> {
        let asked = rt::now();
        let head = self.final_head(response, plan, up, down).await;
        self.draft.borrow_mut().upstream_wait += rt::now() - asked;
        head.map_err(|failed| self.or_abandoned(failed, down))?;

        let status = response.status();
        let upgraded = status == 101;
        let framing = if upgraded {
            BodyFraming::None
        } else {
            framing::of_response(response, self.method)
                .map_err(|_| Failed::Unanswered(BAD_UPSTREAM_ANSWER))?
        };
        // RFC 9112, 6.3 and 7.1: a caller of HTTP/1.0 knows no chunks.
        let (framing_down, ends_with_connection) = match framing {
            BodyFraming::Chunked | BodyFraming::UntilClose if self.http10 => {
                (BodyFraming::UntilClose, true)
            }
            BodyFraming::Chunked | BodyFraming::UntilClose => (BodyFraming::Chunked, false),
            other => (other, false),
        };
        let down_persists = self.keep_alive
            && !ends_with_connection
            && matches!(self.uploaded.get(), Upload::Whole(_))
            && !self.core.draining.get();
        self.edit(
            response,
            ResponseEdit {
                framing: framing_down,
                close: !down_persists && !upgraded,
                http10: self.http10,
                upgrade: if upgraded {
                    self.upgrade.map(str::as_bytes)
                } else {
                    None
                },
                scrubber: self.permit.scrubber(),
                keep_length: framing == BodyFraming::None,
                strip_fields: self.permit.strip_response_fields(),
            },
            plan,
        )?;
        let mut body = Body {
            reader: BodyReader::new(framing),
            writer: if framing_down == BodyFraming::Chunked {
                BodyWriter::Chunked
            } else {
                BodyWriter::Plain
            },
            bytes: 0,
            bytes_max: u64::MAX,
            pace: None,
            strip_trailers: &self.permit.route().strip_response_fields,
            search: self.search(response, framing)?,
        };
        let mut first = self.core.buffers.take_send();
        let used = if upgraded {
            // Whatever came along with the 101 is the tunnel's.
            response.rest().len()
        } else {
            match body.copy_into(response.rest(), &mut first) {
                Ok(used) => used,
                Err(error) => return Err(self.unanswered(&error, &body, first)),
            }
        };
        if !upgraded && let Err(error) = gather_answer(&mut body, up, &mut first) {
            return Err(self.unanswered(&error, &body, first));
        }
        let leftover = used < response.rest().len();
        self.awaiting.set(false);
        self.draft.borrow_mut().status = status;
        {
            let mut slices = Vec::with_capacity(16);
            plan.slices(response.bytes(), &[], &mut slices);
            slices.push(&first);
            down.write(&slices).map_err(|_| Failed::Abandoned)?;
        }
        self.core.buffers.give_send(first);
        let read_timeout = self.permit.upstream().limits.read_timeout;
        let carried = body.carry(up, down, read_timeout, self.write_timeout).await;
        self.draft.borrow_mut().bytes_out = body.bytes;
        self.note_search(&body);
        match carried {
            Ok(()) => Ok(Answered {
                up_reusable: response.keep_alive()
                    && !upgraded
                    && !leftover
                    && framing != BodyFraming::UntilClose
                    && matches!(self.uploaded.get(), Upload::Whole(_)),
                down_persists: down_persists && !upgraded,
                uploaded: matches!(self.uploaded.get(), Upload::Whole(_)),
                upgraded,
            }),
            Err(BodyError::Sink) if down.is_late() => {
                Err(Failed::Cut(Refuser::Caller, "caller_write_timeout"))
            }
            Err(BodyError::Sink) => Err(Failed::Abandoned),
            Err(BodyError::Source(error)) => Err(self.or_abandoned(
                Failed::Cut(
                    Refuser::Upstream,
                    if error.kind() == io::ErrorKind::TimedOut {
                        "upstream_read_timeout"
                    } else {
                        "upstream_body_cut"
                    },
                ),
                down,
            )),
            Err(BodyError::Framing | BodyError::TooLarge) => {
                Err(Failed::Cut(Refuser::Upstream, "upstream_framing_broken"))
            }
            Err(BodyError::Echo) => Err(Failed::Cut(KEY_ECHOED.refuser, KEY_ECHOED.reason)),
            Err(BodyError::Uninspected) => Err(Failed::Cut(
                ANSWER_NOT_INSPECTED.refuser,
                ANSWER_NOT_INSPECTED.reason,
            )),
        }
    }

    /// A body that broke before anything of its answer was passed on.
    fn unanswered(&self, error: &BodyError, body: &Body<'_>, first: Vec<u8>) -> Failed {
        self.core.buffers.give_send(first);
        self.note_search(body);
        Failed::Unanswered(match error {
            BodyError::Echo => KEY_ECHOED,
            BodyError::Uninspected => ANSWER_NOT_INSPECTED,
            BodyError::Source(_) => UPSTREAM_BODY_CUT,
            _ => BAD_UPSTREAM_ANSWER,
        })
    }

    /// Reads up to the final response head, passing informational ones on.
    async fn final_head(
        &self,
        response: &mut ResponseHead,
        plan: &mut Plan,
        up: &mut Incoming<'_>,
        down: &mut Outgoing<'_>,
    ) -> Result<(), Failed> {
        let limits = HeadLimits::default();
        for _ in 0..=INFORMATIONAL_MAX {
            self.one_head(response, up, &limits).await?;
            if response.status() < 200 && framing::informational_claims_body(response) {
                return Err(Failed::Unanswered(BAD_UPSTREAM_ANSWER));
            }
            match response.status() {
                101 if self.upgrade.is_some_and(|asked| {
                    response
                        .upgrade()
                        .is_some_and(|given| given.eq_ignore_ascii_case(asked.as_bytes()))
                }) =>
                {
                    return Ok(());
                }
                // A switch that nobody asked for, or to something else.
                101 => return Err(Failed::Unanswered(BAD_UPSTREAM_ANSWER)),
                100..=199 => {
                    let wanted =
                        !self.http10 && (response.status() != 100 || self.expects_continue);
                    if wanted {
                        self.edit(
                            response,
                            ResponseEdit {
                                framing: BodyFraming::None,
                                close: false,
                                http10: false,
                                upgrade: None,
                                scrubber: self.permit.scrubber(),
                                keep_length: false,
                                strip_fields: self.permit.strip_response_fields(),
                            },
                            plan,
                        )?;
                        {
                            let mut slices = Vec::with_capacity(8);
                            plan.slices(response.bytes(), &[], &mut slices);
                            down.write(&slices).map_err(|_| Failed::Abandoned)?;
                        }
                        down.flush(self.write_timeout)
                            .await
                            .map_err(|_| Failed::Abandoned)?;
                    }
                    response.finish(0);
                }
                _ => return Ok(()),
            }
        }
        Err(Failed::Unanswered(BAD_UPSTREAM_ANSWER))
    }

    async fn one_head(
        &self,
        response: &mut ResponseHead,
        up: &mut Incoming<'_>,
        limits: &HeadLimits,
    ) -> Result<(), Failed> {
        let begun_ms = self.core.tick.now_ms();
        loop {
            if response.buffered() > 0 {
                match response.parse(limits) {
                    Ok(Parse::Complete) => return Ok(()),
                    Ok(Parse::Partial) => {}
                    Err(_) => return Err(Failed::Unanswered(BAD_UPSTREAM_ANSWER)),
                }
            }
            // While the request is still going out the answer is not due.
            let within = self.permit.response_head_timeout();
            let left = |since_ms: u64, within: Duration| {
                let spent = self.core.tick.now_ms().saturating_sub(since_ms);
                within.saturating_sub(Duration::from_millis(spent))
            };
            let limit = match self.uploaded.get() {
                Upload::UnderWay => Duration::MAX,
                Upload::Whole(ms) => left(begun_ms.max(ms), within),
                Upload::Failed(ms) => left(ms, within.min(ANSWER_AFTER_FAILURE)),
            };
            match up.fill(limit).await {
                Ok(Filled::Data) => up.take(|chunk| {
                    response.buffer().extend_from_slice(chunk);
                    (chunk.len(), ())
                }),
                // The kernel's own verdict, that nobody is there any more, is a closed connection.
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut
                        && error.raw_os_error().is_none() =>
                {
                    return Err(Failed::Unanswered(UPSTREAM_HEAD_TIMEOUT));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(Failed::Unanswered(BAD_UPSTREAM_ANSWER));
                }
                Ok(Filled::End) | Err(_) if response.buffered() == 0 => {
                    return Err(Failed::BeforeAnswer {
                        problem: UPSTREAM_CLOSED,
                        nothing_sent: false,
                    });
                }
                Ok(Filled::End) | Err(_) => return Err(Failed::Unanswered(UPSTREAM_CLOSED)),
            }
        }
    }

    /// A failure of the upstream's side that we caused, because the caller left.
    fn or_abandoned(&self, failed: Failed, down: &Outgoing<'_>) -> Failed {
        if down.peer_is_gone() {
            Failed::Abandoned
        } else {
            failed
        }
    }

    /// Plans the head as the caller shall see it, if it may see it at all.
    fn edit(
        &self,
        response: &ResponseHead,
        edit: ResponseEdit<'_>,
        plan: &mut Plan,
    ) -> Result<(), Failed> {
        let hits = rewrite::response(response, &edit, plan);
        self.note_hits(hits);
        match self.permit.route().on_echo {
            OnEcho::Block if hits > 0 => return Err(Failed::Unanswered(KEY_ECHOED)),
            OnEcho::Report if hits > 0 => {
                let as_it_is = ResponseEdit {
                    scrubber: None,
                    ..edit
                };
                rewrite::response(response, &as_it_is, plan);
            }
            OnEcho::Redact | OnEcho::Block | OnEcho::Report => {}
        }
        Ok(())
    }

    /// How the body will be searched, if it is.
    fn search(
        &self,
        response: &ResponseHead,
        framing: BodyFraming,
    ) -> Result<Option<Search<'_>>, Failed> {
        let route = self.permit.route();
        let Some(scrubber) = self.permit.scrubber() else {
            return Ok(None);
        };
        let coded = match framing {
            BodyFraming::None | BodyFraming::Length(0) => Coded::Plain,
            _ => coded(response),
        };
        let why = match coded {
            Coded::Plain => return Ok(Some(Search::new(scrubber, route.on_echo))),
            // RFC 9110, 15.3.7: a part of what the codings have made of the text.
            Coded::With(_) if response.status() == 206 => Uninspected::Partial,
            Coded::With(codings) => {
                let (on_echo, on_uninspected) = (route.on_echo, route.on_uninspected);
                return Ok(Some(Search::coded(
                    codings,
                    scrubber,
                    on_echo,
                    on_uninspected,
                )));
            }
            Coded::Opaque => Uninspected::UnknownCoding,
        };
        match route.on_uninspected {
            OnUninspected::Mark => Ok(Some(Search::blind(why, scrubber, route.on_echo))),
            OnUninspected::Refuse => {
                self.note_uninspected(why);
                Err(Failed::Unanswered(ANSWER_NOT_INSPECTED))
            }
        }
    }

    fn note_hits(&self, hits: usize) {
        note_hits(self.core, self.draft, hits);
    }

    /// What came of the search of a body.
    fn note_search(&self, body: &Body<'_>) {
        self.note_hits(body.hits());
        if let Some(why) = body.uninspected() {
            self.note_uninspected(why);
        }
    }

    fn note_uninspected(&self, why: Uninspected) {
        self.core.count(Counter::answers_uninspected);
        self.draft.borrow_mut().uninspected = Some(why.as_str());
    }
}

/// What the fields of a response's head say of its body's codings.
fn coded(response: &ResponseHead) -> Coded {
    let is_coding = |field: &&Field| field.id == FieldId::ContentEncoding;
    let fields = response.fields().iter().filter(is_coding);
    Coded::of(fields.map(|field| response.value(field)))
}

/// Adds to `first` what has arrived of a body behind its head's record. If the body's end is missing
/// from that, and the connection's is not, it is an error, and nothing was passed on yet: better an
/// answer of ours than a cut one. Does not wait.
fn gather_answer(
    body: &mut Body<'_>,
    up: &mut Incoming<'_>,
    first: &mut Vec<u8>,
) -> Result<(), BodyError> {
    while !body.reader.is_done() && first.len() < GATHER_ANSWER_BYTES_MAX {
        match up.ready().map_err(BodyError::Source)? {
            Some(Filled::Data) => up.take(|chunk| match body.copy_into(chunk, first) {
                Ok(used) => (used, Ok(())),
                Err(error) => (0, Err(error)),
            })?,
            Some(Filled::End) if !matches!(body.reader, BodyReader::UntilClose) => {
                return Err(BodyError::Source(io::ErrorKind::UnexpectedEof.into()));
            }
            Some(Filled::End) | None => break,
        }
    }
    Ok(())
}

/// The key came back so often.
fn note_hits(core: &Core, draft: &RefCell<Draft>, hits: usize) {
    if hits > 0 {
        core.counters.add_many(Counter::scrub_hits, hits as u64);
        draft.borrow_mut().scrubbed += hits;
    }
}
