//! [`Handshake`] and [`Session`]: TLS as [`crate::transport`] speaks it.
//!
//! rustls makes the handshake, over its unbuffered interface, fed record by
//! record. When it is done the connection's keys move into a [`Session`], which
//! opens each record where it was received and seals each message where it will
//! be sent from ([`crate::record`]). So a connection that waits holds two keys and
//! the secrets for their successors, and no buffer; and a body is copied once.
//!
//! A [`Session`] knows what may follow a handshake and nothing else: data, alerts,
//! key updates and session tickets (RFC 8446, section 4.6). Whatever else arrives
//! ends the connection. Renegotiation (TLS 1.2) is declined.
//!
//! What it lacks: sockets, time, and early data.

use std::ops::Range;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{
    AlertDescription, CipherSuiteCommon, ClientConfig, CommonState, Error, HandshakeKind,
    HandshakeType, InvalidMessage, PeerMisbehaved, ProtocolVersion, ServerConfig,
    SupportedCipherSuite,
};

use crate::record::{self, Content, Opener, PLAIN_BYTES_MAX, Sealer};

/// A handshake message that follows a handshake, at most; rustls's own bound during
/// one. A longer one ends the connection.
const MESSAGE_BYTES_MAX: usize = 0xffff;

/// Records in a row that carry no data, at most: empty ones, tickets, key updates,
/// warnings. One more ends the connection, since they cost us work and move nothing.
const DATALESS_MAX: u8 = 32;

/// Requests to renegotiate that are declined; one more ends the connection.
const RENEGOTIATIONS_DECLINED_MAX: u8 = 1;

/// A handshake under way.
pub struct Handshake {
    side: Handshaking,
    /// Bytes of the handshake's input that rustls has seen and still needs.
    /// Invariant: they are the front of what [`advance`](Self::advance) is given.
    seen: usize,
}

enum Handshaking {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
    #[cfg(test)]
    Simulated(simulated::Greeting),
}

/// Where a handshake stands.
pub enum Progress {
    /// More bytes of the peer are needed.
    Waits,
    /// It is over; send what there is to send, and go on with the session.
    Done,
}

