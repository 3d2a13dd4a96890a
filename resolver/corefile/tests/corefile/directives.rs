//! Each directive's arguments, options, defaults and bounds, as CoreDNS 1.15.0 has them.

use std::time::Duration;

use crate::world::{World, block, findings, messages};
use nodestub_corefile::config::answering::SearchPath;
use nodestub_corefile::config::logging::{ErrorLevel, LogClasses, LogFormat};
use nodestub_corefile::config::tls::{ForwardTls, KeyPair};
use nodestub_corefile::config::{
    Bind, BindTarget, Cache, CacheClass, Forward, Health, HostsEntry, HttpAddr, Policy, Prefetch, Prometheus,
    Ready, Reload, ServeStale, Transport, Upstream,
};
use nodestub_wire::Name;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().copied().map(name).collect()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Each of `directives`, alone in a block, is wrong, and says so once.
#[track_caller]
fn rejects(directives: &[&str]) {
    for directive in directives {
        let found = messages(&format!(". {{\n{directive}\n}}"));
        assert_eq!(found.len(), 1, "{directive}: {found:?}");
    }
}

/// The only finding in a block with this directive.
#[track_caller]
fn finding(directive: &str) -> String {
    let found = findings(&World::new(), &format!(". {{\n{directive}\n}}"));
    assert_eq!(found.len(), 1, "{directive}: {found:?}");
    found[0].trim_start_matches("/etc/Corefile:").to_owned()
}

#[test]
fn bind_takes_addresses_devices_and_exceptions() {
    let address = |text: &str| BindTarget::Addr(text.parse().unwrap());
    let on = |target: BindTarget, except: &[BindTarget]| Bind { target, except: except.to_vec() };
    let addr = |text: &str| on(address(text), &[]);
    let device = |text: &str| BindTarget::Device(text.to_owned());
    assert_eq!(block("bind 1.2.3.4 ::5").bind, [addr("1.2.3.4"), addr("::5")]);
    assert_eq!(block("bind 1.2.3.4\nbind lo").bind, [addr("1.2.3.4"), on(device("lo"), &[])]);
    let found = block("bind 1.2.3.4 1.2.3.5 {\n except 1.2.3.5\n}");
    assert_eq!(found.bind, [addr("1.2.3.4")]);
    let found = block("bind lo {\n except 127.0.0.1\n}\nbind eth0 1.2.3.4 {\n except lo 1.2.3.4\n}");
    let others = [device("lo"), address("1.2.3.4")];
    assert_eq!(found.bind, [on(device("lo"), &[address("127.0.0.1")]), on(device("eth0"), &others)]);
    rejects(&[
        "bind",
        "bind 1.2.3.400",
        "bind 1.2.3.4:53",
        "bind fe80::1%lo",
        "bind a-name-that-is-too-long-for-a-device",
        "bind \"\"",
        "bind lo {\n except\n}",
        "bind lo {\n excpt 127.0.0.1\n}",
        "bind 1.2.3.4 {\n except 1.2.3.4\n}",
    ]);
}

#[test]
fn cache_has_the_defaults_of_coredns() {
    let class = |max_ttl| CacheClass { capacity: 9984, max_ttl, min_ttl: 5 };
    let default = Cache {
        zones: vec![],
        success: class(3600),
        denial: class(1800),
        servfail: seconds(5),
        keep_ttl: false,
        disable_success: vec![],
        disable_denial: vec![],
        serve_stale: None,
        prefer_positive: false,
        prefetch: None,
    };
    assert_eq!(block("cache").cache, Some(default.clone()));
    assert_eq!(block("cache {\n}").cache, Some(default.clone()));
    let with_zones = Cache { zones: names(&["example.nl", "aaa"]), ..default.clone() };
    assert_eq!(block("cache example.nl aaa").cache, Some(with_zones));
    let with_ttl = Cache { success: class(25), denial: class(25), ..default };
    assert_eq!(block("cache 25").cache, Some(with_ttl));
}

