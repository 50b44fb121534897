//! How the two ends are set up: the product's transport settings, certificates and connection ids that are the same in every run.
//!
//! What still differs between two runs of a seed: the bytes of ephemeral keys and of TLS randoms, and with them those of every
//! encrypted packet. No length and no decision depends on them, so packets leave at the same times and meet the same fates.

use std::sync::Arc;
use std::time::Duration;

use crash::Rng;
use dedup_transport::congestion::PathCell;
use dedup_transport::link::{Congestion, LinkTuning};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
};
use ring::hmac;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::keys::certificate_key;

/// The name that the certificate is for.
pub(super) const NAME: &str = "datacenter";
/// As the product's listening end uses.
const CONNECTION_ID_BYTES: usize = 8;

/// What both ends of a world are made with.
pub(super) struct Settings {
    pub(super) tuning: LinkTuning,
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
}

impl Settings {
    /// Mostly the product's defaults; sometimes another congestion control, or windows that fill.
    pub(super) fn new(rng: &mut Rng) -> Self {
        let (server, client) = tls();
        let mut tuning = LinkTuning::default();
        if rng.one_in(3) {
            tuning.window_bytes = 1 << (20 + rng.below(4));
        }
        tuning.congestion = match rng.below(12) {
            0 => Congestion::Cubic,
            1 => Congestion::NewReno,
            2 => Congestion::Bbr,
            _ => Congestion::Delivery,
        };
        Self {
            tuning,
            server,
            client,
        }
    }

    /// For one connection that is accepted.
    pub(super) fn server(&self, path: &Arc<PathCell>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::with_crypto(Arc::clone(&self.server) as _);
        let transport = self.tuning.quic_settings_for_datacenter(path);
        config.transport_config(transport.expect("these settings are good"));
        Arc::new(config)
    }

    /// For one attempt.
    pub(super) fn client(&self, path: &Arc<PathCell>, rng: &mut Rng) -> ClientConfig {
        let mut config = ClientConfig::new(Arc::clone(&self.client) as _);
        let transport = self.tuning.quic_settings_for_branch(path);
        config.transport_config(transport.expect("these settings are good"));
        let first = connection_id(rng);
        config.initial_dst_cid_provider(Arc::new(move || first));
        config
    }

    /// A process's endpoint. The reset key outlives processes, as the datacenter's does.
    pub(super) fn endpoint(&self, server: bool, rng: &mut Rng) -> Endpoint {
        let reset = hmac::Key::new(hmac::HMAC_SHA256, b"simulated link stateless reset");
        let mut config = EndpointConfig::new(Arc::new(reset));
        let mut seed = [0; 32];
        seed.copy_from_slice(&rng.bytes(32));
        config.rng_seed(Some(seed));
        let ids = rng.bits();
        config.cid_generator(move || Box::new(SeededIds(Rng::new(ids))));
        let server = server.then(|| self.server(&Arc::default()));
        Endpoint::new(Arc::new(config), server, true, None)
    }
}

/// Eight bytes per connection id, from the seed. Of ids it cannot tell whose they are, as the product's: an id of an earlier process is
/// answered with a reset.
struct SeededIds(Rng);

impl ConnectionIdGenerator for SeededIds {
    fn generate_cid(&mut self) -> ConnectionId {
        connection_id(&mut self.0)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn connection_id(rng: &mut Rng) -> ConnectionId {
    ConnectionId::new(&rng.bytes(CONNECTION_ID_BYTES))
}

/// Ed25519, whose signatures always have the same length, with a key that is always the same.
fn tls() -> (Arc<QuicServerConfig>, Arc<QuicClientConfig>) {
    let key = PrivatePkcs8KeyDer::from(certificate_key());
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519).unwrap();
    let certificate = rcgen::CertificateParams::new([NAME.to_owned()])
        .unwrap()
        .self_signed(&pair)
        .unwrap();
    let certificate: CertificateDer<'static> = certificate.der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    server.send_tls13_tickets = 0;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (
        Arc::new(server.try_into().unwrap()),
        Arc::new(client.try_into().unwrap()),
    )
}
