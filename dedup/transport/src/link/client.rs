//! The dialling end: a branch, enrolled or about to be.
//!
//! Every link has a socket of its own, so that a branch whose network changed starts from a fresh port. A name with
//! several addresses is tried in the resolver's order, each a little after the one before, and the first that answers
//! wins. Invariant: a link that is returned has been accepted by the datacenter (its greeting has arrived). One call
//! makes one attempt; when to call again is the caller's policy.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dedup::RealmId;
use quinn::{ConnectError, Connection, Endpoint, EndpointConfig, TokioRuntime, TransportConfig};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::task::JoinSet;

use super::connection::{Link, LinkParts};
use super::error::CODE_CLOSED;
use super::tuning::REQUESTS_MAX_FROM_DATACENTER;
use super::watch::Remembering;
use super::{GREETING, HANDSHAKE_TIMEOUT, LinkError, LinkTuning, Party, socket};
use crate::congestion::{PathCell, PathMemory};
use crate::identity::{CertAndKey, IdentityError, PeerIdentity, certificate_from_pem};
use crate::tls::{self, JOIN_PROTOCOL_NAME, LINK_PROTOCOL_NAME};
use crate::verify::{Authority, Verdict, VerifyDatacenter, VerifyJoin};

/// Addresses of one name that are tried: two families, two of each.
const ADDRESSES_MAX: usize = 4;
/// Head start of each address over the next: longer than the handshake on a satellite path takes its first round.
const HEAD_START: Duration = Duration::from_secs(1);
/// Longest wait for the resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// An enrolled branch's means of reaching its datacenter.
#[derive(Clone)]
pub struct LinkClient {
    dialler: Dialler,
}

#[derive(Clone)]
struct Dialler {
    credentials: Credentials,
    tuning: LinkTuning,
    protocol: &'static str,
    memory: Option<Arc<dyn PathMemory>>,
}

#[derive(Clone)]
enum Credentials {
    Branch {
        key: Arc<CertifiedKey>,
        authority: Authority,
        realm: RealmId,
    },
    Join {
        ca_hash: [u8; 32],
    },
}

impl LinkClient {
    /// Prepares links of an enrolled branch.
    ///
    /// # Errors
    /// [`LinkError::ForeignRealm`] when certificate or authority are not of `realm`; [`LinkError::Identity`] for
    /// unreadable or mismatched files or a certificate that is not a branch's; [`LinkError::Tuning`].
    pub fn new(
        identity: &CertAndKey,
        ca_cert_pem: &str,
        realm: RealmId,
        tuning: &LinkTuning,
    ) -> Result<Self, LinkError> {
        let foreign = |holder, actual| LinkError::ForeignRealm {
            holder,
            expected: realm,
            actual,
        };
        let authority = authority(ca_cert_pem)?;
        if authority.realm() != realm {
            return Err(foreign(Party::Datacenter, authority.realm()));
        }
        match identity.identity()? {
            PeerIdentity::Branch { realm: own, .. } if own == realm => {}
            PeerIdentity::Branch { realm: own, .. } => return Err(foreign(Party::Branch, own)),
            PeerIdentity::Datacenter { .. } => {
                return Err(IdentityError::NoIdentity {
                    what: "the branch's certificate",
                }
                .into());
            }
        }
        Self::new_unchecked(identity, authority, tuning, LINK_PROTOCOL_NAME)
    }

    /// Prepares links without asking whether the identity makes sense; tests present wrong ones.
    pub(crate) fn new_unchecked(
        identity: &CertAndKey,
        authority: Authority,
        tuning: &LinkTuning,
        protocol: &'static str,
    ) -> Result<Self, LinkError> {
        Ok(Self {
            dialler: Dialler {
                credentials: Credentials::Branch {
                    key: Arc::new(tls::certified_key(identity, &[])?),
                    realm: authority.realm(),
                    authority,
                },
                tuning: checked(tuning)?,
                protocol,
                memory: None,
            },
        })
    }

    /// Starts each link with what the last one to the same address measured, and keeps what it measures. The key is the address as
    /// given to [`Self::connect`].
    #[must_use]
    pub fn remembering(mut self, memory: Arc<dyn PathMemory>) -> Self {
        self.dialler.memory = Some(memory);
        self
    }

