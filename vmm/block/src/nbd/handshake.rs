//! The handshake: fixed newstyle option haggling, up to the choice of an export.
//!
//! In lock step with the client and bounded in time, options and bytes. Nothing agreed before TLS is kept after it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::connection::Agreement;
use super::export::{AdmitError, Client, Export, ExportSource, Seat};
use super::intake::{Intake, IntakeError};
use super::limits::{OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX, PAYLOAD_BYTES_MAX};
use super::server::TlsPolicy;
use super::socket::{Sink, Socket, Source};
use super::wire::{
    ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, INIT_MAGIC, InfoRequest, MetaError,
    MetaRequest, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_HEADER_BYTES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionHeader, REP_ACK, REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_SHUTDOWN,
    REP_ERR_TLS_REQD, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
    REP_SERVER, TX_CAN_MULTI_CONN, TX_HAS_FLAGS, TX_READ_ONLY, TX_SEND_CACHE, TX_SEND_DF,
    TX_SEND_FAST_ZERO, TX_SEND_FLUSH, TX_SEND_FUA, TX_SEND_TRIM, TX_SEND_WRITE_ZEROES, parse_name,
};

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the client does not speak NBD: {0}")]
    NotNbd(&'static str),
    #[error("the client sent an option of {0} bytes")]
    OptionTooLong(u32),
    #[error("the client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
    #[error(
        "the client asked by EXPORT_NAME, which cannot be refused politely, for an export it cannot have: {0}"
    )]
    Unavailable(String),
    #[error("the client sent plain text after STARTTLS")]
    PlainTextAfterStartTls,
    #[error("TLS")]
    Tls(#[source] io::Error),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("send")]
    Send(#[source] io::Error),
}

/// Both directions of a connection that has not chosen an export yet.
pub(crate) struct Handshake<'a> {
    pub(crate) intake: Intake,
    pub(crate) sink: Sink,
    pub(crate) socket: Option<Arc<Socket>>,
    pub(crate) client: Client,
    pub(crate) exports: &'a dyn ExportSource,
    pub(crate) tls: Option<&'a TlsPolicy>,
    pub(crate) deadline: Instant,
    agreement: Agreement,
    /// The export that the last successful SET_META_CONTEXT selected `base:allocation` for.
    allocation_of: Option<String>,
    reply: Vec<u8>,
}

/// What the client chose.
pub(crate) struct Chosen {
    pub(crate) seat: Seat,
    pub(crate) agreement: Agreement,
}

/// Whether haggling goes on.
enum Step {
    Next,
    Chosen(Chosen),
    Ended,
}

impl<'a> Handshake<'a> {
    pub(crate) fn new(
        intake: Intake,
        sink: Sink,
        socket: Option<Arc<Socket>>,
        client: Client,
        exports: &'a dyn ExportSource,
        tls: Option<&'a TlsPolicy>,
        deadline: Instant,
    ) -> Self {
        let agreement = Agreement::default();
        Self {
            intake,
            sink,
            socket,
            client,
            exports,
            tls,
            deadline,
            agreement,
            allocation_of: None,
            reply: Vec::new(),
        }
    }