impl Handshake {
    /// Ours is the client's part.
    ///
    /// # Errors
    /// A configuration or a name that rustls cannot work with.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        #[cfg(test)]
        if let Some(greeting) = simulated::Greeting::new(&name) {
            return Ok(Self {
                side: Handshaking::Simulated(greeting),
                seen: 0,
            });
        }
        UnbufferedClientConnection::new(config, name).map(|connection| Self {
            side: Handshaking::Client(connection),
            seen: 0,
        })
    }

    /// Ours is the server's part.
    ///
    /// # Errors
    /// A configuration that rustls cannot work with.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(|connection| Self {
            side: Handshaking::Server(connection),
            seen: 0,
        })
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Handshaking::Client(connection) => connection,
            Handshaking::Server(connection) => connection,
            #[cfg(test)]
            Handshaking::Simulated(_) => unreachable!("rustls has no part in it"),
        }
    }

    /// Goes as far as `input` allows, appending to `out` what the peer must be sent;
    /// also on errors, when it is the alert. Returns how much of `input` is used up;
    /// what is left must be in front of what is given next time.
    ///
    /// Records behind the handshake's last one are left alone: they are the session's.
    ///
    /// # Errors
    /// Whatever rustls found wrong.
    pub fn advance(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Result<Progress, Error>) {
        #[cfg(test)]
        if let Handshaking::Simulated(greeting) = &mut self.side {
            return greeting.advance(input, out);
        }
        let mut used = 0;
        let outcome = loop {
            let end = used + self.seen;
            let step = match self.step(&mut input[used..end], out) {
                (discard, Ok(step)) => {
                    used += discard;
                    self.seen -= discard;
                    step
                }
                (_, Err(error)) => {
                    self.encode_pending(out);
                    break Err(error);
                }
            };
            match step {
                Step::Again => {}
                Step::Ended => break Err(PEER_ENDED),
                // Nothing of the next record is read before the keys have moved.
                Step::Waits if !self.state().is_handshaking() => break Ok(Progress::Done),
                Step::Waits => match record::length(&input[end..]) {
                    Ok(Some(length)) if input.len() - end >= length => self.seen += length,
                    Ok(_) => break Ok(Progress::Waits),
                    // rustls says better what is wrong with it.
                    Err(_) if end < input.len() => self.seen = input.len() - used,
                    Err(error) => break Err(error),
                },
            }
        };
        (used, outcome)
    }

    fn step(&mut self, input: &mut [u8], out: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
        match &mut self.side {
            Handshaking::Client(connection) => step(connection.process_tls_records(input), out),
            Handshaking::Server(connection) => step(connection.process_tls_records(input), out),
            #[cfg(test)]
            Handshaking::Simulated(_) => unreachable!("rustls has no part in it"),
        }
    }

    /// Takes what rustls has to say after an error.
    fn encode_pending(&mut self, out: &mut Vec<u8>) {
        while self.state().wants_write() {
            // What waits to be sent comes before anything is read.
            if !matches!(self.step(&mut [], out), (_, Ok(Step::Again))) {
                return;
            }
        }
    }

    /// The certificate that a caller has shown, verified by its virtual host's rules.
    pub fn client_certificate(&self) -> Option<CertificateDer<'static>> {
        match &self.side {
            Handshaking::Client(_) => None,
            #[cfg(test)]
            Handshaking::Simulated(_) => None,
            Handshaking::Server(connection) => {
                let shown = connection.peer_certificates()?.first()?;
                Some(shown.clone().into_owned())
            }
        }
    }

    /// The session that was agreed on.
    ///
    /// # Errors
    /// The handshake is not over, or the configuration does not allow the keys to move
    /// (`enable_secret_extraction`).
    pub fn into_session(self) -> Result<Session, Error> {
        #[cfg(test)]
        if let Handshaking::Simulated(greeting) = self.side {
            return greeting.into_session();
        }
        let kind = self.state().handshake_kind();
        let (version, suite, secrets, kernel) = match self.side {
            Handshaking::Client(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                (
                    kernel.protocol_version(),
                    kernel.negotiated_cipher_suite(),
                    secrets,
                    Kernel::Client(kernel),
                )
            }
            Handshaking::Server(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                (
                    kernel.protocol_version(),
                    kernel.negotiated_cipher_suite(),
                    secrets,
                    Kernel::Server(kernel),
                )
            }
            #[cfg(test)]
            Handshaking::Simulated(_) => unreachable!("it has its session"),
        };
        Ok(Session {
            opener: Opener::new(version, secrets.rx)?,
            sealer: Sealer::new(version, secrets.tx, records_max(suite))?,
            kernel,
            version,
            suite,
            is_resumed: kind == Some(HandshakeKind::Resumed),
            message: Vec::new(),
            dataless: 0,
            renegotiations: 0,
            owes_key_update: false,
            is_over: false,
            failure: None,
        })
    }
}

const PEER_ENDED: Error = Error::AlertReceived(AlertDescription::CloseNotify);

/// What one call of rustls has led to.
enum Step {
    Again,
    Waits,
    Ended,
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
) -> (usize, Result<Step, Error>) {
    let step = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut data) => {
            encode(&mut data, out)?;
            Ok(Step::Again)
        }
        // All that was encoded goes out in one send, before more is waited for.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Step::Waits),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Ended),
        // Early data is never on, and a record of data is only given to the session.
        _ => Err(Error::HandshakeNotComplete),
    });
    (status.discard, step)
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), Error> {
    let Err(EncodeError::InsufficientSize(short)) = data.encode(&mut []) else {
        return Ok(());
    };
    let at = out.len();
    out.resize(at + short.required_size, 0);
    match data.encode(&mut out[at..]) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::General("a message that does not fit".into())),
    }
}

fn records_max(suite: SupportedCipherSuite) -> u64 {
    let common: &CipherSuiteCommon = match suite {
        SupportedCipherSuite::Tls12(suite) => &suite.common,
        SupportedCipherSuite::Tls13(suite) => &suite.common,
    };
    common.confidentiality_limit
}

/// A TLS connection after its handshake.
pub struct Session {
    opener: Opener,
    sealer: Sealer,
    /// What derives the next keys, and keeps tickets.
    kernel: Kernel,
    version: ProtocolVersion,
    suite: SupportedCipherSuite,
    is_resumed: bool,
    /// The front of a handshake message that came in pieces.
    message: Vec<u8>,
    /// Records without data since the last one with.
    dataless: u8,
    renegotiations: u8,
    /// The peer has asked for our next key; our next record comes after it.
    owes_key_update: bool,
    /// Our direction has ended, by a goodbye or by an alert.
    is_over: bool,
    /// What the peer did that it must not: nothing is opened any more.
    failure: Option<Error>,
}

