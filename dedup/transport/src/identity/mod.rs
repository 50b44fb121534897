//! Certificates of a realm: the authority, what it issues, and the name each certificate carries.
//!
//! A realm has one self-signed authority (P-256). It issues certificates to the datacenter and to branches; who the
//! holder is stands in one URI among the subject alternative names ([`PeerIdentity`]), never in a DNS name. Invariant: a
//! branch's private key is made at the branch and never leaves it; the authority sees a signing request only, and takes
//! nothing from it but the public key. Revocation is not here: the datacenter refuses branches by id after the handshake.

mod authority;
mod key;
mod peer;

use std::fmt;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

pub use authority::{CSR_BYTES_MAX, RealmCa};
pub use key::BranchKey;
pub use peer::PeerIdentity;

#[cfg(test)]
pub(crate) use authority::Validity;
pub(crate) use peer::authority_realm;

/// Why a certificate, key or signing request could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Text that should be PEM is not, or holds something else.
    #[error("{what} is not readable: {reason}")]
    Unreadable {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate carries no name of this system.
    #[error("{what} names no realm: it has no splice:// URI among its names")]
    NoIdentity {
        /// What was read.
        what: &'static str,
    },
    /// A key that belongs to another certificate.
    #[error("{what} and its private key do not belong together")]
    KeyMismatch {
        /// What was read.
        what: &'static str,
    },
    /// The signing request is malformed, badly signed, or of a key type that is not accepted.
    #[error("certificate signing request refused: {reason}")]
    SigningRequest {
        /// Why.
        reason: String,
    },
    /// A DNS name or address that no certificate can carry.
    #[error("{name:?} is neither a host name nor an IP address")]
    BadName {
        /// The name given.
        name: String,
    },
    /// The certificate could not be built.
    #[error("certificate not issued: {reason}")]
    NotIssued {
        /// Why.
        reason: String,
    },
}

/// A certificate and its private key, both PEM, as kept in files of mode 0600.
#[derive(Clone)]
pub struct CertAndKey {
    /// The certificate, PEM; what follows the first certificate is ignored.
    pub cert_pem: String,
    /// The private key, PKCS#8 PEM; wiped when dropped, never printed.
    pub key_pem: Zeroizing<String>,
}

impl CertAndKey {
    /// Whom the certificate names.
    pub fn identity(&self) -> Result<PeerIdentity, IdentityError> {
        PeerIdentity::of_certificate(&self.cert_der()?)
    }

    pub(crate) fn cert_der(&self) -> Result<CertificateDer<'static>, IdentityError> {
        certificate_from_pem(&self.cert_pem, "certificate")
    }

    /// The certificates behind the first.
    pub(crate) fn above(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let all = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes()).skip(1);
        all.collect::<Result<_, _>>()
            .map_err(|error| IdentityError::Unreadable {
                what: "certificate chain",
                reason: error.to_string(),
            })
    }

    pub(crate) fn key_der(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| {
            IdentityError::Unreadable {
                what: "private key",
                reason: error.to_string(),
            }
        })
    }
}

impl fmt::Debug for CertAndKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertAndKey")
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}

/// When the certificate ends, in unix seconds; a branch renews well before.
pub fn expires_at(cert_pem: &str) -> Result<u64, IdentityError> {
    let der = certificate_from_pem(cert_pem, "certificate")?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|error| IdentityError::Unreadable {
            what: "certificate",
            reason: error.to_string(),
        })?;
    let not_after = certificate.validity().not_after.timestamp();
    Ok(u64::try_from(not_after).unwrap_or(0))
}

/// The PEM form of a certificate's DER bytes.
pub fn cert_pem(cert_der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", cert_der))
}

pub(crate) fn certificate_from_pem(
    pem: &str,
    what: &'static str,
) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| IdentityError::Unreadable {
        what,
        reason: error.to_string(),
    })
}
