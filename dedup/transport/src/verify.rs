//! Certificate checks of links: the chain ends at the realm's authority, and the URI says the right role and realm.
//!
//! rustls's own verifiers check DNS names, which say nothing here; these check what does, on webpki's chain
//! verification (RFC 5280 path validation: signatures, dates, CA flag, extended key usage). Each verifier serves one
//! handshake and leaves its [`Verdict`] there, so that the caller gets a typed error instead of the text of an alert.

use std::sync::{Arc, OnceLock};

use dedup::RealmId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring as ring_provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, SignatureScheme,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, KeyUsage};

use crate::identity::{IdentityError, PeerIdentity, authority_realm};
use crate::link::{LinkError, Party};
use crate::tls::certificate_hash;

/// Most certificates of a peer's chain that are looked at: ours have one above the leaf.
const CHAIN_LENGTH_MAX: usize = 4;

/// Where a verifier leaves its reason for refusing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict(Arc<OnceLock<LinkError>>);

impl Verdict {
    /// The reason, if the verifier refused.
    pub(crate) fn take(&self) -> Option<LinkError> {
        self.0.get().cloned()
    }

    fn settle<T>(&self, result: Result<T, Refusal>) -> Result<T, Error> {
        result.map_err(|refusal| {
            // A verifier serves one handshake, so the first refusal is the only one.
            let _ = self.0.set(refusal.here);
            refusal.alert.into()
        })
    }
}

/// What this end reports, and what the peer is told.
struct Refusal {
    here: LinkError,
    alert: CertificateError,
}

/// The realm's authority, as far as checking needs it.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    realm: RealmId,
    anchor: Arc<TrustAnchor<'static>>,
}

impl Authority {
    /// Reads the authority's certificate, which is trusted for being configured.
    pub(crate) fn new(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let anchor = webpki::anchor_from_trusted_cert(certificate)
            .map_err(|error| IdentityError::Unreadable {
                what: "authority certificate",
                reason: error.to_string(),
            })?
            .to_owned();
        Ok(Self {
            realm: authority_realm(certificate)?,
            anchor: Arc::new(anchor),
        })
    }

    pub(crate) fn realm(&self) -> RealmId {
        self.realm
    }

    /// Checks chain, dates, usage and realm; the role is left to the caller.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
        holder: Party,
    ) -> Result<PeerIdentity, Refusal> {
        let usage = match holder {
            Party::Datacenter => KeyUsage::server_auth(),
            Party::Branch => KeyUsage::client_auth(),
        };
        if above.len() > CHAIN_LENGTH_MAX {
            return Err(malformed(holder, "its chain is too long"));
        }
        let certificate =
            EndEntityCert::try_from(leaf).map_err(|error| malformed(holder, &error.to_string()))?;
        certificate
            .verify_for_usage(
                algorithms().all,
                std::slice::from_ref(&*self.anchor),
                above,
                now,
                usage,
                None,
                None,
            )
            .map_err(|error| self.chain_refusal(error, leaf, holder))?;
        let identity = PeerIdentity::of_certificate(leaf)
            .map_err(|error| malformed(holder, &error.to_string()))?;
        if identity.realm() != self.realm {
            return Err(self.foreign_realm(identity.realm(), holder));
        }
        Ok(identity)
    }

    fn chain_refusal(
        &self,
        error: webpki::Error,
        leaf: &CertificateDer<'_>,
        holder: Party,
    ) -> Refusal {
        match error {
            webpki::Error::CertExpired { time, not_after } => Refusal {
                here: LinkError::CertificateExpired {
                    holder,
                    detail: format!("it ended {}", date(not_after)),
                },
                alert: CertificateError::ExpiredContext { time, not_after },
            },
            webpki::Error::CertNotValidYet { time, not_before } => Refusal {
                here: LinkError::CertificateExpired {
                    holder,
                    detail: format!("it begins {}", date(not_before)),
                },
                alert: CertificateError::NotValidYetContext { time, not_before },
            },
            webpki::Error::RequiredEkuNotFoundContext(_) => wrong_role(holder),
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                // Not authenticated, but the realm it claims tells a wrong address from a forgery.
                match PeerIdentity::of_certificate(leaf) {
                    Ok(claimed) if claimed.realm() != self.realm => {
                        self.foreign_realm(claimed.realm(), holder)
                    }
                    _ => Refusal {
                        here: LinkError::WrongAuthority { holder },
                        alert: CertificateError::UnknownIssuer,
                    },
                }
            }
            other => malformed(holder, &other.to_string()),
        }
    }

    fn foreign_realm(&self, actual: RealmId, holder: Party) -> Refusal {
        Refusal {
            here: LinkError::ForeignRealm {
                holder,
                expected: self.realm,
                actual,
            },
            alert: CertificateError::UnknownIssuer,
        }
    }
}

