//! The realm's certificate authority.
//!
//! Self-signed, P-256, path length 0: nobody it signs may sign others. Its hash travels in join tokens, so that a new
//! branch knows the right datacenter before it has any certificate. Invariant: what a certificate says is decided here;
//! of a signing request only the public key is used.

use std::fmt;
use std::time::Duration;

use dedup::{BranchId, RealmId};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use super::peer::{authority_realm, authority_uri};
use super::{CertAndKey, IdentityError, PeerIdentity, cert_pem, certificate_from_pem};

/// Longest signing request read, in bytes: a P-256 request has about 300, names cannot make it useful to send more.
pub const CSR_BYTES_MAX: usize = 8 * 1024;

/// How far back certificates begin: a branch server's clock may be slow before it first speaks to a time server.
const BACKDATE: time::Duration = time::Duration::hours(24);

/// How long an authority lives. Replacing one means enrolling every branch again, so it outlives the hardware.
const AUTHORITY_LIFE: time::Duration = time::Duration::days(25 * 365);

/// A realm's certificate authority, with its private key.
pub struct RealmCa {
    realm: RealmId,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// When a certificate is good; both ends inclusive.
#[derive(Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl Validity {
    fn for_the_next(life: time::Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now - BACKDATE,
            // X.509 dates end with the year 9999; a life that long is a caller's idea of "for ever".
            not_after: now.checked_add(life).unwrap_or(now + AUTHORITY_LIFE),
        }
    }

    fn of(life: Duration) -> Self {
        Self::for_the_next(time::Duration::try_from(life).unwrap_or(AUTHORITY_LIFE))
    }
}

