//! TLS as this system uses it: one provider (ring), TLS 1.3 on links, no resumption, no early data.
//!
//! Resumption is off on links on purpose: a resumed session skips the certificate check, and a link is opened so rarely
//! that the check costs nothing. Early data is off because it can be replayed. Invariant: a link configuration verifies
//! the peer with one of the verifiers of `verify`; there is no way to build one without.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring as ring_provider};
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, InconsistentKeys, ServerConfig};

use crate::identity::{CertAndKey, IdentityError};
use crate::verify::{VerifyBranch, VerifyDatacenter, VerifyJoin};

/// The link protocol's name and major version, as offered in ALPN.
pub const LINK_PROTOCOL_NAME: &str = "splice/1";
/// The enrolment protocol's name and major version, as offered in ALPN.
pub const JOIN_PROTOCOL_NAME: &str = "splice-join/1";

/// Makes ring the process-wide provider, for libraries that ask rustls for a default one. Repeating it does no harm.
pub fn install_provider() {
    // An error says that a provider is installed already; there is only one in the tree.
    let _ = ring_provider::default_provider().install_default();
}

/// TLS for the management API: the datacenter's certificate, no client certificates, TLS 1.2 and 1.3.
///
/// Offers HTTP/1.1 only, because the portal and the console use WebSockets, which browsers open on HTTP/1.1.
///
/// # Errors
/// When certificate or key cannot be read or do not belong together.
pub fn https_server_config(cert: &CertAndKey) -> Result<Arc<ServerConfig>, IdentityError> {
    Ok(https(certified_key(cert, &[])?))
}

/// TLS for a branch's portal: the same, with all certificates of the file, since those that public authorities sign have others above them.
///
/// # Errors
/// When a certificate or the key cannot be read, or certificate and key do not belong together.
pub fn portal_server_config(cert: &CertAndKey) -> Result<Arc<ServerConfig>, IdentityError> {
    Ok(https(certified_key(cert, &cert.above()?)?))
}

fn https(key: CertifiedKey) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3")
        .with_client_cert_verifier(WebPkiClientVerifier::no_client_auth())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// SHA-256 of a certificate's DER bytes.
pub(crate) fn certificate_hash(der: &CertificateDer<'_>) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Loads a certificate with its key and checks that they belong together; `above` is presented after it.
pub(crate) fn certified_key(
    cert: &CertAndKey,
    above: &[CertificateDer<'static>],
) -> Result<CertifiedKey, IdentityError> {
    let mut chain = vec![cert.cert_der()?];
    chain.extend_from_slice(above);
    CertifiedKey::from_der(chain, cert.key_der()?, &provider()).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => IdentityError::KeyMismatch {
            what: "the certificate",
        },
        other => IdentityError::Unreadable {
            what: "certificate or key",
            reason: other.to_string(),
        },
    })
}

/// TLS of the listening end. A client certificate is asked for but optional, because enrolment has none; the endpoint
/// decides by the protocol negotiated.
pub(crate) fn link_server(
    key: Arc<CertifiedKey>,
    verifier: VerifyBranch,
    protocols: &[&str],
) -> Arc<QuicServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring supports TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = names(protocols);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(QuicServerConfig::try_from(config).expect("ring has QUIC's initial cipher suite"))
}

/// TLS of an enrolled branch.
pub(crate) fn link_client(
    key: Arc<CertifiedKey>,
    verifier: VerifyDatacenter,
    protocols: &[&str],
) -> Arc<QuicClientConfig> {
    let config = client_builder()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    finish_client(config, protocols)
}

/// TLS of a branch that is about to enrol: no certificate of its own.
pub(crate) fn join_client(verifier: VerifyJoin, protocols: &[&str]) -> Arc<QuicClientConfig> {
    let config = client_builder()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finish_client(config, protocols)
}

fn client_builder() -> rustls::client::danger::DangerousClientConfigBuilder {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring supports TLS 1.3")
        .dangerous()
}

fn finish_client(mut config: ClientConfig, protocols: &[&str]) -> Arc<QuicClientConfig> {
    config.alpn_protocols = names(protocols);
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Peers are named by URI, so there is no host name worth telling an eavesdropper.
    config.enable_sni = false;
    Arc::new(QuicClientConfig::try_from(config).expect("ring has QUIC's initial cipher suite"))
}

fn names(protocols: &[&str]) -> Vec<Vec<u8>> {
    protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect()
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring_provider::default_provider())
}