/// A branch's check of the datacenter.
#[derive(Debug)]
pub(crate) struct VerifyDatacenter {
    pub(crate) authority: Authority,
    pub(crate) verdict: Verdict,
}

/// A joining branch's check of the datacenter: the chain must contain the authority whose hash the token carries.
#[derive(Debug)]
pub(crate) struct VerifyJoin {
    pub(crate) ca_hash: [u8; 32],
    pub(crate) verdict: Verdict,
    /// Receives the authority's certificate once it has been checked.
    pub(crate) authority: Arc<OnceLock<CertificateDer<'static>>>,
}

/// The datacenter's check of a branch.
#[derive(Debug)]
pub(crate) struct VerifyBranch {
    pub(crate) authority: Authority,
    pub(crate) verdict: Verdict,
}

impl ServerCertVerifier for VerifyDatacenter {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = self
            .authority
            .check(end_entity, intermediates, now, Party::Datacenter);
        self.verdict
            .settle(checked.and_then(datacenter_only))
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl VerifyJoin {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let wrong = || Refusal {
            here: LinkError::WrongJoinAuthority,
            alert: CertificateError::UnknownIssuer,
        };
        let certificate = above
            .iter()
            .take(CHAIN_LENGTH_MAX)
            .find(|certificate| certificate_hash(certificate) == self.ca_hash)
            .ok_or_else(wrong)?;
        let authority = Authority::new(certificate)
            .map_err(|error| malformed(Party::Datacenter, &error.to_string()))?;
        datacenter_only(authority.check(leaf, above, now, Party::Datacenter)?)?;
        // One handshake, one certificate.
        let _ = self.authority.set(certificate.clone().into_owned());
        Ok(())
    }
}

impl ServerCertVerifier for VerifyJoin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verdict
            .settle(self.check(end_entity, intermediates, now))
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for VerifyBranch {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let checked = self
            .authority
            .check(end_entity, intermediates, now, Party::Branch)
            .and_then(|identity| match identity {
                PeerIdentity::Branch { .. } => Ok(()),
                PeerIdentity::Datacenter { .. } => Err(wrong_role(Party::Branch)),
            });
        self.verdict
            .settle(checked)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn datacenter_only(identity: PeerIdentity) -> Result<(), Refusal> {
    match identity {
        PeerIdentity::Datacenter { .. } => Ok(()),
        PeerIdentity::Branch { .. } => Err(wrong_role(Party::Datacenter)),
    }
}

fn wrong_role(holder: Party) -> Refusal {
    refusal(format!("the certificate presented is not a {holder}'s"))
}

fn malformed(holder: Party, reason: &str) -> Refusal {
    refusal(format!(
        "the {holder}'s certificate is not acceptable: {reason}"
    ))
}

fn refusal(reason: String) -> Refusal {
    Refusal {
        alert: CertificateError::Other(OtherError(Arc::new(std::io::Error::other(reason.clone())))),
        here: LinkError::Refused { reason },
    }
}

fn only_tls13() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring_provider::default_provider().signature_verification_algorithms
}

fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("at unix second {}", time.as_secs()))
}