#[test]
fn cache_reads_its_options() {
    let found = block(
        "cache 25 example.nl {\n success 5000 4000 30\n denial 10 15 0\n servfail 1m\n \
         disable success\n disable denial a b\n keepttl\n}",
    );
    assert_eq!(
        found.cache,
        Some(Cache {
            zones: names(&["example.nl"]),
            // Rounded down to 256 shards, and at least 4 in each.
            success: CacheClass { capacity: 4864, max_ttl: 4000, min_ttl: 30 },
            denial: CacheClass { capacity: 1024, max_ttl: 15, min_ttl: 0 },
            servfail: seconds(60),
            keep_ttl: true,
            disable_success: vec![Name::root()],
            disable_denial: names(&["a", "b"]),
            serve_stale: None,
            prefer_positive: false,
            prefetch: None,
        })
    );
    assert_eq!(block("cache {\n servfail 0\n}").cache.unwrap().servfail, Duration::ZERO);
}

#[test]
fn cache_rejects_what_is_out_of_bounds() {
    rejects(&[
        "cache 0 example.nl",
        "cache -1 example.nl",
        "cache 99999999999",
        "cache {}",
        "cache {\n success\n}",
        "cache {\n success x\n}",
        "cache {\n success -1\n}",
        "cache {\n success 1024 0\n}",
        "cache {\n success 1024 1 -1\n}",
        "cache {\n serve_stale\n serve_stale_policy prefer_positive\n serve_stale_policy prefer_positive\n}",
        "cache {\n denial 1024 1m\n}",
        "cache {\n servfail\n}",
        "cache {\n servfail 5\n}",
        "cache {\n servfail -1s\n}",
        "cache {\n servfail 5m1s\n}",
        "cache {\n disable\n}",
        "cache {\n disable all\n}",
        "cache {\n disable success a..b\n}",
        "cache {\n keepttl 5\n}",
        "cache {\n positive 5\n}",
        "cache\ncache",
    ]);
    assert_eq!(
        finding("cache {\n success 1024\n success 2048\n}"),
        "4:2 `success` stands twice; the last one counts"
    );
}

#[test]
fn cache_reads_what_is_refreshed_before_it_ends() {
    let prefetch = |text: &str| block(&format!("cache {{\n {text}\n}}")).cache.unwrap().prefetch;
    let expected =
        |amount, within, percentage| Some(Prefetch { amount, within: seconds(within), percentage });
    assert_eq!(prefetch("prefetch 5"), expected(5, 60, 10));
    assert_eq!(prefetch("prefetch 5 2m"), expected(5, 120, 10));
    assert_eq!(prefetch("prefetch 5 2m 90%"), expected(5, 120, 90));
    assert_eq!(prefetch("prefetch 0"), None);
    let found = block("cache {\n serve_stale\n serve_stale_policy prefer_positive\n}").cache.unwrap();
    assert!(found.prefer_positive && found.serve_stale.is_some());
    rejects(&[
        "cache {\n prefetch\n}",
        "cache {\n prefetch -1\n}",
        "cache {\n prefetch many\n}",
        "cache {\n prefetch 5 1\n}",
        "cache {\n prefetch 5 1m 20\n}",
        "cache {\n prefetch 5 1m 9%\n}",
        "cache {\n prefetch 5 1m 91%\n}",
        "cache {\n prefetch 5 1m 20% x\n}",
        "cache {\n serve_stale_policy prefer_positive\n}",
        "cache {\n serve_stale\n serve_stale_policy prefer_negative\n}",
        "cache {\n serve_stale\n serve_stale_policy\n}",
    ]);
}