    /// Haggles until the client has chosen an export, or ends the connection (`None`).
    pub(crate) fn run(&mut self) -> Result<Option<Chosen>, HandshakeError> {
        let mut hello = [0; 18];
        hello[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
        hello[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        hello[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        self.sink.send_all(&hello).map_err(HandshakeError::Send)?;
        let mut flags = [0; 4];
        self.intake.read_exact(&mut flags)?;
        let flags = u32::from_be_bytes(flags);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(HandshakeError::NotNbd("unknown handshake flags"));
        }
        let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        let mut data = Vec::new();
        for _ in 0..OPTIONS_MAX {
            let mut header = [0; OPTION_HEADER_BYTES];
            self.intake.read_exact(&mut header)?;
            let header = OptionHeader::parse(&header)
                .ok_or(HandshakeError::NotNbd("an option has no magic"))?;
            if header.len > OPTION_BYTES_MAX {
                if header.len > OPTION_SKIP_BYTES_MAX {
                    return Err(HandshakeError::OptionTooLong(header.len));
                }
                self.intake.skip(header.len as usize)?;
                self.answer(header.option, REP_ERR_TOO_BIG, b"the option is too long")?;
                continue;
            }
            data.resize(header.len as usize, 0);
            self.intake.read_exact(&mut data)?;
            match self.option(header.option, &data, no_zeroes)? {
                Step::Next => {}
                Step::Chosen(chosen) => return Ok(Some(chosen)),
                Step::Ended => return Ok(None),
            }
        }
        Err(HandshakeError::TooManyOptions)
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        no_zeroes: bool,
    ) -> Result<Step, HandshakeError> {
        let tls_missing = !self.client.tls && self.tls.is_some_and(|policy| policy.required);
        match option {
            OPT_ABORT => {
                // The client may be gone already, which is its good right.
                let _ = self.answer(option, REP_ACK, b"");
                return Ok(Step::Ended);
            }
            OPT_EXPORT_NAME if tls_missing => {
                return Err(HandshakeError::Unavailable("TLS is required".into()));
            }
            OPT_EXPORT_NAME => return self.export_name(data, no_zeroes).map(Step::Chosen),
            OPT_STARTTLS => self.start_tls(data)?,
            _ if tls_missing => {
                self.answer(option, REP_ERR_TLS_REQD, b"this server requires TLS")?
            }
            OPT_LIST if data.is_empty() => self.list()?,
            OPT_INFO | OPT_GO => {
                if let Some(chosen) = self.info(option, data)? {
                    return Ok(Step::Chosen(chosen));
                }
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.agreement.structured = true;
                self.answer(option, REP_ACK, b"")?;
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(option, data)?,
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                self.answer(option, REP_ERR_INVALID, b"this option has no data")?
            }
            _ => self.answer(option, REP_ERR_UNSUP, b"")?,
        }
        Ok(Step::Next)
    }

    fn start_tls(&mut self, data: &[u8]) -> Result<(), HandshakeError> {
        let (Some(policy), Some(socket)) = (self.tls, &self.socket) else {
            return self.answer(OPT_STARTTLS, REP_ERR_POLICY, b"this server has no TLS");
        };
        if self.client.tls || !data.is_empty() {
            return self.answer(
                OPT_STARTTLS,
                REP_ERR_INVALID,
                b"TLS is running, or the option has data",
            );
        }
        let socket = Arc::clone(socket);
        self.answer(OPT_STARTTLS, REP_ACK, b"")?;
        if !self.intake.buffered().is_empty() {
            return Err(HandshakeError::PlainTextAfterStartTls);
        }
        let upgraded = super::tls::accept(socket, Arc::clone(&policy.config), self.deadline)
            .map_err(HandshakeError::Tls)?;
        self.intake
            .replace_source(Source::Tls(Box::new(upgraded.source)));
        self.sink = Sink::Tls(Box::new(upgraded.sink));
        self.client.tls = true;
        self.client.certificate = upgraded.certificate;
        self.agreement = Agreement::default();
        self.allocation_of = None;
        Ok(())
    }

    fn list(&mut self) -> Result<(), HandshakeError> {
        let exports = self.exports.list(&self.client);
        for export in exports {
            let name = export.name().as_bytes();
            self.head(
                OPT_LIST,
                REP_SERVER,
                4 + name.len() + export.description().len(),
            );
            self.reply
                .extend_from_slice(&(name.len() as u32).to_be_bytes());
            self.reply.extend_from_slice(name);
            self.reply
                .extend_from_slice(export.description().as_bytes());
        }
        self.answer(OPT_LIST, REP_ACK, b"")
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<(), HandshakeError> {
        let setting = option == OPT_SET_META_CONTEXT;
        if setting {
            // Also a failing request replaces what was selected.
            self.allocation_of = None;
            if !self.agreement.structured {
                return self.answer(option, REP_ERR_INVALID, b"structured replies come first");
            }
        }
        let request = match MetaRequest::parse(data) {
            Ok(request) => request,
            Err(MetaError::Invalid) => {
                return self.answer(option, REP_ERR_INVALID, b"malformed request");
            }
            Err(MetaError::TooManyQueries) => {
                return self.answer(option, REP_ERR_TOO_BIG, b"too many queries");
            }
        };
        if self.exports.find(request.name, &self.client).is_none() {
            return self.answer(option, REP_ERR_UNKNOWN, b"there is no such export");
        }
        let listed = !setting && (request.no_queries || request.names_base);
        if request.names_allocation || listed {
            let id = if setting { ALLOCATION_CONTEXT_ID } else { 0 };
            self.head(option, REP_META_CONTEXT, 4 + ALLOCATION_CONTEXT.len());
            self.reply.extend_from_slice(&id.to_be_bytes());
            self.reply.extend_from_slice(ALLOCATION_CONTEXT.as_bytes());
            if setting {
                self.allocation_of = Some(request.name.to_owned());
            }
        }
        self.answer(option, REP_ACK, b"")
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Result<Option<Chosen>, HandshakeError> {
        let Some(request) = InfoRequest::parse(data) else {
            self.answer(option, REP_ERR_INVALID, b"malformed request")?;
            return Ok(None);
        };
        let Some(export) = self.exports.find(request.name, &self.client) else {
            self.answer(option, REP_ERR_UNKNOWN, b"there is no such export")?;
            return Ok(None);
        };
        let seat = if option == OPT_GO {
            match export.admit(self.socket.clone()) {
                Ok(seat) => Some(seat),
                Err(refused) => {
                    let reason = match refused {
                        AdmitError::Closed => REP_ERR_SHUTDOWN,
                        AdmitError::TooMany => REP_ERR_POLICY,
                    };
                    self.answer(option, reason, refused.to_string().as_bytes())?;
                    return Ok(None);
                }
            }
        } else {
            None
        };
        let geometry = export.device().geometry();
        self.head(option, REP_INFO, 12);
        self.reply.extend_from_slice(&INFO_EXPORT.to_be_bytes());
        self.reply
            .extend_from_slice(&geometry.size_bytes.to_be_bytes());
        self.reply
            .extend_from_slice(&self.transmission_flags(&export).to_be_bytes());
        let preferred = geometry
            .block_bytes_preferred
            .max(geometry.block_bytes_min)
            .max(512)
            .next_power_of_two();
        self.head(option, REP_INFO, 14);
        self.reply.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        for size in [
            geometry.block_bytes_min,
            preferred.min(PAYLOAD_BYTES_MAX),
            PAYLOAD_BYTES_MAX,
        ] {
            self.reply.extend_from_slice(&size.to_be_bytes());
        }
        for (wanted, info, text) in [
            (request.wants_name, INFO_NAME, export.name()),
            (
                request.wants_description,
                INFO_DESCRIPTION,
                export.description(),
            ),
        ] {
            if wanted {
                self.head(option, REP_INFO, 2 + text.len());
                self.reply.extend_from_slice(&info.to_be_bytes());
                self.reply.extend_from_slice(text.as_bytes());
            }
        }
        self.answer(option, REP_ACK, b"")?;
        Ok(seat.map(|seat| self.choose(seat, request.name)))
    }

    fn export_name(&mut self, data: &[u8], no_zeroes: bool) -> Result<Chosen, HandshakeError> {
        let unavailable =
            |why: &dyn std::fmt::Display| HandshakeError::Unavailable(why.to_string());
        let name = parse_name(data).ok_or_else(|| unavailable(&"the name is no valid string"))?;
        let export = self
            .exports
            .find(name, &self.client)
            .ok_or_else(|| unavailable(&"there is no such export"))?;
        let seat = export
            .admit(self.socket.clone())
            .map_err(|refused| unavailable(&refused))?;
        let mut reply = export.device().geometry().size_bytes.to_be_bytes().to_vec();
        reply.extend_from_slice(&self.transmission_flags(&export).to_be_bytes());
        if !no_zeroes {
            reply.resize(reply.len() + 124, 0);
        }
        self.sink.send_all(&reply).map_err(HandshakeError::Send)?;
        Ok(self.choose(seat, name))
    }

    fn choose(&self, seat: Seat, name: &str) -> Chosen {
        let allocation = self.allocation_of.as_deref() == Some(name);
        Chosen {
            seat,
            agreement: Agreement {
                allocation,
                ..self.agreement
            },
        }
    }

    fn transmission_flags(&self, export: &Export) -> u16 {
        let device = export.device();
        // A flush covers the whole device, whichever connection the writes came by.
        let mut flags =
            TX_HAS_FLAGS | TX_SEND_FLUSH | TX_SEND_FUA | TX_CAN_MULTI_CONN | TX_SEND_CACHE;
        if device.geometry().read_only {
            flags |= TX_READ_ONLY;
        } else {
            flags |= TX_SEND_TRIM | TX_SEND_WRITE_ZEROES;
            if device.has_fast_zero() {
                flags |= TX_SEND_FAST_ZERO;
            }
        }
        if self.agreement.structured {
            flags |= TX_SEND_DF;
        }
        flags
    }

    /// Begins one option reply in the reply buffer.
    fn head(&mut self, option: u32, kind: u32, len: usize) {
        self.reply
            .extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.reply.extend_from_slice(&option.to_be_bytes());
        self.reply.extend_from_slice(&kind.to_be_bytes());
        self.reply.extend_from_slice(&(len as u32).to_be_bytes());
    }

    /// Adds the final reply to an option and sends everything.
    fn answer(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), HandshakeError> {
        self.head(option, kind, data.len());
        self.reply.extend_from_slice(data);
        let sent = self
            .sink
            .send_all(&self.reply)
            .map_err(HandshakeError::Send);
        self.reply.clear();
        sent
    }
}
