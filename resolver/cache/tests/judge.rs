//! What is kept of a response, as what, and for how long. The responses are made by the crate `domain`.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

use domain::base::iana::{Rcode, Rtype};
use domain::base::message_builder::MessageBuilder;
use domain::base::{Name, Ttl};
use domain::rdata::{A, AllRecordData, Cname, Ns, Soa};
use nodestub_cache::{Bounds, Judgement, Kind, Limits, judge};
use nodestub_wire::Reply;

const LIMITS: Limits =
    Limits { success: Bounds { min: 5, max: 3600 }, denial: Bounds { min: 5, max: 1800 }, failure_ttl: 7 };

#[test]
fn gives_every_record_the_least_ttl_of_all_sections() {
    let response = Response::to("a.test", Rtype::A)
        .answer("a.test", 300, a())
        .answer("a.test", 200, a())
        .authority("test", 100, ns("ns.test"))
        .additional("ns.test", 60, a());
    assert_eq!(response.judged(), success(60));
}

#[test]
fn lifts_short_ttls_and_cuts_long_ones() {
    for (ttl, expected) in [(0, 5), (4, 5), (5, 5), (3600, 3600), (3601, 3600), (i32::MAX as u32, 3600)] {
        let response = Response::to("a.test", Rtype::A).answer("a.test", ttl, a());
        assert_eq!(response.judged(), success(expected), "{ttl}");
    }
}

#[test]
fn counts_a_ttl_with_its_top_bit_set_as_zero() {
    let limits = Limits { success: Bounds { min: 0, max: 3600 }, ..LIMITS };
    let response = Response::to("a.test", Rtype::A).answer("a.test", 1 << 31, a());
    assert_eq!(response.judged_by(&limits), Judgement { ttl: 0, kind: None });
}

#[test]
fn gives_the_upper_bound_the_last_word_where_a_corefile_says_less_than_the_lower() {
    let short = Bounds { min: 5, max: 3 };
    let limits = Limits { success: short, denial: short, failure_ttl: 7 };
    let data = Response::to("a.test", Rtype::A).answer("a.test", 300, a());
    assert_eq!(data.judged_by(&limits), success(3));
    let denied = Response::to("a.test", Rtype::A).rcode(Rcode::NXDOMAIN).authority("test", 300, soa(300));
    assert_eq!(denied.judged_by(&limits), denial(3));
    let refused = Response::to("a.test", Rtype::A).rcode(Rcode::REFUSED);
    assert_eq!(refused.judged_by(&limits), not_kept(3));
}

#[test]
fn keeps_a_denial_as_long_as_the_lesser_of_its_soas_ttl_and_minimum() {
    for rcode in [Rcode::NXDOMAIN, Rcode::NOERROR] {
        for (ttl, minimum, expected) in
            [(300, 60, 60), (60, 300, 60), (9999, 9999, 1800), (1, 1, 5), (60, 0, 5)]
        {
            let response = Response::to("a.test", Rtype::A).rcode(rcode).authority("test", ttl, soa(minimum));
            assert_eq!(response.judged(), denial(expected), "{rcode} {ttl} {minimum}");
        }
    }
}

#[test]
fn keeps_no_nxdomain_without_an_soa() {
    assert_eq!(Response::to("a.test", Rtype::A).rcode(Rcode::NXDOMAIN).judged(), not_kept(5));
    let with_ns =
        Response::to("a.test", Rtype::A).rcode(Rcode::NXDOMAIN).authority("test", 60, ns("ns.test"));
    assert_eq!(with_ns.judged().kind, None);
}

#[test]
fn keeps_an_empty_answer_for_five_seconds() {
    assert_eq!(Response::to("a.test", Rtype::A).judged(), success(5));
}

#[test]
fn keeps_a_whole_chain_of_cnames_in_whatever_order_it_stands() {
    let forward = Response::to("a.test", Rtype::A)
        .answer("a.test", 60, cname("b.test"))
        .answer("b.test", 50, cname("c.test"))
        .answer("c.test", 40, a());
    assert_eq!(forward.judged(), success(40));
    let backward = Response::to("A.Test", Rtype::A)
        .answer("c.TEST", 40, a())
        .answer("B.test", 50, cname("C.test"))
        .answer("a.test", 60, cname("b.Test"));
    assert_eq!(backward.judged(), success(40));
}