#[test]
fn forward_has_the_defaults_of_coredns() {
    assert_eq!(
        block("forward . 127.0.0.1").forward,
        [Forward {
            from: Name::root(),
            to: vec![Upstream::Addr("127.0.0.1:53".parse().unwrap())],
            except: vec![],
            policy: Policy::Random,
            transport: Transport::Same,
            max_fails: 2,
            health_check: Duration::from_millis(500),
            expire: seconds(10),
            max_age: None,
            max_idle: None,
            source_address: None,
            resolvers: vec![],
            tls: ForwardTls::default(),
            tls_server_name: None,
            max_concurrent: None,
            max_attempts: None,
            read_timeout: seconds(2),
            failover: vec![],
            next: vec![],
            next_on_nodata: false,
            fail_fast: false,
            probe_without_recursion: false,
            probe_name: Name::root(),
        }]
    );
}

#[test]
fn forward_reads_upstreams_of_every_form_once_each() {
    let world =
        World::new().file("resolv", "nameserver 192.0.2.1").file("/run/resolv.conf", "nameserver ::1");
    let text = ". {\n forward . 8.8.8.8 8.8.8.8:53 dns://9.9.9.9:99 ::1 [::1]:54 resolv /run/resolv.conf\n}";
    let config = world.parse(text).unwrap().config;
    let addr = |text: &str| Upstream::Addr(text.parse().unwrap());
    assert_eq!(
        config.blocks[0].forward[0].to,
        [
            addr("8.8.8.8:53"),
            addr("9.9.9.9:99"),
            addr("[::1]:53"),
            addr("[::1]:54"),
            Upstream::ResolvConf("resolv".into()),
            Upstream::ResolvConf("/run/resolv.conf".into()),
        ]
    );
}

