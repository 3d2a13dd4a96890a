//! Zones that are served over TLS, and the directive that says how.

use std::path::PathBuf;

use crate::world::{World, blocks, findings, messages};
use nodestub_corefile::config::tls::{ClientAuth, KeyPair, ServerTls};
use nodestub_corefile::config::{Scheme, ServerBlock};
use nodestub_corefile::{Options, parse};

/// The only block of a Corefile.
#[track_caller]
fn block(text: &str) -> ServerBlock {
    let mut blocks = blocks(text);
    assert_eq!(blocks.len(), 1);
    blocks.remove(0)
}

fn keys(block: &ServerBlock) -> Vec<String> {
    block.zones.iter().map(|key| format!("{}://{}:{}", key.scheme, key.zone, key.port)).collect()
}

#[test]
fn a_zone_over_tls_has_port_853_unless_it_says_another() {
    for (text, expected) in [
        ("tls://.", "tls://.:853"),
        ("tls://.:5353", "tls://.:5353"),
        ("tls://Example.org", "tls://example.org.:853"),
        ("tls://10.0.0.0/16:8853", "tls://0.10.in-addr.arpa.:8853"),
    ] {
        assert_eq!(keys(&block(&format!("{text} {{\n tls a b\n}}"))), [expected]);
    }
    // What `-dns.port` says is about plain DNS.
    let options = Options { default_port: 1053, ..Options::default() };
    let loaded = parse("Corefile", ". tls://. {\n tls a b\n}", &options, &World::new()).unwrap();
    assert_eq!(keys(&loaded.config.blocks[0]), ["dns://.:1053", "tls://.:853"]);
}

#[test]
fn reads_all_kinds_of_client_authentication() {
    let pair = KeyPair { certificate: PathBuf::from("/tls/tls.crt"), key: PathBuf::from("/tls/tls.key") };
    let tls =
        |words: &str| block(&format!("tls://. {{\n tls /tls/tls.crt /tls/tls.key{words}\n}}")).tls.unwrap();
    let plain = ServerTls { pair, authorities: None, client_auth: ClientAuth::No };
    assert_eq!(tls(""), plain);
    assert_eq!(tls(" /ca"), ServerTls { authorities: Some(PathBuf::from("/ca")), ..plain.clone() });
    for (word, client_auth) in [
        ("nocert", ClientAuth::No),
        ("request", ClientAuth::Request),
        ("require", ClientAuth::RequireAny),
        ("verify_if_given", ClientAuth::VerifyIfGiven),
        ("require_and_verify", ClientAuth::RequireAndVerify),
    ] {
        assert_eq!(tls(&format!(" {{\n client_auth {word}\n}}")), ServerTls { client_auth, ..plain.clone() });
    }
}

#[test]
fn says_what_is_wrong_with_tls_and_where() {
    for (text, expected) in [
        (
            "tls://. {\n forward . 9.9.9.9\n}",
            "1:1 this zone is served over TLS, and the block names no certificate",
        ),
        (". tls://a {\n}", "1:3 this zone is served over TLS, and the block names no certificate"),
        ("tls://. {\n tls a\n}", "2:2 too few arguments of `tls`"),
        ("tls://. {\n tls\n}", "2:2 too few arguments of `tls`"),
        ("tls://. {\n tls a b c d\n}", "2:12 too many arguments of `tls`"),
        ("tls://. {\n tls a b {\n client_auth\n}\n}", "3:2 too few arguments of `client_auth`"),
        (
            "tls://. {\n tls a b {\n client_auth demand\n}\n}",
            "3:14 unknown kind of client authentication: `demand`",
        ),
        ("tls://. {\n tls a b {\n ciphers x\n}\n}", "3:2 unknown option `ciphers` of `tls`"),
        (
            "tls://. {\n tls {\n acme dns.test\n email a@dns.test\n}\n}",
            "3:2 certificates by ACME are not supported by this version",
        ),
        ("tls://. {\n tls a b\n tls c d\n}", "3:2 `tls` may stand only once in a server block"),
    ] {
        let found = findings(&World::new(), text);
        assert_eq!(found, [format!("/etc/Corefile:{expected}")], "{text:?}");
        assert!(World::new().parse(text).is_err());
    }
}

#[test]
fn warns_of_what_has_no_effect() {
    for (text, expected) in [
        (". {\n tls a b\n}", "2:2 `tls` has no effect: no zone of this block is served over TLS"),
        ("tls://. {\n tls a b c\n}", "2:10 no client's certificate is verified by these authorities"),
        ("tls://. {\n tls a b {\n keylog /tmp/keys\n}\n}", "3:2 `keylog` is accepted and does nothing here"),
        ("tls://. {\n tls a b\n hosts /etc/hosts tls://a\n}", "3:19 `tls://` has no meaning here"),
    ] {
        assert_eq!(findings(&World::new(), text), [format!("/etc/Corefile:{expected}")], "{text:?}");
        blocks(text);
    }
    // As on CoreDNS, its files need not even be there.
    assert_eq!(block(". {\n tls a b\n}").tls, None);
}

#[test]
fn a_port_is_served_in_one_manner() {
    let twice = "port 853 is served both over TLS and in the clear";
    for (text, expected) in [
        ("tls://. {\n tls a b\n}\nx:853 {\n}", twice),
        ("x:853 tls://. {\n tls a b\n}", twice),
        ("tls://. {\n tls a b\n bind 10.0.0.1\n}\n.:853 {\n bind 10.0.0.2 10.0.0.1\n}", twice),
        ("tls://a {\n tls a b\n}\ntls://b {\n tls a c\n}", "port 853 is served with different `tls`"),
        ("tls://. {\n tls a b\n}\ntls://. {\n tls a b\n}", "`.` on port 853 is served twice"),
    ] {
        assert_eq!(messages(text), [expected], "{text:?}");
    }
    for text in [
        "tls://a {\n tls a b\n}\ntls://b {\n tls a b\n}",
        "tls://a {\n tls a b\n bind 10.0.0.1\n}\ntls://b {\n tls a c\n bind 10.0.0.2\n}",
        ". tls://. {\n tls a b\n}",
    ] {
        blocks(text);
    }
    assert_eq!(block(". tls://. {\n tls a b\n}").zones[1].scheme, Scheme::Tls);
}
