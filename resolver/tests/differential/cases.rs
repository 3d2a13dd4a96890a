//! The Corefiles, and what is asked under each.
//!
//! `BIND` stands for each server's own addresses, `FOLDER` for the folder with the case's files.

use crate::question::{
    A, AAAA, ANY, AUTHENTIC, CNAME, DNSSEC, EDNS, FROM_A_PORT, FROM_A_PORT_WITH_EDNS, HINFO, HTTPS, MX,
    NAPTR, NS, OVER_V6, PLAIN, PTR, Question, SOA, SRV, TCP, TXT, WAYS, WITH_NSID, WITH_NSID_BY_TCP, all,
};
use crate::{templates, tls};

/// One Corefile and its questions.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) corefile: &'static str,
    /// Names and contents of files that the Corefile refers to.
    pub(crate) files: &'static [(&'static str, &'static str)],
    questions: fn() -> Vec<Question>,
    /// `silence`: some questions are left without an answer.
    pub(crate) allowed: &'static [&'static str],
}

impl Case {
    pub(crate) fn questions(&self) -> Vec<Question> {
        (self.questions)()
    }
}

/// A Corefile without files of its own, whose questions are all answered.
const fn case(name: &'static str, corefile: &'static str, questions: fn() -> Vec<Question>) -> Case {
    Case { name, corefile, files: &[], questions, allowed: &[] }
}

