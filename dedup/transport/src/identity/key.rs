//! A branch's own key pair and the signing request it makes.
//!
//! Invariant: the private key is generated here, on the branch, and leaves only as PEM for the branch's own key file.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use zeroize::{Zeroize, Zeroizing};

use super::{CertAndKey, IdentityError, cert_pem};

/// A P-256 key pair from which a branch asks for its certificate.
pub struct BranchKey {
    pair: KeyPair,
    csr_der: Vec<u8>,
}

impl BranchKey {
    /// Makes a new key pair from the operating system's randomness.
    pub fn generate() -> Self {
        let pair = KeyPair::generate().expect("the operating system gives randomness for a key");
        Self::from_pair(pair).expect("a P-256 key signs its own request")
    }

    /// Reads a key that was kept across a restart in the middle of an enrolment.
    pub fn from_pem(key_pem: &str) -> Result<Self, IdentityError> {
        let unreadable = |error: rcgen::Error| IdentityError::Unreadable {
            what: "branch key",
            reason: error.to_string(),
        };
        Self::from_pair(KeyPair::from_pem(key_pem).map_err(unreadable)?).map_err(unreadable)
    }

    fn from_pair(pair: KeyPair) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The authority takes the public key alone and writes the names itself; this one is for people reading a dump.
        params.distinguished_name.push(
            DnType::CommonName,
            "splice branch, name assigned at enrolment",
        );
        let csr_der = params.serialize_request(&pair)?.der().to_vec();
        Ok(Self { pair, csr_der })
    }

    /// The private key, PKCS#8 PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// The certificate signing request (PKCS#10 DER), signed by the key to prove possession.
    pub fn csr_der(&self) -> &[u8] {
        &self.csr_der
    }

    /// Joins the key with the certificate that was issued for it.
    ///
    /// # Errors
    /// [`IdentityError::KeyMismatch`] when the certificate was issued for another key.
    pub fn with_certificate(&self, cert_der: &[u8]) -> Result<CertAndKey, IdentityError> {
        let joined = CertAndKey {
            cert_pem: cert_pem(cert_der),
            key_pem: self.key_pem(),
        };
        crate::tls::certified_key(&joined, &[])?;
        Ok(joined)
    }
}

impl Drop for BranchKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

impl fmt::Debug for BranchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BranchKey").finish_non_exhaustive()
    }
}
