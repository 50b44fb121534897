//! TLS with real clients, and what it takes to get in.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use vmm_block::MemoryDevice;
use vmm_block::nbd::{NbdOptions, TlsPolicy};

use crate::client::{GO, Raw, info_request};
use crate::lab::{Lab, noise, qemu_img, run, try_run};

const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_TLS_REQD: u32 = (1 << 31) + 5;

/// Writes the files that GnuTLS clients look for, and returns the server's side.
fn certificates(folder: &Path) -> ServerConfig {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "test authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        (params.signed_by(&key, &authority).unwrap(), key)
    };
    let (server, server_key) = issue("server");
    let (client, client_key) = issue("client");
    fs::write(folder.join("ca-cert.pem"), authority.pem()).unwrap();
    fs::write(folder.join("client-cert.pem"), client.pem()).unwrap();
    fs::write(folder.join("client-key.pem"), client_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(authority.der().to_vec()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.der().clone()],
            PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap()
}

/// A server on TCP that insists on TLS with client certificates; its port, and the folder of the client's files.
fn tls_lab() -> (Lab, u16, tempfile::TempDir) {
    let keys = tempfile::tempdir().unwrap();
    let config = Arc::new(certificates(keys.path()));
    let options = NbdOptions {
        tls: Some(TlsPolicy {
            config,
            required: true,
        }),
        ..NbdOptions::default()
    };
    let lab = Lab::new(options);
    lab.add("disk", Arc::new(MemoryDevice::new(24 << 20)));
    let port = lab
        .server
        .listen_tcp("127.0.0.1:0".parse().unwrap())
        .unwrap()
        .port();
    (lab, port, keys)
}

#[test]
fn nbdcopy_and_nbdinfo_speak_tls() {
    let (lab, port, keys) = tls_lab();
    let uri = format!(
        "nbds://localhost:{port}/disk?tls-certificates={}",
        keys.path().display()
    );
    let info = run("libnbd-bin", "nbdinfo", &[&uri]);
    assert!(info.contains("with TLS"), "{info}");
    let (source, copy) = (
        lab.folder.path().join("source"),
        lab.folder.path().join("copy"),
    );
    let bytes = noise(7, 24 << 20);
    fs::write(&source, &bytes).unwrap();
    run(
        "libnbd-bin",
        "nbdcopy",
        &["--flush", "--connections=2", source.to_str().unwrap(), &uri],
    );
    run(
        "libnbd-bin",
        "nbdcopy",
        &["--connections=2", &uri, copy.to_str().unwrap()],
    );
    assert!(fs::read(copy).unwrap() == bytes);
}

#[test]
fn qemu_img_speaks_tls() {
    let (lab, port, keys) = tls_lab();
    let source = lab.folder.path().join("source.raw");
    fs::write(&source, noise(8, 24 << 20)).unwrap();
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        keys.path().display()
    );
    let remote = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls0");
    qemu_img(&[
        "convert",
        "-n",
        "-f",
        "raw",
        "--object",
        &credentials,
        "--target-image-opts",
        source.to_str().unwrap(),
        &remote,
    ]);
    let local = format!(
        "driver=raw,file.driver=file,file.filename={}",
        source.display()
    );
    let compared = qemu_img(&[
        "compare",
        "--object",
        &credentials,
        "--image-opts",
        &local,
        &remote,
    ]);
    assert!(compared.contains("identical"), "{compared}");
}

#[test]
fn nothing_is_told_before_tls() {
    let (lab, port, keys) = tls_lab();
    let (success, output) = try_run(
        "libnbd-bin",
        "nbdinfo",
        &[&format!("nbd://localhost:{port}/disk")],
    );
    assert!(!success, "{output}");
    let mut client = Raw::hello(&lab.socket());
    for option in [3, 6, GO, 8, 99] {
        assert_eq!(
            client.option(option, &info_request("disk"))[0].0,
            ERR_TLS_REQD,
            "option {option}"
        );
    }
    assert_eq!(client.option(5, b"data")[0].0, ERR_INVALID);
    // A client that has no certificate of ours.
    fs::remove_file(keys.path().join("client-cert.pem")).unwrap();
    fs::remove_file(keys.path().join("client-key.pem")).unwrap();
    let uri = format!(
        "nbds://localhost:{port}/disk?tls-certificates={}",
        keys.path().display()
    );
    let (success, output) = try_run("libnbd-bin", "nbdinfo", &[&uri]);
    assert!(!success, "{output}");
}

#[test]
fn plain_text_behind_starttls_is_not_taken_into_tls() {
    let (lab, _, _keys) = tls_lab();
    let mut client = Raw::hello(&lab.socket());
    let mut both = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    both.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    std::io::Write::write_all(&mut client.stream, &both).unwrap();
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut answer);
    assert_eq!(answer.len(), 20, "the acknowledgement and nothing else");
}