pub(crate) const CASES: &[Case] = &[
    case("forward_and_cache", ". {\n bind BIND\n cache\n forward . 127.0.0.53\n}\n", everything),
    case(
        "hosts",
        ". {\n bind BIND\n hosts {\n  192.0.2.1 a.test b.test\n  2001:db8::2 b.test\n  192.0.2.9 *.wild.test\n  \
         fallthrough\n }\n forward . 127.0.0.53\n}\n",
        || {
            all(
                &[
                    "a.test.",
                    "B.test.",
                    "x.wild.test.",
                    "y.x.wild.test.",
                    "1.2.0.192.in-addr.arpa.",
                    "four.test.",
                ],
                &[A, AAAA, TXT, PTR],
                &WAYS,
            )
        },
    ),
    case(
        "forward_failover",
        ". {\n bind BIND\n cache\n forward . 127.0.0.54 127.0.0.53 {\n  policy sequential\n  failover SERVFAIL REFUSED\n \
         }\n}\n",
        everything,
    ),
    case(
        "forward_next",
        ". {\n bind BIND\n forward . 127.0.0.54 {\n  next SERVFAIL NXDOMAIN\n  next_on_nodata\n }\n forward test \
         127.0.0.53 {\n  next REFUSED\n }\n forward . 127.0.0.54 127.0.0.53 {\n  except a.test\n  policy sequential\n }\n}\n",
        everything,
    ),
    case(
        "hosts_other_types",
        ". {\n bind BIND\n hosts {\n  192.0.2.1 a.test txt.test\n  fallthrough test\n  fallthrough_unsupported\n }\n cache \
         test\n forward . 127.0.0.53\n}\n",
        || all(&["a.test.", "txt.test.", "b.test.", "a.example."], &[A, AAAA, TXT, MX, PTR], &WAYS),
    ),
    case(
        "forward_connections",
        ". {\n bind BIND\n forward . 127.0.0.53 {\n  expire 5s\n  max_age 1m\n  max_idle_conns 1\n  source_address \
         127.0.0.1\n }\n}\n",
        everything,
    ),
    case(
        "forward_names",
        ". {\n bind BIND\n forward . up53.test {\n  resolver 127.0.0.54 127.0.0.53:53\n }\n}\n",
        everything,
    ),
    case(
        "cache_prefetch",
        ". {\n bind BIND\n cache {\n  prefetch 1 1m 90%\n  serve_stale 1h verify 0 30s\n  serve_stale_policy prefer_positive\n \
         }\n forward . 127.0.0.53\n}\n",
        everything,
    ),
    case("clients_by_tls", tls::COREFILE, tls::questions),
    case("errors_of_upstreams", ". {\n bind BIND\n forward . 127.0.0.53\n}\n", everything),
    case("rewrite_names", REWRITE_NAMES, rewritten_names),
    case("rewrite_answers", REWRITE_ANSWERS, rewritten_answers),
    case("rewrite_fields", REWRITE_FIELDS, rewritten_fields),
    case("rewrite_edns", REWRITE_EDNS, || {
        all(
            &[
                "echo.local.test.",
                "echo.hex.test.",
                "echo.nsid.test.",
                "echo.subnet.test.",
                "echo.type.test.",
            ],
            &[TXT],
            &[PLAIN, TCP, EDNS, DNSSEC, OVER_V6],
        )
    }),
    case(
        "rewrite_metadata",
        ". {\n bind BIND\n rewrite continue name regex (.*)\\.label\\.test {1}.{view/name}.test metadata\n rewrite continue edns0 \
         local set 0xffee {forward/upstream}\n rewrite name regex (.*)\\.meta\\.test {1}.Test metadata answer auto\n cache\n \
         forward . 127.0.0.53\n}\n",
        || {
            let names =
                ["a.meta.test.", "Four.meta.test.", "nx.meta.test.", "a.label.test.", "echo.meta.test."];
            all(&names, &[A, AAAA, TXT], &[PLAIN, TCP, EDNS, DNSSEC])
        },
    ),
    case("templates", templates::RECORDS, templates::records),
    case("template_expressions", templates::EXPRESSIONS, templates::expressions),
    case("template_conditions", templates::CONDITIONS, templates::conditional),
    Case {
        allowed: &["silence"],
        ..case("access_lists", ACCESS_LISTS, || {
            let mut questions = all(
                &["a.blocked.test.", "a.filtered.test.", "a.open.test.", "x.rewritten.test.", "four.test."],
                &[A, AAAA, TXT, MX],
                &[PLAIN, TCP, EDNS, DNSSEC, OVER_V6],
            );
            questions.extend(all(&["a.dropped.test."], &[A], &[PLAIN]));
            questions
        })
    },
    case("loadbalance", ". {\n bind BIND\n loadbalance\n cache\n forward . 127.0.0.53\n}\n", everything),
    case(
        "loadbalance_prefer",
        ". {\n bind BIND\n loadbalance round_robin {\n  prefer 192.0.2.3/32 192.0.2.0/31\n }\n cache\n forward . \
         127.0.0.53\n}\n",
        everything,
    ),
    case(
        "dns64",
        ". {\n bind BIND\n dns64 {\n  allow_ipv4\n }\n cache\n forward . 127.0.0.53\n}\n64.test {\n bind BIND\n \
         dns64 2001:db8:64::/64\n forward . 127.0.0.53\n}\nall.test {\n bind BIND\n dns64 {\n  translate_all\n  \
         prefix 2001:db8::/32\n }\n forward . 127.0.0.53\n}\n",
        || {
            let mut questions = all(
                &[
                    "only4.test.",
                    "a.test.",
                    "alias.test.",
                    "empty.test.",
                    "nx.test.",
                    "servfail.test.",
                    "dangling.test.",
                ],
                &[A, AAAA],
                &[PLAIN, TCP, EDNS, DNSSEC, OVER_V6],
            );
            questions.extend(all(
                &["only4.64.test.", "two.all.test.", "nx.64.test.", "empty.all.test."],
                &[A, AAAA, TXT],
                &[PLAIN, EDNS, OVER_V6],
            ));
            questions
        },
    ),
    case("bufsize", ". {\n bind BIND\n bufsize 700\n cache\n forward . 127.0.0.53\n}\n", || {
        all(&["a.test.", "medium.test.", "big.test.", "txt.test."], &[A, TXT], &WAYS)
    }),
    case("whoami", "a.test {\n bind BIND\n whoami\n}\n. {\n bind BIND\n cache\n whoami\n}\n", || {
        all(&["a.test.", "x.A.test.", ".", "b.test."], &[A, AAAA, MX], &[FROM_A_PORT, FROM_A_PORT_WITH_EDNS])
    }),
    case("any", ". {\n bind BIND\n any\n cache\n forward . 127.0.0.53\n}\n", || {
        all(&["a.test.", "NX.test.", "."], &[ANY, A, HINFO], &WAYS)
    }),
    case("minimal", ". {\n bind BIND\n minimal\n cache\n forward . 127.0.0.53\n}\n", everything),
    case(
        "minimal_without_cache",
        ". {\n bind BIND\n minimal\n template IN A tpl.test {\n  answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n  authority \
         \"test. 60 IN NS ns.test.\"\n  additional \"ns.test. 60 IN A 192.0.2.53\"\n }\n forward . 127.0.0.53\n}\n",
        || {
            let mut questions = everything();
            questions.extend(all(&["x.tpl.test."], &[A, AAAA], &WAYS));
            questions
        },
    ),
    case("local", ". {\n bind BIND\n local\n cache\n forward . 127.0.0.53\n}\n", local_names),
    case(
        "local_without_prefix",
        ". {\n bind BIND\n local {\n  localhost_prefix off\n }\n cache\n forward . 127.0.0.53\n}\n",
        local_names,
    ),
    case("nsid", ". {\n bind BIND\n nsid this is me\n cache\n forward . 127.0.0.53\n}\n", || {
        all(
            &["a.test.", "nx.test.", "servfail.test."],
            &[A, AAAA, TXT],
            &[PLAIN, EDNS, WITH_NSID, WITH_NSID_BY_TCP],
        )
    }),
    case("chaos", ". {\n bind BIND\n chaos Test-1.0 me you\n forward . 127.0.0.53\n}\n", || {
        let names =
            ["version.bind.", "VERSION.server.", "authors.bind.", "hostname.bind.", "id.server.", "a.test."];
        let mut questions = all(&names, &[TXT, A], &[PLAIN, TCP, EDNS]);
        for question in &mut questions {
            question.qclass = 3;
        }
        questions.extend(all(&names, &[TXT, A], &[PLAIN]));
        questions
    }),
    case(
        "other_classes",
        "test {\n bind BIND\n forward . 127.0.0.53\n}\n. {\n bind BIND\n whoami\n}\n",
        || {
            let mut questions = all(&["a.test.", "nx.test."], &[A, TXT], &[PLAIN, TCP, EDNS]);
            for (index, question) in questions.iter_mut().enumerate() {
                question.qclass = [3, 4, 255][index % 3];
            }
            questions
        },
    ),
    Case {
        files: &[("search.conf", "nameserver 192.0.2.53\nsearch pods.example other.example test\n")],
        ..case(
            "autopath",
            ". {\n bind BIND\n autopath FOLDER/search.conf\n cache\n forward . 127.0.0.53\n}\n",
            searched,
        )
    },
    Case {
        files: &[("search.conf", "search pods.example test\n")],
        ..case(
            "autopath_zones",
            ". {\n bind BIND\n rewrite name suffix .rewritten.example. .pods.example. answer auto\n autopath a.pods.example \
             txt.pods.example FOLDER/search.conf\n acl {\n  block type MX\n }\n forward . 127.0.0.53\n}\n",
            searched,
        )
    },
    case(
        "twice",
        ". {\n bind BIND\n bufsize 600\n bufsize 4096\n minimal\n minimal\n local {\n  localhost_prefix off\n }\n local\n dns64 \
         {\n  allow_ipv4\n }\n dns64 2001:db8::/32\n loadbalance {\n  prefer 192.0.2.2/32\n }\n loadbalance {\n  prefer \
         192.0.2.0/24\n }\n any\n any\n cache\n forward . 127.0.0.53\n}\n",
        || {
            let names =
                ["four.test.", "only4.test.", "medium.test.", "localhost.a.test.", "mx.test.", "nx.test."];
            all(&names, &[A, AAAA, TXT, MX, ANY], &WAYS)
        },
    ),
];