    /// Makes a link to the datacenter at `addr` (`host:port`). The name serves for finding it only; who answers is
    /// proven by the realm's certificate. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Why there is no link; [`LinkError::is_permanent`] says whether another attempt can help.
    pub async fn connect(&self, addr: &str) -> Result<Link, LinkError> {
        self.dialler.dial(addr).await
    }

    /// Makes a link for enrolment: the datacenter must show the authority whose SHA-256 is `ca_hash`, and
    /// [`Link::authority_pem`] then gives it. The datacenter knows nothing about this end yet.
    ///
    /// # Errors
    /// [`LinkError::WrongJoinAuthority`] when another datacenter answers; else as [`Self::connect`].
    pub async fn join(
        addr: &str,
        ca_hash: [u8; 32],
        tuning: &LinkTuning,
    ) -> Result<Link, LinkError> {
        Self::join_as(
            addr,
            Credentials::Join { ca_hash },
            tuning,
            JOIN_PROTOCOL_NAME,
        )
        .await
    }

    /// An enrolment's credentials under any protocol name; tests speak the wrong one.
    #[cfg(test)]
    pub(crate) async fn join_speaking(
        addr: &str,
        ca_hash: [u8; 32],
        tuning: &LinkTuning,
        protocol: &'static str,
    ) -> Result<Link, LinkError> {
        Self::join_as(addr, Credentials::Join { ca_hash }, tuning, protocol).await
    }

    async fn join_as(
        addr: &str,
        credentials: Credentials,
        tuning: &LinkTuning,
        protocol: &'static str,
    ) -> Result<Link, LinkError> {
        let dialler = Dialler {
            credentials,
            tuning: checked(tuning)?,
            protocol,
            memory: None,
        };
        dialler.dial(addr).await
    }
}

impl std::fmt::Debug for LinkClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkClient").finish_non_exhaustive()
    }
}

impl Dialler {
    async fn dial(&self, addr: &str) -> Result<Link, LinkError> {
        let mut attempts = JoinSet::new();
        for (index, address) in resolve(addr).await?.into_iter().enumerate() {
            let dialler = self.clone();
            let name = addr.to_owned();
            let delay = HEAD_START * u32::try_from(index).expect("at most four addresses");
            attempts.spawn(async move {
                tokio::time::sleep(delay).await;
                dialler.attempt(&name, address).await
            });
        }
        let mut worst: Option<LinkError> = None;
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(link)) => return Ok(link),
                // A refusal says more than a silence at another address of the same name.
                Ok(Err(error)) => {
                    if worst
                        .as_ref()
                        .is_none_or(|worst| error.is_permanent() && !worst.is_permanent())
                    {
                        worst = Some(error);
                    }
                }
                // Nobody aborts the tasks while we wait, so this is a panic, and ours.
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
        Err(worst.expect("a name resolves to at least one address"))
    }

    async fn attempt(&self, name: &str, address: SocketAddr) -> Result<Link, LinkError> {
        let timed_out = || LinkError::TimedOut {
            addr: display(name, address),
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(name, address))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
    }

    async fn handshake(&self, name: &str, address: SocketAddr) -> Result<Link, LinkError> {
        let shown = display(name, address);
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            None,
            socket::towards(address)?,
            Arc::new(TokioRuntime),
        )
        .map_err(|source| LinkError::Socket {
            addr: shown.clone(),
            source: Arc::new(source),
        })?;
        let path = Arc::new(PathCell::default());
        let transport = self
            .tuning
            .transport(REQUESTS_MAX_FROM_DATACENTER, true, &path)?;
        let memory = self
            .memory
            .as_ref()
            .map(|memory| Remembering::new(memory, name.as_bytes(), address.ip(), &path));
        let verdict = Verdict::default();
        let joined = Arc::new(OnceLock::new());
        let failed = |error| {
            verdict
                .take()
                .unwrap_or_else(|| LinkError::from_connection(error, Party::Branch, &shown))
        };
        let connection = endpoint
            .connect_with(
                self.config(transport, &verdict, &joined),
                address,
                "datacenter",
            )
            .map_err(|error| match error {
                ConnectError::InvalidRemoteAddress(_) | ConnectError::InvalidServerName(_) => {
                    LinkError::BadAddress {
                        addr: name.to_owned(),
                    }
                }
                other => LinkError::Broken {
                    detail: other.to_string(),
                },
            })?
            .await
            .map_err(failed)?;
        wait_for_greeting(&connection, &shown).await?;
        let identity = match &self.credentials {
            Credentials::Branch { realm, .. } => Some(PeerIdentity::Datacenter { realm: *realm }),
            Credentials::Join { .. } => {
                joined
                    .get()
                    .and_then(|der| Authority::new(der).ok())
                    .map(|authority| PeerIdentity::Datacenter {
                        realm: authority.realm(),
                    })
            }
        };
        Ok(Link::new(LinkParts {
            connection,
            here: Party::Branch,
            identity,
            authority: joined.get().cloned(),
            endpoint: Some(endpoint),
            path,
            memory,
            window_bytes_max: self.tuning.window_bytes,
        }))
    }

    fn config(
        &self,
        transport: Arc<TransportConfig>,
        verdict: &Verdict,
        joined: &Arc<OnceLock<CertificateDer<'static>>>,
    ) -> quinn::ClientConfig {
        let verdict = verdict.clone();
        let crypto = match &self.credentials {
            Credentials::Branch { key, authority, .. } => tls::link_client(
                Arc::clone(key),
                VerifyDatacenter {
                    authority: authority.clone(),
                    verdict,
                },
                &[self.protocol],
            ),
            Credentials::Join { ca_hash } => tls::join_client(
                VerifyJoin {
                    ca_hash: *ca_hash,
                    verdict,
                    authority: Arc::clone(joined),
                },
                &[self.protocol],
            ),
        };
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(transport);
        config
    }
}

