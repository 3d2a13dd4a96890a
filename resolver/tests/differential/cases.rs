//! The Corefiles, and what is asked under each.
//!
//! `BIND` stands for each server's own addresses, `FOLDER` for the folder with the case's files.

use crate::question::{A, AAAA, CNAME, HINFO, HTTPS, MX, NAPTR, NS, PTR, Question, SOA, SRV, TXT, WAYS, all};

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
    case("errors_of_upstreams", ". {\n bind BIND\n forward . 127.0.0.53\n}\n", everything),
];

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