fn searched() -> Vec<Question> {
    all(
        &[
            "a.pods.example.",
            "Two.Pods.Example.",
            "x.test.pods.example.",
            "alias.pods.example.",
            "txt.pods.example.",
            "empty.pods.example.",
            "nx.pods.example.",
            "servfail.pods.example.",
            "dangling.pods.example.",
            "a.rewritten.example.",
            "a.other.example.",
            "a.test.",
        ],
        &[A, AAAA, TXT, MX, CNAME],
        &[PLAIN, TCP, EDNS, DNSSEC],
    )
}

const REWRITE_NAMES: &str = r#". {
 bind BIND
 rewrite name exact.test four.test
 rewrite name exact Cname.Test alias.test
 rewrite name prefix old.test. four.test.
 rewrite name suffix .svc.example .test
 rewrite name suffix .auto.example. .test. answer auto
 rewrite name substring middle.example. two.test.
 rewrite name regex (.*)\.(re)\.example\.? {1}.test
 rewrite name regex ^(.*)\.back\.example\.$ {1}.test answer auto
 rewrite continue {
  name regex (.*)\.both\.example {1}.test
  answer name (.*)\.test {1}.both.example
  answer value (.*)\.test {1}.both.example
 }
 rewrite stop name exact chain1.test chain2.test
 rewrite name chain2.test four.test
 rewrite continue name next1.test next2.test
 rewrite continue name next2.test two.test
 rewrite name regex bad\.(.*) ..{1}
 cache
 forward . 127.0.0.53
}
"#;