impl RealmCa {
    /// Makes the authority of a new realm, good for 25 years.
    pub fn create(realm: RealmId) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(not_issued)?;
        let mut params = params(
            format!("splice realm {realm}"),
            Validity::for_the_next(AUTHORITY_LIFE),
        )?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri_name(authority_uri(realm))?];
        let certificate = params.self_signed(&key).map_err(not_issued)?.into();
        Ok(Self {
            realm,
            certificate,
            key,
        })
    }

    /// Reads the authority back from what [`Self::cert_pem`] and [`Self::key_pem`] wrote.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let certificate = certificate_from_pem(cert_pem, "authority certificate")?;
        let realm = authority_realm(&certificate)?;
        let key = KeyPair::from_pem(key_pem).map_err(|error| IdentityError::Unreadable {
            what: "authority key",
            reason: error.to_string(),
        })?;
        let public = webpki::EndEntityCert::try_from(&certificate)
            .map(|certificate| certificate.subject_public_key_info())
            .map_err(|error| IdentityError::Unreadable {
                what: "authority certificate",
                reason: error.to_string(),
            })?;
        if public.as_ref() != key.subject_public_key_info() {
            return Err(IdentityError::KeyMismatch {
                what: "the authority certificate",
            });
        }
        Ok(Self {
            realm,
            certificate,
            key,
        })
    }

    /// The realm this authority speaks for.
    pub fn realm(&self) -> RealmId {
        self.realm
    }

    /// The certificate, PEM: what every member of the realm trusts.
    pub fn cert_pem(&self) -> String {
        cert_pem(&self.certificate)
    }

    /// The private key, PKCS#8 PEM. Whoever has it can admit branches to the realm.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// SHA-256 of the certificate's DER bytes; join tokens carry it.
    pub fn cert_hash(&self) -> [u8; 32] {
        crate::tls::certificate_hash(&self.certificate)
    }

    /// Issues the datacenter's certificate with a new key.
    ///
    /// `names` are the DNS names and IP addresses under which browsers and the `splice` command reach the management
    /// API; the link does not look at them.
    pub fn issue_datacenter(
        &self,
        names: &[String],
        validity: Duration,
    ) -> Result<CertAndKey, IdentityError> {
        self.issue_datacenter_at(names, Validity::of(validity))
    }

    pub(crate) fn issue_datacenter_at(
        &self,
        names: &[String],
        validity: Validity,
    ) -> Result<CertAndKey, IdentityError> {
        let identity = PeerIdentity::Datacenter { realm: self.realm };
        let mut params = params(format!("splice datacenter {}", self.realm), validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names.push(uri_name(identity.uri())?);
        for name in names {
            params.subject_alt_names.push(web_name(name)?);
        }
        self.issue_with_new_key(&params)
    }

    /// Issues the certificate of a branch's portal with a new key, for the DNS names and IP addresses under which its users reach it.
    ///
    /// It names nobody of the realm: no end of a link takes it for the datacenter or a branch, whoever comes to have its key.
    pub fn issue_portal(
        &self,
        names: &[String],
        validity: Duration,
    ) -> Result<CertAndKey, IdentityError> {
        let first = names.first().ok_or_else(|| IdentityError::BadName {
            name: String::new(),
        })?;
        let mut params = params(format!("splice portal {first}"), Validity::of(validity))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(web_name(name)?);
        }
        self.issue_with_new_key(&params)
    }

    fn issue_with_new_key(&self, params: &CertificateParams) -> Result<CertAndKey, IdentityError> {
        let mut key = KeyPair::generate().map_err(not_issued)?;
        let certificate = self.sign(params, &key)?;
        let issued = CertAndKey {
            cert_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        };
        key.zeroize();
        Ok(issued)
    }

    /// Issues a branch's certificate for the key in its signing request; the answer is DER.
    ///
    /// # Errors
    /// [`IdentityError::SigningRequest`] when the request is over 8 KiB ([`CSR_BYTES_MAX`]), malformed, not signed by
    /// the key it carries, or of a key type other than P-256 and Ed25519.
    pub fn issue_branch(
        &self,
        branch: BranchId,
        csr_der: &[u8],
        validity: Duration,
    ) -> Result<Vec<u8>, IdentityError> {
        self.issue_branch_at(branch, csr_der, Validity::of(validity))
    }

    pub(crate) fn issue_branch_at(
        &self,
        branch: BranchId,
        csr_der: &[u8],
        validity: Validity,
    ) -> Result<Vec<u8>, IdentityError> {
        let refused = |reason: String| IdentityError::SigningRequest { reason };
        if csr_der.len() > CSR_BYTES_MAX {
            return Err(refused(format!(
                "it has {} bytes, at most {CSR_BYTES_MAX} are read",
                csr_der.len()
            )));
        }
        let request = CertificateSigningRequestParams::from_der(&csr_der.into())
            .map_err(|error| refused(error.to_string()))?;
        let algorithm = request.public_key.algorithm();
        if algorithm != &PKCS_ECDSA_P256_SHA256 && algorithm != &PKCS_ED25519 {
            return Err(refused("the key is neither P-256 nor Ed25519".to_owned()));
        }
        let identity = PeerIdentity::Branch {
            realm: self.realm,
            branch,
        };
        let mut params = params(format!("splice branch {branch}"), validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(uri_name(identity.uri())?);
        Ok(self.sign(&params, &request.public_key)?.der().to_vec())
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Certificate, IdentityError> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(not_issued)?;
        params.signed_by(key, &issuer).map_err(not_issued)
    }
}

impl Drop for RealmCa {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for RealmCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealmCa")
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

fn params(common_name: String, validity: Validity) -> Result<CertificateParams, IdentityError> {
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| IdentityError::NotIssued {
            reason: "the operating system gave no randomness".to_owned(),
        })?;
    // RFC 5280 4.1.2.2: positive, and no leading zero byte.
    serial[0] = serial[0] & 0x7F | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn uri_name(uri: String) -> Result<SanType, IdentityError> {
    Ok(SanType::URI(uri.try_into().map_err(not_issued)?))
}

/// A name by which browsers find a server.
fn web_name(name: &str) -> Result<SanType, IdentityError> {
    Ok(match name.parse::<std::net::IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(host_name(name)?),
    })
}

fn host_name(name: &str) -> Result<rcgen::string::Ia5String, IdentityError> {
    let bad = || IdentityError::BadName {
        name: name.to_owned(),
    };
    rustls::pki_types::DnsName::try_from(name).map_err(|_| bad())?;
    name.to_owned().try_into().map_err(|_| bad())
}

fn not_issued(error: rcgen::Error) -> IdentityError {
    IdentityError::NotIssued {
        reason: error.to_string(),
    }
}