/// rustls's remains of a connection.
enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
    #[cfg(test)]
    Simulated,
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// Data, at this place of the record.
    Data(Range<usize>),
    /// Something between the two ends, which is dealt with.
    Nothing,
    /// The peer's goodbye: nothing more will come.
    End,
}

impl Session {
    /// Whether the handshake was short, by a ticket.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Opens the record that `record` is, whole. What must be said in reply is
    /// appended to `out`; on errors it is the alert.
    ///
    /// # Errors
    /// The connection must end: nothing is opened any more.
    pub fn open(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Opened, Error> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        self.opened(record, out)
            .inspect_err(|error| self.refuse(error, out))
    }

    /// Ends our direction, since the peer did what it must not, with the alert that
    /// says so at the end of `out`.
    pub fn refuse(&mut self, error: &Error, out: &mut Vec<u8>) {
        self.failure = Some(error.clone());
        if !std::mem::replace(&mut self.is_over, true)
            && let Some(description) = alert_for(error)
        {
            self.send_alert([FATAL, description.into()], out);
        }
    }

    fn opened(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Opened, Error> {
        let (content, at) = self.opener.open(record)?;
        let text = &record[at.clone()];
        // RFC 8446, section 5.1: nothing comes between a message's parts, and only
        // data may be empty.
        if content != Content::Handshake && !self.message.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        if content == Content::Data && !text.is_empty() {
            self.dataless = 0;
            return Ok(Opened::Data(at));
        }
        self.dataless += 1;
        if self.dataless > DATALESS_MAX {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        match content {
            Content::Data => Ok(Opened::Nothing),
            Content::Alert => self.alerted(text),
            Content::Handshake => {
                self.handshake_messages(text, out)?;
                Ok(Opened::Nothing)
            }
            Content::ChangeCipherSpec => Err(Error::InappropriateMessage {
                expect_types: vec![rustls::ContentType::ApplicationData],
                got_type: rustls::ContentType::ChangeCipherSpec,
            }),
        }
    }

    fn is_1_3(&self) -> bool {
        self.version == ProtocolVersion::TLSv1_3
    }

    /// RFC 8446, section 6: every alert but these two is an error, whatever its level
    /// says. TLS 1.2 has warnings.
    fn alerted(&self, text: &[u8]) -> Result<Opened, Error> {
        let &[level, description] = text else {
            return Err(InvalidMessage::MissingData("alert").into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Ok(Opened::End),
            AlertDescription::UserCanceled => Ok(Opened::Nothing),
            _ if level == WARNING && !self.is_1_3() => Ok(Opened::Nothing),
            description => Err(Error::AlertReceived(description)),
        }
    }

    /// Messages of one record, the first of which may have begun in an earlier one.
    fn handshake_messages(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if text.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        let mut begun = std::mem::take(&mut self.message);
        let joined;
        let mut rest = if begun.is_empty() {
            text
        } else {
            begun.extend_from_slice(text);
            joined = begun;
            &joined
        };
        while let Some((kind, body, behind)) = split_message(rest)? {
            rest = behind;
            self.handshake_message(kind, body, rest.is_empty(), out)?;
        }
        self.message.extend_from_slice(rest);
        Ok(())
    }

    fn handshake_message(
        &mut self,
        kind: HandshakeType,
        body: &[u8],
        is_last: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let is_1_3 = self.is_1_3();
        match (kind, &mut self.kernel) {
            (HandshakeType::KeyUpdate, _) if is_1_3 => self.key_updated(body, is_last),
            (HandshakeType::NewSessionTicket, Kernel::Client(kernel)) if is_1_3 => {
                kernel.handle_new_session_ticket(body)
            }
            #[cfg(test)]
            (HandshakeType::NewSessionTicket, Kernel::Simulated) => Ok(()),
            (HandshakeType::HelloRequest, Kernel::Client(_))
            | (HandshakeType::ClientHello, Kernel::Server(_))
                if !is_1_3 =>
            {
                // RFC 5246, section 7.2.2.
                self.renegotiations += 1;
                if self.renegotiations > RENEGOTIATIONS_DECLINED_MAX {
                    return Err(PeerMisbehaved::TooManyRenegotiationRequests.into());
                }
                self.warn(AlertDescription::NoRenegotiation, out);
                Ok(())
            }
            (kind, _) => Err(Error::InappropriateHandshakeMessage {
                expect_types: vec![HandshakeType::KeyUpdate],
                got_type: kind,
            }),
        }
    }

    /// RFC 8446, section 4.6.3.
    fn key_updated(&mut self, body: &[u8], is_last: bool) -> Result<(), Error> {
        if !is_last {
            // RFC 8446, section 5.1: what follows is under the next key.
            return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
        }
        match body {
            [0] => {}
            // Several requests have one reply (RFC 8446, section 4.6.3).
            [1] => self.owes_key_update = true,
            _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        }
        let secrets = match &mut self.kernel {
            Kernel::Client(kernel) => kernel.update_rx_secret()?,
            Kernel::Server(kernel) => kernel.update_rx_secret()?,
            #[cfg(test)]
            Kernel::Simulated => return Err(Error::General("no key updates here".into())),
        };
        self.opener = Opener::new(self.version, secrets)?;
        Ok(())
    }

    /// Seals one message, the slices in a row, as records at the end of `out`.
    ///
    /// # Errors
    /// Our direction has ended, or TLS 1.2's key is spent.
    pub fn seal(&mut self, slices: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Error> {
        if self.is_over {
            return Err(Error::EncryptError);
        }
        let mut left: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut slices = slices.iter().copied();
        let mut current: &[u8] = &[];
        while left > 0 {
            self.refresh_key(out)?;
            let bytes = left.min(PLAIN_BYTES_MAX);
            let slices = &mut slices;
            let current = &mut current;
            self.sealer.seal(Content::Data, bytes, out, |out| {
                let mut wanted = bytes;
                while wanted > 0 {
                    if current.is_empty() {
                        let Some(next) = slices.next() else { return };
                        *current = next;
                    }
                    let (now, later) = current.split_at(wanted.min(current.len()));
                    out.extend_from_slice(now);
                    wanted -= now.len();
                    *current = later;
                }
            })?;
            left -= bytes;
        }
        Ok(())
    }

    /// Sends with the next key from here on, if the peer wants it or this one is spent.
    fn refresh_key(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
        let is_due = self.owes_key_update || self.is_1_3() && self.sealer.is_nearly_spent();
        if !is_due {
            return Ok(());
        }
        self.owes_key_update = false;
        let message = KEY_UPDATE_NOT_REQUESTED;
        self.sealer
            .seal(Content::Handshake, message.len(), out, |out| {
                out.extend_from_slice(&message);
            })?;
        let secrets = match &mut self.kernel {
            Kernel::Client(kernel) => kernel.update_tx_secret()?,
            Kernel::Server(kernel) => kernel.update_tx_secret()?,
            #[cfg(test)]
            Kernel::Simulated => return Err(Error::General("no key updates here".into())),
        };
        self.sealer = Sealer::new(self.version, secrets, records_max(self.suite))?;
        Ok(())
    }

    /// Says goodbye, once: nothing follows.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.warn(AlertDescription::CloseNotify, out);
        }
    }

    fn warn(&mut self, description: AlertDescription, out: &mut Vec<u8>) {
        self.send_alert([WARNING, description.into()], out);
    }

    fn send_alert(&mut self, alert: [u8; 2], out: &mut Vec<u8>) {
        // A key that is spent says nothing any more, not even this.
        let _ = self.sealer.seal(Content::Alert, alert.len(), out, |out| {
            out.extend_from_slice(&alert);
        });
    }
}

/// A message's kind, its body, and what is behind it.
type Split<'b> = (HandshakeType, &'b [u8], &'b [u8]);

/// The first message of `bytes`, if it is there whole.
fn split_message(bytes: &[u8]) -> Result<Option<Split<'_>>, Error> {
    let Some((&[kind, high, middle, low], behind)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(InvalidMessage::HandshakePayloadTooLarge.into());
    }
    Ok(behind
        .split_at_checked(length)
        .map(|(body, behind)| (HandshakeType::from(kind), body, behind)))
}

/// Levels of an alert (RFC 8446, section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// What the peer is told about an error (RFC 8446, section 6.2); it needs no alert
/// about its own.
fn alert_for(error: &Error) -> Option<AlertDescription> {
    match error {
        Error::AlertReceived(_) => None,
        Error::DecryptError => Some(AlertDescription::BadRecordMac),
        Error::PeerSentOversizedRecord => Some(AlertDescription::RecordOverflow),
        Error::InvalidMessage(error) => Some((*error).into()),
        _ => Some(AlertDescription::UnexpectedMessage),
    }
}

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
#[cfg(test)]
pub mod simulated;
#[cfg(test)]
mod tests;
