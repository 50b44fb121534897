//! The listening end: the datacenter.
//!
//! [`LinkServer::accept`] only takes attempts off the socket; the handshake runs in [`Incoming::establish`], which
//! belongs into a task of its own, so that a slow peer delays nobody. Invariant: [`Accepted::Branch`] has shown a
//! certificate of our realm; [`Accepted::Join`] has shown nothing and may be given nothing but the enrolment exchange.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use dedup::BranchId;
use quinn::crypto::rustls::HandshakeData;
use quinn::{
    Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, TokioRuntime,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use super::connection::{Link, LinkParts};
use super::error::{CODE_CLOSED, CODE_REFUSED, REASON_BYTES_MAX};
use super::tuning::REQUESTS_MAX_FROM_BRANCH;
use super::watch::Remembering;
use super::{GREETING, HANDSHAKE_TIMEOUT, LinkError, LinkTuning, Party, socket};
use crate::congestion::{PathCell, PathMemory};
use crate::identity::{CertAndKey, IdentityError, PeerIdentity, certificate_from_pem};
use crate::tls::{self, JOIN_PROTOCOL_NAME, LINK_PROTOCOL_NAME};
use crate::verify::{Authority, Verdict, VerifyBranch};

/// Attempts that may wait for [`LinkServer::accept`]; more are turned away. A whole fleet reconnecting fits.
const INCOMING_MAX: usize = 4096;
/// Early packets kept per waiting attempt, in bytes. There is no early data, so a hello and its repeats are all.
const INCOMING_BYTES_MAX: u64 = 64 * 1024;
/// Early packets kept for all waiting attempts, in bytes.
const INCOMING_BYTES_MAX_TOTAL: u64 = 32 << 20;

/// Length of our connection ids.
const CONNECTION_ID_BYTES: usize = 8;

/// A listening socket of the datacenter.
pub struct LinkServer {
    endpoint: Endpoint,
    local: SocketAddr,
    handshake: Arc<Handshake>,
}

/// What every handshake of a server shares.
struct Handshake {
    base: quinn::ServerConfig,
    tuning: LinkTuning,
    memory: OnceLock<Arc<dyn PathMemory>>,
    key: RwLock<Arc<CertifiedKey>>,
    authority: Authority,
    authority_der: CertificateDer<'static>,
    protocols: Vec<&'static str>,
}

/// A peer that knocks.
pub struct Incoming {
    incoming: quinn::Incoming,
    handshake: Arc<Handshake>,
}

/// A peer that has been let in.
#[derive(Debug)]
pub enum Accepted {
    /// A machine that wants to enrol; it has no certificate. Only a join token tells whether it may.
    Join(Link),
    /// An enrolled branch of our realm. Whether it has been revoked since is for the caller to check.
    Branch(BranchId, Link),
}

impl LinkServer {
    /// Listens on `addr` with the datacenter's certificate. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::AddressInUse`]; [`LinkError::ForeignRealm`] when certificate and authority are of different realms;
    /// [`LinkError::Identity`] for unreadable or mismatched files; [`LinkError::Tuning`].
    pub fn bind(
        addr: SocketAddr,
        identity: &CertAndKey,
        ca_cert_pem: &str,
        tuning: &LinkTuning,
    ) -> Result<Self, LinkError> {
        let key = identity.key_der()?;
        Self::bind_with_resets(addr, identity, ca_cert_pem, tuning, key.secret_der())
    }

    /// As [`LinkServer::bind`], for a datacenter that has a new certificate key at each start: `reset_secret` is a secret that it
    /// keeps. With it, a restarted datacenter tells branches at once that their links are gone; they would else wait for
    /// their idle timeouts.
    ///
    /// # Errors
    /// As [`LinkServer::bind`].
    pub fn bind_with_resets(
        addr: SocketAddr,
        identity: &CertAndKey,
        ca_cert_pem: &str,
        tuning: &LinkTuning,
        reset_secret: &[u8],
    ) -> Result<Self, LinkError> {
        let authority_der = certificate_from_pem(ca_cert_pem, "authority certificate")?;
        let authority = Authority::new(&authority_der)?;
        must_be_datacenter(identity, &authority)?;
        Self::open(
            addr,
            identity,
            authority_der,
            tuning,
            vec![LINK_PROTOCOL_NAME, JOIN_PROTOCOL_NAME],
            reset_secret,
        )
    }

    /// Listens without asking whether the identity makes sense; tests present wrong ones.
    #[cfg(test)]
    pub(crate) fn bind_unchecked(
        addr: SocketAddr,
        identity: &CertAndKey,
        authority_der: CertificateDer<'static>,
        tuning: &LinkTuning,
        protocols: Vec<&'static str>,
    ) -> Result<Self, LinkError> {
        let key = identity.key_der()?;
        let reset_secret = key.secret_der();
        Self::open(
            addr,
            identity,
            authority_der,
            tuning,
            protocols,
            reset_secret,
        )
    }

    fn open(
        addr: SocketAddr,
        identity: &CertAndKey,
        authority_der: CertificateDer<'static>,
        tuning: &LinkTuning,
        protocols: Vec<&'static str>,
        reset_secret: &[u8],
    ) -> Result<Self, LinkError> {
        let authority = Authority::new(&authority_der)?;
        let key = Arc::new(tls::certified_key(
            identity,
            std::slice::from_ref(&authority_der),
        )?);
        let crypto = tls::link_server(
            Arc::clone(&key),
            VerifyBranch {
                authority: authority.clone(),
                verdict: Verdict::default(),
            },
            &protocols,
        );
        let mut base = quinn::ServerConfig::with_crypto(crypto);
        base.transport_config(tuning.transport(
            REQUESTS_MAX_FROM_BRANCH,
            false,
            &Arc::default(),
        )?)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX_TOTAL);
        let socket = socket::bind(addr)?;
        let endpoint = Endpoint::new(
            endpoint_config(reset_secret),
            Some(base.clone()),
            socket,
            Arc::new(TokioRuntime),
        );
        let no_socket = |source| LinkError::Socket {
            addr: addr.to_string(),
            source: Arc::new(source),
        };
        let endpoint = endpoint.map_err(no_socket)?;
        let local = endpoint.local_addr().map_err(no_socket)?;
        Ok(Self {
            endpoint,
            local,
            handshake: Arc::new(Handshake {
                base,
                tuning: tuning.clone(),
                memory: OnceLock::new(),
                key: RwLock::new(key),
                authority,
                authority_der,
                protocols,
            }),
        })
    }

    /// Starts each branch's link with what its last one measured, and keeps what it measures. The key is the branch's id. A second
    /// memory is ignored.
    pub fn remember_paths(&self, memory: Arc<dyn PathMemory>) {
        let _ = self.handshake.memory.set(memory);
    }

    /// The address listened on, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next peer that knocks; `None` once the server is closed. Cancellation safe.
    pub async fn accept(&self) -> Option<Incoming> {
        Some(Incoming {
            incoming: self.endpoint.accept().await?,
            handshake: Arc::clone(&self.handshake),
        })
    }

    /// Presents a renewed certificate from the next handshake on; links that exist stay.
    ///
    /// # Errors
    /// As [`Self::bind`]; the old certificate then stays.
    pub fn renew(&self, identity: &CertAndKey) -> Result<(), LinkError> {
        must_be_datacenter(identity, &self.handshake.authority)?;
        let above = std::slice::from_ref(&self.handshake.authority_der);
        let key = Arc::new(tls::certified_key(identity, above)?);
        *self
            .handshake
            .key
            .write()
            .unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    /// Closes all links with this reason and takes no more.
    pub fn close(&self, reason: &str) {
        let reason = reason.as_bytes();
        self.endpoint
            .close(CODE_CLOSED, &reason[..reason.len().min(REASON_BYTES_MAX)]);
    }

    /// After [`Self::close`]: waits until the peers have been told, so that they need not wait for their idle timeout.
    /// Takes three times the slowest link's round trip.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

impl Incoming {
    /// The address that knocks; not proven yet.
    pub fn remote_addr(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Performs the handshake, at most 15 s long.
    ///
    /// # Errors
    /// Why the peer was refused, as also told to it, or why it went away. None of them is the server's trouble.
    pub async fn establish(self) -> Result<Accepted, LinkError> {
        let peer = self.incoming.remote_address().to_string();
        let in_time = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(&peer)).await;
        in_time.unwrap_or(Err(LinkError::TimedOut { addr: peer }))
    }

    async fn handshake(self, peer: &str) -> Result<Accepted, LinkError> {
        let verdict = Verdict::default();
        let path = Arc::new(PathCell::default());
        let config = self.handshake.config(verdict.clone(), &path)?;
        let failed = |error| {
            verdict
                .take()
                .unwrap_or_else(|| LinkError::from_connection(error, Party::Datacenter, peer))
        };
        let connection = self
            .incoming
            .accept_with(Arc::new(config))
            .map_err(failed)?
            .await
            .map_err(failed)?;
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        // The certificate was verified during the handshake; here it is only read.
        let identity = connection
            .peer_identity()
            .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok())
            .and_then(|chain| PeerIdentity::of_certificate(chain.first()?).ok());
        let branch = match (protocol.as_deref(), identity) {
            (Some(name), Some(PeerIdentity::Branch { branch, .. }))
                if name == LINK_PROTOCOL_NAME.as_bytes() =>
            {
                Some(branch)
            }
            (Some(name), _) if name == JOIN_PROTOCOL_NAME.as_bytes() => None,
            _ => return Err(refuse(&connection, "no branch certificate was presented")),
        };
        greet(&connection)
            .await
            .map_err(|error| LinkError::from_write(error, Party::Datacenter, peer))?;
        // Who dials is known only now, a round trip after the congestion control was made.
        let memory = branch
            .zip(self.handshake.memory.get())
            .map(|(BranchId(id), memory)| {
                Remembering::new(memory, &id, connection.remote_address().ip(), &path)
            });
        let link = Link::new(LinkParts {
            connection,
            here: Party::Datacenter,
            identity: identity.filter(|_| branch.is_some()),
            authority: None,
            endpoint: None,
            path,
            memory,
            window_bytes_max: self.handshake.tuning.window_bytes,
        });
        Ok(match branch {
            Some(branch) => Accepted::Branch(branch, link),
            None => Accepted::Join(link),
        })
    }
}

impl Handshake {
    /// A configuration for one handshake, whose verifier reports to `verdict` and whose congestion control to `path`.
    fn config(
        &self,
        verdict: Verdict,
        path: &Arc<PathCell>,
    ) -> Result<quinn::ServerConfig, LinkError> {
        let transport = self
            .tuning
            .transport(REQUESTS_MAX_FROM_BRANCH, false, path)?;
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        let mut config = self.base.clone();
        config.crypto = tls::link_server(
            Arc::clone(&key),
            VerifyBranch {
                authority: self.authority.clone(),
                verdict,
            },
            &self.protocols,
        );
        config.transport_config(transport);
        Ok(config)
    }
}

fn must_be_datacenter(identity: &CertAndKey, authority: &Authority) -> Result<(), LinkError> {
    match identity.identity()? {
        PeerIdentity::Datacenter { realm } if realm == authority.realm() => Ok(()),
        PeerIdentity::Datacenter { realm } => Err(LinkError::ForeignRealm {
            holder: Party::Datacenter,
            expected: authority.realm(),
            actual: realm,
        }),
        PeerIdentity::Branch { .. } => Err(IdentityError::NoIdentity {
            what: "the datacenter's certificate",
        }
        .into()),
    }
}

fn refuse(connection: &Connection, reason: &str) -> LinkError {
    connection.close(CODE_REFUSED, reason.as_bytes());
    LinkError::Refused {
        reason: reason.to_owned(),
    }
}

async fn greet(connection: &Connection) -> Result<(), quinn::WriteError> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(GREETING).await?;
    stream.finish()?;
    Ok(())
}

/// A reset key that survives a restart, derived from a secret that does: with it a restarted datacenter can
/// tell branches that their links are gone (RFC 9000 section 10.3). Otherwise they would wait for their idle timeouts.
fn endpoint_config(reset_secret: &[u8]) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, reset_secret);
    let reset = hmac::sign(&secret, b"splice link stateless reset v1");
    let reset = hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset));
    // quinn's own generator signs ids with a key of the process, and stays silent towards ids of an earlier one.
    config.cid_generator(|| Box::new(RandomIds));
    config
}

/// Eight random bytes per connection id.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        SystemRandom::new()
            .fill(&mut id)
            .expect("the operating system gives randomness");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
