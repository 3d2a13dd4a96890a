//! Keys of the kinds that people have, as their tools write them.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nodestub_certs::bundle::Root;
use nodestub_certs::{Material, Pair, trust};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};

const HOST: &str = "web.here.svc";

fn pem(kind: &str, der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der)).into_bytes()
}

/// A certificate that signed itself, with its key in that form.
fn material(key: &KeyPair, text: Vec<u8>) -> Material {
    let certificate = CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(key).unwrap();
    let pem = certificate.pem().into_bytes();
    Material { certificate: pem.clone(), key: text, authority: pem }
}

fn check(what: &str, material: &Material) {
    let now = SystemTime::now();
    let pair = Pair::parse(material, now).unwrap_or_else(|error| panic!("{what}: {error}"));
    let root = Root::read(pair.chain()[0].clone()).unwrap();
    trust::verify(pair.chain(), &[&root], HOST, now).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn takes_rsa_keys_in_both_forms() {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    check("PKCS#8", &material(&key, key.serialize_pem().into_bytes()));
    // The key itself, without the 26 bytes that PKCS#8 puts before a key of 2048 bits.
    check("PKCS#1", &material(&key, pem("RSA PRIVATE KEY", &key.serialize_der()[26..])));
}

#[test]
fn takes_keys_on_other_curves() {
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        check("PKCS#8", &material(&key, key.serialize_pem().into_bytes()));
    }
}

#[test]
fn rejects_a_key_that_is_cut_off_or_of_another_kind() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let said = |text: Vec<u8>| Pair::parse(&material(&key, text), SystemTime::now()).unwrap_err().to_string();
    let cut = pem("PRIVATE KEY", &key.serialize_der()[..40]);
    for text in [cut, other.serialize_pem().into_bytes(), pem("CERTIFICATE", b"x"), pem("PUBLIC KEY", b"x")] {
        let said = said(text);
        assert!(said.starts_with("tls.key"), "{said}");
    }
}