const REWRITE_ANSWERS: &str = r#". {
 bind BIND
 rewrite name suffix .value.example .test answer auto answer value (.*)\.test {1}.other.example
 rewrite name regex (.*)\.names\.example {1}.test answer name (.*)\.test {1}.names.example
 rewrite stop {
  name regex (.*)\.all\.example {1}.test
  answer name (.*)\.test {1}.all.example answer value (mail|web|ns)(\d)\.test {1}-{2}.all.example
 }
 rewrite cname exact a.test. two.test.
 forward . 127.0.0.53
}
"#;

const REWRITE_FIELDS: &str = r#"types.test {
 bind BIND
 rewrite type AAAA A
 cache
 forward . 127.0.0.53
}
ttl.test {
 bind BIND
 rewrite continue ttl a.ttl.test 17
 rewrite continue ttl suffix .ttl.test 30-100
 rewrite continue ttl regex ^two\. -45
 rewrite ttl prefix long. 5000-
 cache
 forward . 127.0.0.53
}
rcode.test {
 bind BIND
 rewrite continue rcode servfail.rcode.test SERVFAIL NXDOMAIN
 rewrite continue rcode regex nx.* NXDOMAIN 0
 rewrite rcode substring refused.rcode.test. 5 SERVFAIL
 cache
 forward . 127.0.0.53
}
cname.test {
 bind BIND
 rewrite cname exact a.test. four.test.
 rewrite cname regex nx(.*) two{1}
 forward . 127.0.0.53
}
test {
 bind BIND
 forward . 127.0.0.53
}
class.test {
 bind BIND
 rewrite class CH IN
 forward . 127.0.0.53
}
"#;

const REWRITE_EDNS: &str = r#"local.test {
 bind BIND
 rewrite edns0 local set 0xffee hello revert
 forward . 127.0.0.53
}
hex.test {
 bind BIND
 rewrite continue edns0 local append 0xffed 0x00ff10 revert
 rewrite edns0 local set 65000 {protocol} revert
 forward . 127.0.0.53
}
nsid.test {
 bind BIND
 rewrite edns0 nsid set revert
 forward . 127.0.0.53
}
subnet.test {
 bind BIND
 rewrite edns0 subnet set 24 56 revert
 forward . 127.0.0.53
}
type.test {
 bind BIND
 rewrite continue edns0 local set 0xffea {qname} revert
 rewrite continue edns0 local set 0xffeb {qtype} revert
 rewrite continue edns0 local set 0xffec {client_ip} revert
 rewrite continue edns0 local replace 0xfff0 never revert
 forward . 127.0.0.53
}
. {
 bind BIND
 forward . 127.0.0.53
}
"#;

const ACCESS_LISTS: &str = r#". {
 bind BIND
 rewrite name suffix .rewritten.test .blocked.test answer auto
 acl blocked.test {
  allow type MX net 127.0.0.0/8
  block net *
 }
 acl filtered.test {
  filter type A TXT net 127.0.0.1 fd00::/8
 }
 acl dropped.test {
  drop
 }
 acl {
  allow net 127.0.0.0/8
  block type AAAA
 }
 cache
 forward . 127.0.0.53
}
"#;