/// Refuses impossible settings before anything is dialled.
fn checked(tuning: &LinkTuning) -> Result<LinkTuning, LinkError> {
    tuning.transport(REQUESTS_MAX_FROM_DATACENTER, true, &Arc::default())?;
    Ok(tuning.clone())
}

/// The datacenter has looked at our certificate and wants us.
async fn wait_for_greeting(connection: &Connection, peer: &str) -> Result<(), LinkError> {
    let mut stream = connection
        .accept_uni()
        .await
        .map_err(|error| LinkError::from_connection(error, Party::Branch, peer))?;
    let mut greeting = [0; GREETING.len()];
    let read = stream.read_exact(&mut greeting).await;
    match read {
        Ok(()) if &greeting == GREETING => Ok(()),
        Err(quinn::ReadExactError::ReadError(error)) => {
            Err(LinkError::from_read(error, Party::Branch, peer))
        }
        Ok(()) | Err(quinn::ReadExactError::FinishedEarly(_)) => {
            connection.close(CODE_CLOSED, b"not a greeting");
            Err(LinkError::Broken {
                detail: format!("{peer} did not greet as a datacenter does"),
            })
        }
    }
}

async fn resolve(addr: &str) -> Result<Vec<SocketAddr>, LinkError> {
    let bad = || LinkError::BadAddress {
        addr: addr.chars().take(256).collect(),
    };
    let (host, port) = addr.rsplit_once(':').ok_or_else(bad)?;
    if host.is_empty() || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(bad());
    }
    let unresolved = |source: io::Error| LinkError::ResolveFailed {
        addr: addr.to_owned(),
        source: Arc::new(source),
    };
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(addr))
        .await
        .map_err(|_| unresolved(io::ErrorKind::TimedOut.into()))?
        .map_err(unresolved)?;
    let addresses: Vec<_> = found.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(unresolved(io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

fn authority(ca_cert_pem: &str) -> Result<Authority, LinkError> {
    let der = certificate_from_pem(ca_cert_pem, "authority certificate")?;
    Ok(Authority::new(&der)?)
}

fn display(name: &str, address: SocketAddr) -> String {
    let address = address.to_string();
    if name == address {
        address
    } else {
        format!("{name} ({address})")
    }
}
