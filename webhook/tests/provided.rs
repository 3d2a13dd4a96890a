//! Mode `provided` on the real server: a folder laid out as kubelet lays out a mounted Secret, in which one version after
//! the other appears, good ones and bad ones of every kind.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "common/client.rs"]
mod client;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{SERVICE, Webhook, connect};
use nodestub_certs::{Authority, Folder, Material, ServingNames};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};

const HOUR: Duration = Duration::from_secs(3600);
const FLAGS: [&str; 3] = ["--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local", "--host-search=none"];

/// A volume: each file is a link into `..data`, which is a link that is exchanged.
struct Volume<'a> {
    home: &'a Path,
    version: u32,
}

impl Volume<'_> {
    fn lay(&mut self, material: &Material) {
        let old = format!("..{}", self.version);
        self.version += 1;
        let new = format!("..{}", self.version);
        Folder::new(self.home.join(&new)).write(material).unwrap();
        symlink(&new, self.home.join("..data_tmp")).unwrap();
        fs::rename(self.home.join("..data_tmp"), self.home.join("..data")).unwrap();
        for file in ["ca.crt", "tls.crt", "tls.key"] {
            if !self.home.join(file).exists() {
                symlink(format!("..data/{file}"), self.home.join(file)).unwrap();
            }
        }
        drop(fs::remove_dir_all(self.home.join(old)));
    }
}

fn signed(authority: &Authority, service: &str, made: SystemTime) -> Material {
    let names = ServingNames {
        service: service.to_owned(),
        namespace: "nodestub-system".to_owned(),
        cluster_domain: Some("cluster.local".to_owned()),
        addresses: Vec::new(),
        extra: Vec::new(),
    };
    authority.sign(&names, HOUR, made).unwrap()
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
}

/// A certificate that signed itself, with its key in that form.
fn own(key: &KeyPair, text: String) -> Material {
    let certificate = CertificateParams::new(vec![SERVICE.to_owned()]).unwrap().self_signed(key).unwrap();
    let certificate = certificate.pem().into_bytes();
    Material { certificate: certificate.clone(), key: text.into_bytes(), authority: certificate }
}

#[test]
fn keeps_the_last_good_pair_through_every_bad_version_of_a_mounted_secret() {
    let home = tempfile::tempdir().unwrap();
    let mut volume = Volume { home: home.path(), version: 0 };
    let now = SystemTime::now();
    let authority = Authority::new(HOUR * 24, now).unwrap();
    let good = signed(&authority, "nodestub-webhook", now);
    let other = signed(&authority, "nodestub-webhook", now);
    let trust = good.authority.clone();
    let old = |made: SystemTime| signed(&Authority::new(HOUR * 24, made).unwrap(), "nodestub-webhook", made);
    volume.lay(&good);
    let webhook = Webhook::start(home.path(), &FLAGS.map(str::to_owned));
    let with = |certificate: &[u8], key: &[u8]| Material {
        certificate: certificate.to_vec(),
        key: key.to_vec(),
        authority: trust.clone(),
    };
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap().serialize_pem();
    let service = format!("tls.crt is not good for {SERVICE}");
    for (bad, said) in [
        (old(now - HOUR * 30), "tls.crt ended at"),
        (old(now + HOUR * 5), "tls.crt is not valid before"),
        (signed(&authority, "elsewhere", now), service.as_str()),
        (with(&good.certificate, &other.key), "tls.key and tls.crt are not of the same pair"),
        (with(&good.certificate, b"hello"), "tls.key holds no private key in PEM form"),
        // Not beside the other of its kind: the same refusal twice is said once.
        (with(&good.certificate, rsa.as_bytes()), "tls.key and tls.crt are not of the same pair"),
        (with(&good.certificate, &good.key[..60]), "tls.key is not PEM text"),
        (with(b"", &good.key), "tls.crt holds no certificate in PEM form"),
        (with(&good.certificate[..200], &good.key), "tls.crt is not PEM text"),
        (Material { authority: good.certificate[..200].to_vec(), ..good.clone() }, "ca.crt is not PEM text"),
    ] {
        let failed = webhook.count("nodestub_webhook_certificate_loads_total{result=\"failed\"}");
        volume.lay(&bad);
        let log = webhook.wait_for("the certificate was not loaded; the last good one is kept");
        assert!(log["error"].as_str().unwrap().contains(said), "{said}: {log}");
        connect(webhook.admission, &trust, &[]).unwrap_or_else(|error| panic!("{said}: {error}"));
        assert_eq!(webhook.admin("/readyz").status, 200, "{said}");
        assert!(webhook.count("nodestub_webhook_certificate_loads_total{result=\"failed\"}") > failed);
    }
    let next = old(now);
    volume.lay(&next);
    webhook.wait_for("serving a new certificate");
    connect(webhook.admission, &next.authority, &[]).unwrap();
    connect(webhook.admission, &trust, &[]).unwrap_err();
}

#[test]
fn serves_every_kind_of_key_that_people_have() {
    let home = tempfile::tempdir().unwrap();
    let mut volume = Volume { home: home.path(), version: 0 };
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let curve = KeyPair::generate().unwrap();
    // What PKCS#8 wraps begins after 26 bytes in a key of RSA with 2048 bits, and after 29 in one of P-256.
    let sec1 =
        pem("EC PRIVATE KEY", &curve.serialize_der()[29..29 + 2 + usize::from(curve.serialize_der()[30])]);
    // As `openssl ecparam -genkey` writes it.
    let with_parameters =
        format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{sec1}");
    let mut commented = own(&curve, curve.serialize_pem());
    let mut bundle = b"# the old CA of 2019, O=Example\n".to_vec();
    bundle.extend(Authority::new(HOUR, SystemTime::now()).unwrap().certificate_pem().into_bytes());
    bundle.extend(b"\n# the new one\n");
    bundle.extend(&commented.authority);
    commented.authority = bundle;
    let kinds = [
        ("RSA in PKCS#8", own(&rsa, rsa.serialize_pem())),
        ("RSA in PKCS#1", own(&rsa, pem("RSA PRIVATE KEY", &rsa.serialize_der()[26..]))),
        ("P-256 in SEC1", own(&curve, sec1)),
        ("P-256 in SEC1 with its parameters", own(&curve, with_parameters)),
        ("a bundle with comments", commented),
    ];
    volume.lay(&kinds[0].1);
    let webhook = Webhook::start(home.path(), &FLAGS.map(str::to_owned));
    for (kind, material) in kinds {
        volume.lay(&material);
        // The first lay of all is the same text, which is no change.
        if kind != "RSA in PKCS#8" {
            webhook.wait_for("serving a new certificate");
        }
        connect(webhook.admission, &material.authority, &[])
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}