#[test]
fn keeps_no_half_of_a_chain() {
    let half = Response::to("a.test", Rtype::A).answer("a.test", 60, cname("b.test")).answer(
        "b.test",
        60,
        cname("c.test"),
    );
    assert_eq!(half.judged(), not_kept(60));
    let another_type =
        Response::to("a.test", Rtype::AAAA).answer("a.test", 60, cname("b.test")).answer("b.test", 60, a());
    assert_eq!(another_type.judged(), not_kept(60));
}

#[test]
fn keeps_a_chain_that_ends_in_no_data_as_a_denial() {
    let response = Response::to("a.test", Rtype::A).answer("a.test", 60, cname("b.test")).authority(
        "test",
        300,
        soa(30),
    );
    assert_eq!(response.judged(), denial(30));
}

#[test]
fn keeps_no_nxdomain_below_a_cname() {
    let response = Response::to("a.test", Rtype::A)
        .rcode(Rcode::NXDOMAIN)
        .answer("a.test", 60, cname("b.test"))
        .authority("test", 300, soa(30));
    assert_eq!(response.judged().kind, None);
}

#[test]
fn keeps_no_chain_that_loops_or_forks() {
    let to_itself = Response::to("a.test", Rtype::A).answer("a.test", 60, cname("a.test"));
    let round = Response::to("a.test", Rtype::A).answer("a.test", 60, cname("b.test")).answer(
        "b.test",
        60,
        cname("a.test"),
    );
    let fork = Response::to("a.test", Rtype::A)
        .answer("a.test", 60, cname("b.test"))
        .answer("a.test", 60, cname("c.test"))
        .answer("b.test", 60, a());
    for response in [to_itself, round, fork] {
        assert_eq!(response.judged(), not_kept(60));
    }
}

#[test]
fn follows_twelve_cnames_and_not_one_more() {
    let chain = |links: usize| {
        let link = |number: usize| format!("n{number}.test");
        let mut response = Response::to("n0.test", Rtype::A);
        for number in 0..links {
            response = response.answer(&link(number), 60, cname(&link(number + 1)));
        }
        response.answer(&link(links), 60, a())
    };
    assert_eq!(chain(12).judged(), success(60));
    assert_eq!(chain(13).judged(), not_kept(60));
}

#[test]
fn keeps_no_records_of_a_name_that_was_not_asked() {
    let foreign = Response::to("a.test", Rtype::A).answer("b.test", 60, a());
    assert_eq!(foreign.judged(), not_kept(60));
    let beside =
        Response::to("a.test", Rtype::A).answer("b.test", 60, cname("c.test")).answer("c.test", 60, a());
    assert_eq!(beside.judged(), not_kept(60));
}

#[test]
fn takes_any_record_of_the_name_for_an_answer_to_any_and_a_cname_to_cname() {
    let any = Response::to("a.test", Rtype::ANY).answer("a.test", 60, a());
    assert_eq!(any.judged(), success(60));
    let cname_asked = Response::to("a.test", Rtype::CNAME).answer("a.test", 60, cname("b.test"));
    assert_eq!(cname_asked.judged(), success(60));
}

#[test]
fn keeps_a_failure_for_the_time_of_failures_and_not_at_all_where_that_is_zero() {
    let off = Limits { failure_ttl: 0, ..LIMITS };
    for rcode in [Rcode::SERVFAIL, Rcode::NOTIMP] {
        let response = || Response::to("a.test", Rtype::A).rcode(rcode);
        assert_eq!(response().judged(), denial(7), "{rcode}");
        assert_eq!(response().judged_by(&off), not_kept(0), "{rcode}");
    }
}

#[test]
fn keeps_no_other_error() {
    for rcode in [Rcode::FORMERR, Rcode::REFUSED, Rcode::YXDOMAIN, Rcode::NOTAUTH] {
        let response = Response::to("a.test", Rtype::A).rcode(rcode).authority("test", 300, soa(300));
        assert_eq!(response.judged().kind, None, "{rcode}");
    }
}