#[test]
fn forward_reads_host_names_and_whom_to_ask_for_them() {
    let host = |host: &str, port, by_tls, server_name: Option<&str>| Upstream::Host {
        host: host.to_owned(),
        port,
        by_tls,
        server_name: server_name.map(ToOwned::to_owned),
    };
    let found = block(
        "forward . localhost DNS.example.org.:5353 dns://a.test tls://dns.test tls://dns.test%other.test:8853 {\n \
         resolver 192.0.2.1 [::1]:5353\n}",
    );
    let [forward] = found.forward.as_slice() else { panic!() };
    assert_eq!(
        forward.to,
        [
            host("localhost", 53, false, None),
            host("dns.example.org", 5353, false, None),
            host("a.test", 53, false, None),
            host("dns.test", 853, true, None),
            host("dns.test", 8853, true, Some("other.test")),
        ]
    );
    assert_eq!(forward.resolvers, ["192.0.2.1:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);
}

#[test]
fn forward_reads_its_options_and_may_repeat() {
    let found = block(
        "forward com 127.0.0.1 {\n except a.com b.com\n except c.com\n policy sequential\n prefer_udp\n force_tcp\n \
         max_fails 0\n health_check 5s\n expire 1m\n max_concurrent 1000\n}\n\
         forward . 127.0.0.2 {\n force_tcp\n prefer_udp\n policy round_robin\n max_concurrent 0\n}\n\
         forward 10.0.0.0/8 127.0.0.3 {\n prefer_udp\n policy random\n}",
    )
    .forward;
    assert_eq!(
        found[0],
        Forward {
            from: name("com"),
            to: vec![Upstream::Addr("127.0.0.1:53".parse().unwrap())],
            except: names(&["a.com", "b.com", "c.com"]),
            policy: Policy::Sequential,
            transport: Transport::Tcp,
            max_fails: 0,
            health_check: seconds(5),
            expire: seconds(60),
            max_concurrent: Some(1000),
            ..block("forward . 127.0.0.1").forward.remove(0)
        }
    );
    assert_eq!(
        (found[1].transport, found[1].policy, found[1].max_concurrent),
        (Transport::Tcp, Policy::RoundRobin, None)
    );
    assert_eq!((found[2].transport, found[2].policy), (Transport::Udp, Policy::Random));
    assert_eq!(found[2].from, name("10.in-addr.arpa"));
}

#[test]
fn forward_rejects_what_cannot_be() {
    let sixteen: Vec<_> = (1..=16).map(|last| format!("192.0.2.{last}")).collect();
    rejects(&[
        "forward",
        "forward .",
        "forward . a27.0.0.1",
        "forward . 127.0.0.l",
        "forward . dns..example.org",
        "forward . dns.example.org:0",
        "forward . dns.example.org:dns",
        "forward . 127.0.0.1 {\n resolver\n}",
        "forward . dns.test {\n resolver dns.test\n}",
        "forward . 8.8.8.8:0",
        "forward . 8.8.8.8:",
        "forward . fe80::1%eth0",
        "forward . /no/such/file",
        "forward . /etc/hosts",
        "forward . unix:///run/dns.sock",
        "forward a..b 127.0.0.1",
        &format!("forward {} 127.0.0.1", "x".repeat(64)),
        &format!("forward . {}", sixteen.join(" ")),
        "forward . 127.0.0.1 {\n blaatl\n}",
        "forward . 127.0.0.1 {\n except\n}",
        "forward . 127.0.0.1 {\n except a..b\n}",
        "forward . 127.0.0.1 {\n policy\n}",
        "forward . 127.0.0.1 {\n policy fastest\n}",
        "forward . 127.0.0.1 {\n force_tcp yes\n}",
        "forward . 127.0.0.1 {\n max_fails -1\n}",
        "forward . 127.0.0.1 {\n max_fails 3 4\n}",
        "forward . 127.0.0.1 {\n health_check 5\n}",
        "forward . 127.0.0.1 {\n health_check -5s\n}",
        "forward . 127.0.0.1 {\n expire\n}",
        "forward . 127.0.0.1 {\n max_concurrent many\n}",
        "forward . 127.0.0.1 {\n health_check 1s fast\n}",
        "forward . 127.0.0.1 {\n health_check 1s domain\n}",
        "forward . 127.0.0.1 {\n failover NOERROR\n}",
        "forward . 127.0.0.1 {\n failover\n}",
        "forward . 127.0.0.1 {\n next MAYBE\n}",
        "forward . 127.0.0.1 {\n next_on_nodata yes\n}",
        "forward . 127.0.0.1 {\n read_timeout 0s\n}",
        "forward . 127.0.0.1 {\n max_connect_attempts -1\n}",
    ]);
    block(&format!("forward . {}", sixteen[..15].join(" ")));
}

#[test]
fn forward_names_what_is_not_supported_yet() {
    for transport in ["https", "quic"] {
        let expected = format!("2:11 upstreams over `{transport}://` are not supported by this version");
        assert_eq!(finding(&format!("forward . {transport}://9.9.9.9")), expected);
    }
    let found = finding("forward . 9.9.9.9 {\n doh_method GET\n}");
    assert!(found.ends_with("is not supported by this version"), "{found}");
}

#[test]
fn forward_reads_upstreams_over_tls_and_whose_names_they_bear() {
    let tls = |address: &str, name: Option<&str>| Upstream::Tls {
        address: address.parse().unwrap(),
        server_name: name.map(ToOwned::to_owned),
    };
    let found = block(
        "forward . tls://9.9.9.9%dns.quad9.net tls://1.1.1.1 tls://1.0.0.1:8853 tls://[2620:fe::fe%dns.quad9.net]:10853 \
         tls://9.9.9.9%dns.quad9.net:10853 {\n tls\n}",
    );
    assert_eq!(
        found.forward[0].to,
        [
            tls("9.9.9.9:853", Some("dns.quad9.net")),
            tls("1.1.1.1:853", None),
            tls("1.0.0.1:8853", None),
            tls("[2620:fe::fe]:10853", Some("dns.quad9.net")),
            tls("9.9.9.9:10853", Some("dns.quad9.net")),
        ]
    );
    let pair = || KeyPair { certificate: "a.crt".into(), key: "a.key".into() };
    for (words, expected) in [
        ("", ForwardTls::default()),
        ("ca.crt", ForwardTls { pair: None, authorities: Some("ca.crt".into()) }),
        ("a.crt a.key", ForwardTls { pair: Some(pair()), authorities: None }),
        ("a.crt a.key ca.crt", ForwardTls { pair: Some(pair()), authorities: Some("ca.crt".into()) }),
    ] {
        let found =
            block(&format!("forward . tls://9.9.9.9 {{\n tls {words}\n tls_servername dns.quad9.net\n}}"));
        assert_eq!(found.forward[0].tls, expected, "{words}");
        assert_eq!(found.forward[0].tls_server_name.as_deref(), Some("dns.quad9.net"));
    }
    rejects(&[
        "forward . tls://",
        "forward . tls://dns..quad9.net",
        "forward . tls:///etc/resolv.conf",
        "forward . tls://9.9.9.9%",
        "forward . tls://9.9.9.9%a..b",
        "forward . tls://9.9.9.9:0",
        "forward . tls://9.9.9.9 {\n tls a b c d\n}",
        "forward . tls://9.9.9.9 {\n tls_servername\n}",
        "forward . tls://9.9.9.9 {\n tls_servername a b\n}",
        "forward . tls://9.9.9.9%a {\n tls_servername b\n}",
    ]);
    assert!(finding("forward . 9.9.9.9 {\n tls\n}").contains("changes nothing"));
}

#[test]
fn forward_reads_the_life_of_connections_and_where_they_come_from() {
    let found = block("forward . 9.9.9.9 {\n max_age 1h\n max_idle_conns 3\n source_address 192.0.2.1\n}");
    let found = &found.forward[0];
    assert_eq!(
        (found.max_age, found.max_idle, found.source_address),
        (Some(seconds(3600)), Some(3), Some("192.0.2.1".parse().unwrap()))
    );
    let found = block("forward . 9.9.9.9 {\n max_age 0\n max_idle_conns 0\n}");
    assert_eq!((found.forward[0].max_age, found.forward[0].max_idle), (None, None));
    rejects(&[
        "forward . 9.9.9.9 {\n max_age 5s\n}",
        "forward . 9.9.9.9 {\n max_age -1s\n}",
        "forward . 9.9.9.9 {\n expire 2h\n max_age 1h\n}",
        "forward . 9.9.9.9 {\n max_idle_conns -1\n}",
        "forward . 9.9.9.9 {\n source_address here\n}",
    ]);
}

#[test]
fn forward_warns_of_a_network_that_is_several_zones() {
    let found = finding("forward 10.9.3.0/18 127.0.0.1");
    assert!(found.contains("64 zones") && found.contains("only 0.9.10.in-addr.arpa."), "{found}");
}

#[test]
fn hosts_reads_files_and_inline_entries() {
    let found = block("hosts").hosts.unwrap();
    assert_eq!(found.file, Some("/etc/hosts".into()));
    assert_eq!((found.ttl, found.no_reverse, found.reload), (3600, false, Some(seconds(5))));
    assert!(found.inline.is_empty() && found.zones.is_empty() && found.fallthrough.is_none());

    let found = block(
        "hosts /etc/hosts miek.nl. 10.0.0.0/8 {\n 10.0.0.1 a.miek.nl B.miek.nl\n ::1 *.miek.nl\n 10.0.0.1 c.miek.nl\n \
         ttl 60\n no_reverse\n reload 0\n fallthrough a b\n}",
    )
    .hosts
    .unwrap();
    assert_eq!(found.zones, names(&["miek.nl", "10.in-addr.arpa"]));
    assert_eq!(
        found.inline,
        [
            HostsEntry { addr: "10.0.0.1".parse().unwrap(), names: names(&["a.miek.nl", "b.miek.nl"]) },
            HostsEntry { addr: "::1".parse().unwrap(), names: names(&["*.miek.nl"]) },
            HostsEntry { addr: "10.0.0.1".parse().unwrap(), names: names(&["c.miek.nl"]) },
        ]
    );
    assert_eq!((found.ttl, found.no_reverse, found.reload), (60, true, None));
    assert_eq!(found.fallthrough, Some(names(&["a", "b"])));
    assert_eq!(block("hosts {\n fallthrough\n}").hosts.unwrap().fallthrough, Some(vec![]));
}

#[test]
fn hosts_rejects_what_coredns_drops_in_silence() {
    rejects(&[
        "hosts {\n 10.0.0.256 a\n}",
        "hosts {\n 10.0.0.1\n}",
        "hosts {\n 10.0.0.1 a..b\n}",
        "hosts {\n falltrough\n}",
        "hosts {\n ttl\n}",
        "hosts {\n ttl 0\n}",
        "hosts {\n ttl 65536\n}",
        "hosts {\n ttl 1h\n}",
        "hosts {\n reload\n}",
        "hosts {\n reload -1s\n}",
        "hosts {\n reload 5\n}",
        "hosts {\n no_reverse yes\n}",
        "hosts {\n fallthrough\n 10.0.0.1 a\n}",
        "hosts /etc/hosts a..b",
        "hosts \"\"",
        "hosts\nhosts",
    ]);
    assert_eq!(finding("hosts /not/yet"), "2:7 the file `/not/yet` does not exist");
}

#[test]
fn endpoints_have_the_defaults_of_coredns() {
    let addr = |host: Option<&str>, port| HttpAddr { host: host.map(|host| host.parse().unwrap()), port };
    let found = block("health\nready\nprometheus");
    assert_eq!(found.health, Some(Health { addr: addr(None, 8080), lameduck: Duration::ZERO }));
    assert_eq!(found.ready, Some(Ready { addr: addr(None, 8181), until_ready: false }));
    let metrics = |addr: HttpAddr| Some(Prometheus { addr, tls: None });
    assert_eq!(found.prometheus, metrics(addr(Some("127.0.0.1"), 9153)));
    let found = block(
        "health localhost:1234 {\n lameduck 4s\n}\nready [::1]:1 {\n monitor until-ready\n}\nprometheus :9253",
    );
    assert_eq!(found.health, Some(Health { addr: addr(Some("127.0.0.1"), 1234), lameduck: seconds(4) }));
    assert_eq!(found.ready, Some(Ready { addr: addr(Some("::1"), 1), until_ready: true }));
    let continuously = "ready {\n monitor continuously\n}\nprometheus {\n runtime_metrics\n}";
    assert!(!block(continuously).ready.unwrap().until_ready);
    assert_eq!(found.prometheus, metrics(addr(None, 9253)));
    let by_tls = block("prometheus {\n runtime_metrics\n tls /etc/web.yml\n}").prometheus.unwrap();
    assert_eq!(by_tls.tls.unwrap().to_str(), Some("/etc/web.yml"));
    rejects(&[
        "health bla",
        "health :1 :2",
        "health bla:8080",
        "health :80a",
        "health {\n lameduck a\n}",
        "health {\n lameduck\n}",
        "health {\n lamedudk 4s\n}",
        "ready 8181",
        "ready {\n monitor sometimes\n}",
        "ready {\n monitor\n}",
        "ready\nready",
        "prometheus 9253",
        "prometheus\nprometheus",
        "prometheus {\n tls\n}",
        "prometheus {\n tls /a\n tls /b\n}",
    ]);
    assert!(finding("health\nhealth :1").starts_with("3:1 `health` stands twice"));
}

#[test]
fn log_and_errors_and_loop_read_their_few_words() {
    let rules = |text: &str| block(text).log;
    let names_of = |text: &str| rules(text).into_iter().map(|rule| rule.name).collect::<Vec<_>>();
    assert_eq!(names_of("log"), [Name::root()]);
    assert_eq!(names_of("log a b {common} {\n class all\n}\nlog c a"), names(&["a", "b", "c", "a"]));
    let found = rules("log . {combined} {\n class denial\n class error\n}\nlog a.test \"{rcode}\"");
    assert_eq!(found[0].classes, LogClasses { success: false, denial: true, error: true });
    assert_eq!(found[0].format, LogFormat::read("{combined}"));
    assert_eq!((found[1].format.clone(), found[1].classes), (LogFormat::read("{rcode}"), LogClasses::ALL));
    assert_eq!(rules("log {\n class success all\n}")[0].classes, LogClasses::ALL);
    let found = block("errors stdout\nloop");
    assert!(found.errors.is_some() && found.detect_loop);
    let found = block(
        "errors {\n stacktrace\n consolidate 5m \".* timeout$\" warning show_first\n consolidate 30s ^x\n}",
    );
    let [first, second] = found.errors.unwrap().consolidate.try_into().unwrap();
    assert_eq!((first.period, first.level, first.show_first), (seconds(300), ErrorLevel::Warning, true));
    assert_eq!(second.pattern.as_str(), "^x");
    assert_eq!((second.period, second.level, second.show_first), (seconds(30), ErrorLevel::Error, false));
    rejects(&[
        "log . {\n class denial\n class nothing\n}",
        "log {combined}",
        "log {\n class everything\n}",
        "log {\n class\n}",
        "log {\n level info\n}",
        "errors /var/log/errors",
        "errors stdout stdout",
        "errors {\n consolidate 5m\n}",
        "errors {\n consolidate x timeout\n}",
        "errors {\n consolidate 5m (\n}",
        "errors {\n consolidate 5m a loud\n}",
        "errors {\n consolidate 5m a warning info\n}",
        "errors {\n consolidate 5m a show_first warning\n}",
        "errors {\n stacktrace x\n}",
        "errors {\n stack\n}",
        "errors\nerrors",
        "loop 5",
        "loop {\n x\n}",
        "loop\nloop",
    ]);
}

#[test]
fn autopath_takes_the_search_list_of_a_file_or_of_the_cluster() {
    let world = World::new()
        .file("/etc/search", "search a.test b.test\nsearch c.test d\n")
        .file("/etc/resolv.conf", "search corp.example\n");
    let read = |text: &str| world.parse(text).unwrap().config.blocks[0].autopath.clone().unwrap();
    let found = read("x.test y.test {\n autopath /etc/search\n}");
    assert_eq!(found.zones, names(&["x.test", "y.test"]));
    assert_eq!(found.path, SearchPath::List(names(&["c.test", "d"])));
    let found = read(". {\n autopath cluster.local @kubernetes\n}");
    assert_eq!(found.zones, names(&["cluster.local"]));
    assert_eq!(found.path, SearchPath::Kubernetes(names(&["corp.example"])));
    rejects(&["autopath", "autopath /etc/nothing", "autopath @etcd", "autopath a..b /etc/resolv.conf"]);
}

#[test]
fn reload_keeps_its_bounds() {
    let reload = |text: &str| block(text).reload.unwrap();
    assert_eq!(reload("reload"), Reload { interval: seconds(30), jitter: seconds(15) });
    assert_eq!(reload("reload 10s"), Reload { interval: seconds(10), jitter: seconds(5) });
    assert_eq!(reload("reload 10s 2s"), Reload { interval: seconds(10), jitter: seconds(2) });
    assert_eq!(reload("reload 2s 0s"), Reload { interval: seconds(2), jitter: Duration::ZERO });
    rejects(&[
        "reload foo",
        "reload 10s foo",
        "reload 10s 5s foo",
        "reload 1s",
        "reload 0s",
        "reload 3s 0.5s",
        "reload 30",
        "reload {\n interval 5s\n}",
    ]);
    assert!(finding("reload\nreload 5s").starts_with("3:1 `reload` stands twice"));
}

#[test]
fn forward_reads_what_is_done_about_failures() {
    let found = block(
        "forward . 127.0.0.1 {\n health_check 1s no_rec domain a.test\n failover SERVFAIL refused\n next NXDOMAIN\n \
         next_on_nodata\n failfast_all_unhealthy_upstreams\n max_connect_attempts 3\n read_timeout 1500ms\n}",
    );
    let forward = &found.forward[0];
    assert_eq!((forward.health_check, forward.probe_without_recursion), (seconds(1), true));
    assert_eq!(forward.probe_name, name("a.test"));
    assert_eq!((&forward.failover, &forward.next), (&vec![2, 5], &vec![3]));
    assert!(forward.next_on_nodata && forward.fail_fast);
    assert_eq!((forward.max_attempts, forward.read_timeout), (Some(3), Duration::from_millis(1500)));
}

#[test]
fn cache_reads_how_stale_answers_are_served() {
    let stale = |text: &str| block(&format!("cache {{\n serve_stale {text}\n}}")).cache.unwrap().serve_stale;
    let default = ServeStale { up_to: seconds(3600), verify: None, ttl: 0, recheck: Duration::ZERO };
    assert_eq!(stale(""), Some(default.clone()));
    assert_eq!(stale("0s"), None);
    assert_eq!(
        stale("2h IMMEDIATE 30s 10s"),
        Some(ServeStale { up_to: seconds(7200), verify: None, ttl: 30, recheck: seconds(10) })
    );
    assert_eq!(stale("1h verify"), Some(ServeStale { verify: Some(Duration::ZERO), ..default.clone() }));
    let full =
        ServeStale { verify: Some(Duration::from_millis(200)), ttl: 5, recheck: seconds(60), ..default };
    assert_eq!(stale("1h verify 200ms 5s 1m"), Some(full));
    for text in [
        "x",
        "1h later",
        "1h immediate 1500ms",
        "1h immediate 1s 6m",
        "1h immediate 1s 1s 1s",
        "1h verify 1s 1s 1s 1s",
    ] {
        rejects(&[&format!("cache {{\n serve_stale {text}\n}}")]);
    }
}

#[test]
fn timeouts_are_read_and_what_does_nothing_says_so() {
    let found = block("timeouts {\n read 5s\n write 30\n idle 1m\n maxtcpqueries 100\n}").timeouts;
    assert_eq!(
        (found.read, found.write, found.idle),
        (Some(seconds(5)), Some(seconds(30)), Some(seconds(60)))
    );
    assert_eq!(found.max_queries, Some(100));
    rejects(&[
        "timeouts",
        "timeouts {\n read 500ms\n}",
        "timeouts {\n idle 25h\n}",
        "timeouts {\n maxtcpqueries 0\n}",
        "timeouts {\n dial 1s\n}",
    ]);
    for directive in [
        "debug",
        "metadata a.test",
        "pprof",
        "pprof :6053 {\n block\n}",
        "trace",
        "trace zipkin localhost:9411 {\n every 4\n}",
    ] {
        assert!(finding(directive).ends_with("is accepted and does nothing here"), "{directive}");
        block(directive);
    }
    for directive in [
        "metadata {\n a\n}",
        "pprof {\n cpu\n}",
        "pprof 6053",
        "pprof {\n block x\n}",
        "trace a b c",
        "trace jaeger localhost:1",
        "trace {\n every -1\n}",
        "trace {\n service a b\n}",
        "trace {\n client_server maybe\n}",
        "trace {\n datadog_analytics_rate 2\n}",
    ] {
        // Said twice: what is wrong, and that it does nothing.
        assert_eq!(messages(&format!(". {{\n{directive}\n}}")).len(), 2, "{directive}");
    }
}

#[test]
fn hosts_passes_other_types_on_only_where_it_falls_through() {
    assert!(block("hosts {\n fallthrough\n fallthrough_unsupported\n}").hosts.unwrap().passes_other_types);
    rejects(&["hosts {\n fallthrough_unsupported\n}"]);
}
