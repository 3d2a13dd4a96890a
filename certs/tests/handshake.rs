//! Real TLS handshakes, in memory, against a client that verifies as the API server does: chain, time and name.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodestub_certs::{
    Folder, Lifetimes, Material, Outcome, Resolver, ServingNames, Watcher, crypto_provider, issue,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

const NAME: &str = "nodestub-webhook.nodestub-system.svc";

fn material() -> Material {
    let names = ServingNames {
        service: "nodestub-webhook".to_owned(),
        namespace: "nodestub-system".to_owned(),
        cluster_domain: Some("corp.example".to_owned()),
        addresses: vec![IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()],
        extra: vec!["localhost".to_owned()],
    };
    issue(&names, Lifetimes::for_leaf(Duration::from_secs(3600)), SystemTime::now()).unwrap()
}

fn server(resolver: &Arc<Resolver>) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(resolver) as _);
    Arc::new(config)
}

/// One handshake; gives the leaf that the client was shown and has verified.
fn shake(config: &Arc<ServerConfig>, trust: &[u8], name: &str) -> Result<CertificateDer<'static>, String> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(trust) {
        roots.add(der.unwrap()).unwrap();
    }
    let client = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(config)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
    }
    client.writer().write_all(b"x").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut got = [0; 1];
    server.reader().read_exact(&mut got).unwrap();
    Ok(client.peer_certificates().unwrap()[0].clone().into_owned())
}

fn leaf(material: &Material) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(&material.certificate).unwrap()
}

#[test]
fn meets_the_new_certificate_after_a_swap_without_restart() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let resolver = Resolver::empty();
    let server = server(&resolver);
    let mut watcher = Watcher::new(folder.clone(), resolver);

    let first = material();
    assert!(shake(&server, &first.authority, NAME).is_err(), "nothing to serve yet");

    folder.write(&first).unwrap();
    assert!(matches!(watcher.poll(SystemTime::now()), Outcome::Swapped(_)));
    assert_eq!(shake(&server, &first.authority, NAME).unwrap(), leaf(&first));

    let second = material();
    folder.write(&second).unwrap();
    assert_eq!(shake(&server, &first.authority, NAME).unwrap(), leaf(&first), "not looked at yet");
    assert!(matches!(watcher.poll(SystemTime::now()), Outcome::Swapped(_)));
    assert_eq!(shake(&server, &second.authority, NAME).unwrap(), leaf(&second));
    assert!(shake(&server, &first.authority, NAME).is_err(), "the old CA no longer vouches");

    folder.write(&Material { key: first.key, ..second.clone() }).unwrap();
    assert!(matches!(watcher.poll(SystemTime::now()), Outcome::Failed { .. }));
    assert_eq!(shake(&server, &second.authority, NAME).unwrap(), leaf(&second), "the last good pair is kept");
}

#[test]
fn is_trusted_under_its_names_and_no_other() {
    let material = material();
    let resolver = Resolver::empty();
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    folder.write(&material).unwrap();
    resolver.swap(Arc::new(folder.read(SystemTime::now()).unwrap()));
    let server = server(&resolver);
    for name in
        [NAME, "nodestub-webhook.nodestub-system.svc.corp.example", "nodestub-webhook.nodestub-system"]
    {
        shake(&server, &material.authority, name).unwrap();
    }
    for name in ["localhost", "127.0.0.1", "::1"] {
        shake(&server, &material.authority, name).unwrap();
    }
    for name in ["nodestub-webhook", "other.nodestub-system.svc", "nodestub-webhook.default.svc", "127.0.0.2"]
    {
        let refusal = shake(&server, &material.authority, name).unwrap_err();
        assert!(refusal.contains("not valid for name"), "{name}: {refusal}");
    }
}