fn rewritten_names() -> Vec<Question> {
    all(
        &[
            "exact.test.",
            "cname.test.",
            "CNAME.test.",
            "old.test.",
            "four.svc.example.",
            "alias.svc.example.",
            "nx.svc.example.",
            "four.auto.example.",
            "chain.auto.example.",
            "nx.auto.example.",
            "middle.example.",
            "x.middle.example.",
            "two.re.example.",
            "four.back.example.",
            "alias.back.example.",
            "alias.both.example.",
            "chain1.test.",
            "chain2.test.",
            "next1.test.",
            "bad.test.",
            "a.test.",
        ],
        &[A, AAAA, TXT],
        &[PLAIN, TCP, EDNS, DNSSEC],
    )
}

fn rewritten_answers() -> Vec<Question> {
    let mut questions = Vec::new();
    for (name, qtype) in [
        ("alias", A),
        ("chain", AAAA),
        ("mx", MX),
        ("srv", SRV),
        ("ns", NS),
        ("soa", SOA),
        ("naptr", NAPTR),
        ("nx", A),
        ("empty", A),
        ("txt", TXT),
        ("referral", A),
        ("dangling", A),
    ] {
        for zone in ["value.example", "names.example", "all.example", "test"] {
            questions.extend(all(&[&format!("{name}.{zone}.")], &[qtype], &[PLAIN, TCP, EDNS]));
        }
    }
    questions
}

fn rewritten_fields() -> Vec<Question> {
    let ways = [PLAIN, TCP, EDNS, AUTHENTIC];
    let mut questions =
        all(&["four.types.test.", "nx.types.test.", "empty.types.test."], &[A, AAAA, TXT], &ways);
    questions.extend(all(
        &["a.ttl.test.", "two.ttl.test.", "long.ttl.test.", "zero.ttl.test.", "nx.ttl.test."],
        &[A, AAAA],
        &ways,
    ));
    questions.extend(all(
        &["servfail.rcode.test.", "nx.rcode.test.", "refused.rcode.test.", "a.rcode.test."],
        &[A, TXT],
        &ways,
    ));
    questions.extend(all(
        &["alias.cname.test.", "chain.cname.test.", "dangling.cname.test.", "four.cname.test."],
        &[A, AAAA, CNAME],
        &ways,
    ));
    let mut chaos = all(&["a.class.test.", "four.class.test."], &[A, TXT], &ways);
    for question in &mut chaos {
        question.qclass = 3;
    }
    questions.extend(chaos);
    questions
}

fn local_names() -> Vec<Question> {
    all(
        &[
            "localhost.",
            "LocalHost.",
            "x.localhost.",
            "localhost.test.",
            "localhostx.test.",
            "0.in-addr.arpa.",
            "127.in-addr.arpa.",
            "1.0.0.127.in-addr.arpa.",
            "2.0.0.127.in-addr.arpa.",
            "255.in-addr.arpa.",
            "5.0.0.10.in-addr.arpa.",
        ],
        &[A, AAAA, PTR, SOA, NS, TXT],
        &[PLAIN, TCP, EDNS],
    )
}

/// Every name of the upstream's world.
fn everything() -> Vec<Question> {
    let mut questions = all(
        &["a.test.", "Two.Test.", "four.test.", "alias.test.", "chain.test.", "nx.test.", "empty.test."],
        &[A, AAAA, TXT],
        &WAYS,
    );
    for (name, qtype) in [
        ("mx.test.", MX),
        ("srv.test.", SRV),
        ("txt.test.", TXT),
        ("naptr.test.", NAPTR),
        ("ns.test.", NS),
        ("soa.test.", SOA),
        ("alias.test.", CNAME),
        ("5.0.0.10.in-addr.arpa.", PTR),
        ("half.test.", A),
        ("dangling.test.", A),
        ("servfail.test.", A),
        ("refused.test.", A),
        ("notimp.test.", A),
        ("formerr.test.", A),
        ("bare.test.", A),
        ("barenx.test.", A),
        ("zero.test.", A),
        ("short.test.", A),
        ("long.test.", A),
        ("secure.test.", A),
        ("referral.test.", A),
        ("medium.test.", TXT),
        ("big.test.", TXT),
        ("empty.test.", HTTPS),
        ("empty.test.", HINFO),
        (".", NS),
    ] {
        questions.extend(all(&[name], &[qtype], &WAYS));
    }
    questions
}