#[test]
fn keeps_nothing_that_was_truncated() {
    let data = Response::to("a.test", Rtype::A).answer("a.test", 60, a());
    let denied = Response::to("a.test", Rtype::A).rcode(Rcode::NXDOMAIN).authority("test", 300, soa(30));
    let failed = Response::to("a.test", Rtype::A).rcode(Rcode::SERVFAIL);
    for response in [data, denied, failed] {
        assert!(response.judged().kind.is_some());
        assert_eq!(response.truncated().judged().kind, None);
    }
}

#[test]
fn keeps_no_zone_transfer() {
    for rtype in [Rtype::AXFR, Rtype::IXFR] {
        let response = Response::to("test", rtype).answer("test", 60, soa(60)).answer("test", 60, soa(60));
        assert_eq!(response.judged().kind, None, "{rtype}");
    }
}

#[test]
fn keeps_a_delegation_for_five_seconds() {
    let response = Response::to("a.test", Rtype::A).authority("test", 9999, ns("ns.test"));
    assert_eq!(response.judged(), success(5));
}

fn success(ttl: u32) -> Judgement {
    Judgement { ttl, kind: Some(Kind::Success) }
}

fn denial(ttl: u32) -> Judgement {
    Judgement { ttl, kind: Some(Kind::Denial) }
}

fn not_kept(ttl: u32) -> Judgement {
    Judgement { ttl, kind: None }
}

type Data = AllRecordData<Vec<u8>, Name<Vec<u8>>>;
type Records = Vec<(Name<Vec<u8>>, Ttl, Data)>;

fn a() -> Data {
    A::from_octets(192, 0, 2, 1).into()
}

fn cname(target: &str) -> Data {
    Cname::new(name(target)).into()
}

fn ns(target: &str) -> Data {
    Ns::new(name(target)).into()
}

fn soa(minimum: u32) -> Data {
    let hour = Ttl::from_secs(3600);
    Soa::new(name("ns.test"), name("mail.test"), 1.into(), hour, hour, hour, Ttl::from_secs(minimum)).into()
}

fn name(text: &str) -> Name<Vec<u8>> {
    text.parse().unwrap()
}

/// A response that is being made.
struct Response {
    question: (Name<Vec<u8>>, Rtype),
    rcode: Rcode,
    truncated: bool,
    sections: [Records; 3],
}

impl Response {
    fn to(asked: &str, rtype: Rtype) -> Self {
        Self {
            question: (name(asked), rtype),
            rcode: Rcode::NOERROR,
            truncated: false,
            sections: Default::default(),
        }
    }

    fn rcode(self, rcode: Rcode) -> Self {
        Self { rcode, ..self }
    }

    fn truncated(self) -> Self {
        Self { truncated: true, ..self }
    }

    fn answer(self, owner: &str, ttl: u32, data: Data) -> Self {
        self.record(0, owner, ttl, data)
    }

    fn authority(self, owner: &str, ttl: u32, data: Data) -> Self {
        self.record(1, owner, ttl, data)
    }

    fn additional(self, owner: &str, ttl: u32, data: Data) -> Self {
        self.record(2, owner, ttl, data)
    }

    fn record(mut self, section: usize, owner: &str, ttl: u32, data: Data) -> Self {
        self.sections[section].push((name(owner), Ttl::from_secs(ttl), data));
        self
    }

    fn judged(&self) -> Judgement {
        self.judged_by(&LIMITS)
    }

    fn judged_by(&self, limits: &Limits) -> Judgement {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_qr(true);
        builder.header_mut().set_rcode(self.rcode);
        builder.header_mut().set_tc(self.truncated);
        let mut builder = builder.question();
        builder.push((&self.question.0, self.question.1)).unwrap();
        let [answer, authority, additional] = &self.sections;
        let mut builder = builder.answer();
        answer.iter().for_each(|record| builder.push(record.clone()).unwrap());
        let mut builder = builder.authority();
        authority.iter().for_each(|record| builder.push(record.clone()).unwrap());
        let mut builder = builder.additional();
        additional.iter().for_each(|record| builder.push(record.clone()).unwrap());
        let packet = builder.finish();
        judge(&packet, &Reply::parse(&packet).unwrap(), limits)
    }
}
