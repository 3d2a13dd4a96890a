//! The directives around the cache: arguments, options, defaults and bounds, as CoreDNS 1.15.0 has them.

use std::time::Duration;

use crate::world::{World, block, findings, messages};
use nodestub_corefile::config::answering::{Action, Chaos, Dns64, LoadBalance, Local, Network, Policy};
use nodestub_corefile::config::rewriting::{
    AnswerRule, EdnsAction, EdnsData, EdnsOption, EdnsRule, NamePattern, NameRule, RewriteRule, Rule,
};

#[track_caller]
fn rejects(directives: &[&str]) {
    for directive in directives {
        let found = messages(&format!("test {{\n{directive}\n}}"));
        assert_eq!(found.len(), 1, "{directive}: {found:?}");
    }
}

#[track_caller]
fn finding(directive: &str) -> String {
    let found = findings(&World::new(), &format!("test {{\n{directive}\n}}"));
    assert_eq!(found.len(), 1, "{directive}: {found:?}");
    found[0].trim_start_matches("/etc/Corefile:").to_owned()
}

#[track_caller]
fn rule(text: &str) -> RewriteRule {
    block(text).rewrite.into_iter().next().unwrap()
}

fn network(address: &str, length: u8) -> Network {
    Network { address: address.parse().unwrap(), length }
}

#[test]
fn rewrite_reads_names_with_and_without_a_way_to_match() {
    let exact = NameRule {
        from: NamePattern::Exact("a.test.".into()),
        to: "b.test.".into(),
        auto: true,
        answers: vec![],
    };
    for text in
        ["rewrite name A.test b.test", "rewrite name exact a.test. B.TEST", "rewrite stop name a.test b.test"]
    {
        assert_eq!(rule(text), RewriteRule { goes_on: false, rule: Rule::Name(exact.clone()) }, "{text}");
    }
    let Rule::Name(suffix) = rule("rewrite continue name suffix .a.test .b.test answer auto").rule else {
        panic!()
    };
    assert_eq!(
        (suffix.from, suffix.to.as_str(), suffix.auto),
        (NamePattern::Suffix(".a.test.".into()), ".b.test.", true)
    );
    let Rule::Name(prefix) = rule("rewrite name prefix a b").rule else { panic!() };
    assert_eq!(
        (prefix.from, prefix.to.as_str(), prefix.auto),
        (NamePattern::Prefix("a.".into()), "b.", false)
    );
    let braces =
        "rewrite stop {\n name regex (.*)\\.a\\.test {1}.b.test\n answer name (.*)\\.b {1}.a value x y\n}";
    let Rule::Name(regex) = rule(braces).rule else { panic!() };
    let [AnswerRule { value: false, to, .. }, AnswerRule { value: true, .. }] = regex.answers.as_slice()
    else {
        panic!("{regex:?}")
    };
    assert_eq!((regex.to.as_str(), to.as_str()), ("{1}.b.test.", "{1}.a."));
}

#[test]
fn rewrite_reads_the_other_fields() {
    for (text, expected) in [
        ("rewrite type any hinfo", Rule::Type(255, 13)),
        ("rewrite class CH IN", Rule::Class(3, 1)),
        ("rewrite ttl a.test 30", Rule::Ttl(NamePattern::Exact("a.test.".into()), 30, 30)),
        ("rewrite ttl suffix .test 5-60", Rule::Ttl(NamePattern::Suffix(".test.".into()), 5, 60)),
        ("rewrite ttl prefix a -60", Rule::Ttl(NamePattern::Prefix("a.".into()), 0, 60)),
        ("rewrite ttl substring a 60-", Rule::Ttl(NamePattern::Substring("a.".into()), 60, 2_147_483_647)),
        ("rewrite rcode a.test 2 nxdomain", Rule::Rcode(NamePattern::Exact("a.test.".into()), 2, 3)),
        (
            "rewrite cname exact A.test b.test",
            Rule::Cname(NamePattern::Exact("a.test.".into()), "b.test.".into()),
        ),
        (
            "rewrite cname suffix .a.test. .b.",
            Rule::Cname(NamePattern::Suffix(".a.test.".into()), ".b.".into()),
        ),
    ] {
        assert_eq!(rule(text).rule, expected, "{text}");
    }
    for (text, action, option) in [
        (
            "local set 0xffee 0x61626364",
            EdnsAction::Set,
            EdnsOption::Local(0xffee, EdnsData::Bytes(b"abcd".into())),
        ),
        (
            "local append 65000 abcd revert",
            EdnsAction::Append,
            EdnsOption::Local(65_000, EdnsData::Bytes(b"abcd".into())),
        ),
        (
            "local replace 0xffee {client_ip}",
            EdnsAction::Replace,
            EdnsOption::Local(0xffee, EdnsData::ClientIp),
        ),
        ("local unset 0xffee", EdnsAction::Unset, EdnsOption::Local(0xffee, EdnsData::Bytes(vec![]))),
        ("nsid set", EdnsAction::Set, EdnsOption::Nsid),
        ("subnet set 24 56", EdnsAction::Set, EdnsOption::Subnet(24, 56)),
        ("subnet unset", EdnsAction::Unset, EdnsOption::Subnet(0, 0)),
    ] {
        let expected = Rule::Edns(EdnsRule { action, option });
        assert_eq!(rule(&format!("rewrite edns0 {text}")).rule, expected, "{text}");
    }
}

#[test]
fn rewrite_rejects_what_coredns_rejects_and_what_is_not_supported() {
    rejects(&[
        "rewrite",
        "rewrite stop",
        "rewrite answer name a b",
        "rewrite x a b",
        "rewrite name a.test",
        "rewrite name fuzzy a.test b.test",
        "rewrite name regex ( b.test",
        "rewrite name regex (?=a) b.test",
        "rewrite name regex (a)\\.test {2}.{1}",
        "rewrite name regex a b extra auto",
        "rewrite name regex a b answer",
        "rewrite name regex a b answer name x",
        "rewrite name regex (a) {1} answer nothing",
        "rewrite name regex (a) {1} answer auto answer name a b",
        "rewrite name exact a b metadata",
        "rewrite name regex (a) {2} metadata",
        "rewrite name regex (a) {x} metadata",
        "rewrite name regex (a) {1 metadata",
        "rewrite name regex (a) x}{1} metadata",
        "rewrite name regex (a) {1} metadata extra",
        "rewrite name a b {\n answer auto\n}",
        "rewrite type A",
        "rewrite type A XYZ",
        "rewrite class IN XX",
        "rewrite ttl a",
        "rewrite ttl a x",
        "rewrite ttl a -",
        "rewrite ttl a 60-5",
        "rewrite ttl fuzzy a 5",
        "rewrite rcode a 2 x",
        "rewrite rcode a 24 3",
        "rewrite cname a",
        "rewrite edns0 local set 0xffee",
        "rewrite edns0 local set 70000 a",
        "rewrite edns0 local set 0xffee 0xabc",
        "rewrite edns0 local set 0xffee {metadata}",
        "rewrite edns0 local do 0xffee a",
        "rewrite edns0 cookie set a b",
        "rewrite edns0 subnet set 33 56",
        "rewrite edns0 subnet set 24 129",
        "rewrite edns0 nsid set a",
    ]);
    assert_eq!(
        finding("rewrite name regex (a)\\.test {2}.{1}"),
        "2:20 `{2}.{1}` uses 2 groups, and the expression has 1"
    );
}

#[test]
fn rewrite_takes_metadata_and_leaves_out_what_nothing_sets() {
    let Rule::Name(found) = rule("rewrite name regex (a)\\.test {1}.B.test metadata answer auto").rule else {
        panic!()
    };
    assert_eq!((found.to.as_str(), found.auto), ("{1}.b.test.", true));
    for text in [
        "rewrite name regex (a) {1}.{view/name}.test metadata",
        "rewrite edns0 local set 0xffee {forward/upstream}",
    ] {
        assert!(finding(text).contains("this rule never applies"), "{text}");
        assert_eq!(block(text).rewrite, [], "{text}");
    }
}

#[test]
fn what_coredns_takes_twice_is_taken_twice_and_said() {
    for name in ["any", "bufsize", "chaos", "minimal", "whoami"] {
        assert!(finding(&format!("{name}\n{name}")).ends_with("only the first counts"), "{name}");
    }
    assert_eq!(block("bufsize 512\nbufsize 4096").bufsize, Some(512));
    for name in ["autopath @kubernetes", "dns64", "loadbalance", "local"] {
        assert!(finding(&format!("{name}\n{name}")).ends_with("the later one says counts"), "{name}");
    }
    let twice = "loadbalance {\n prefer 10.0.0.0/8\n}\nloadbalance {\n prefer fd00::/8\n}";
    assert_eq!(block(twice).load_balance.unwrap().prefer, [network("10.0.0.0", 8), network("fd00::", 8)]);
    let twice = "dns64 {\n allow_ipv4\n}\ndns64 2001:db8::/32";
    let found = block(twice).dns64.unwrap();
    assert_eq!((found.allow_ipv4, found.length), (true, 32));
    let off = "local {\n localhost_prefix off\n}";
    assert_eq!(block(&format!("{off}\nlocal")).local, Some(Local { localhost_prefix: false }));
    let found = block("timeouts {\n read 5s\n idle 7s\n}\ntimeouts {\n idle 9s\n}").timeouts;
    assert_eq!((found.read, found.idle), (Some(Duration::from_secs(5)), Some(Duration::from_secs(9))));
}

#[test]
fn acl_reads_policies_with_types_and_networks() {
    let found = block(
        "acl a.test {\n allow net 10.0.0.0/8 192.0.2.7\n BLOCK type A AAAA net ::1\n}\nacl {\n drop net *\n}",
    );
    let [first, second] = found.acl.as_slice() else { panic!() };
    assert_eq!(first.zones, ["a.test".parse().unwrap()]);
    let allow = Policy {
        action: Action::Allow,
        types: vec![],
        networks: vec![network("10.0.0.0", 8), network("192.0.2.7", 32)],
    };
    let blocked = Policy { action: Action::Block, types: vec![1, 28], networks: vec![network("::1", 128)] };
    assert_eq!(first.policies, [allow, blocked]);
    assert_eq!(second.zones, found.zones.iter().map(|key| key.zone.clone()).collect::<Vec<_>>());
    assert_eq!(second.policies, [Policy { action: Action::Drop, types: vec![], networks: vec![] }]);
    rejects(&[
        "acl {\n refuse\n}",
        "acl {\n block 10.0.0.0/8\n}",
        "acl {\n block net\n}",
        "acl {\n block type a\n}",
        "acl {\n block net 10.0.0.0/33\n}",
        "acl a..b {\n block\n}",
    ]);
}

#[test]
fn loadbalance_and_dns64_have_the_defaults_of_coredns() {
    let plain = LoadBalance { weighted: None, prefer: vec![] };
    assert_eq!(block("loadbalance").load_balance, Some(plain.clone()));
    assert_eq!(block("loadbalance round_robin").load_balance, Some(plain));
    let found =
        block("loadbalance weighted /w {\n reload 5s\n prefer 10.0.0.0/8 fd00::/8\n}").load_balance.unwrap();
    assert_eq!(found.weighted, Some(("/w".into(), Duration::from_secs(5))));
    assert_eq!(found.prefer, [network("10.0.0.0", 8), network("fd00::", 8)]);
    rejects(&[
        "loadbalance random",
        "loadbalance weighted",
        "loadbalance round_robin 5",
        "loadbalance {\n prefer 10.0.0.0\n}",
        "loadbalance {\n reload 5s\n}",
    ]);
    let default =
        Dns64 { prefix: "64:ff9b::".parse().unwrap(), length: 96, translate_all: false, allow_ipv4: false };
    assert_eq!(block("dns64").dns64, Some(default.clone()));
    let found = block("dns64 {\n prefix 2001:db8::/32\n translate_all\n allow_ipv4\n}").dns64;
    let prefix = "2001:db8::".parse().unwrap();
    assert_eq!(found, Some(Dns64 { prefix, length: 32, translate_all: true, allow_ipv4: true }));
    rejects(&[
        "dns64 64:ff9b::/95",
        "dns64 10.0.0.0/8",
        "dns64 a b",
        "dns64 {\n prefix\n}",
        "dns64 {\n off\n}",
    ]);
}

#[test]
fn the_short_ones_read_what_coredns_reads() {
    let found = block("any\nminimal\nwhoami\nlocal\nbufsize\nnsid\nchaos");
    assert!(found.any && found.minimal && found.whoami);
    assert_eq!((found.bufsize, found.nsid), (Some(1232), Some(None)));
    assert_eq!(found.local, Some(Local { localhost_prefix: true }));
    assert_eq!(found.chaos, Some(Chaos { version: None, authors: vec![] }));
    let found = block("local {\n localhost_prefix off\n}\nbufsize 4096\nnsid a b\nchaos v1 zoe ann zoe");
    assert_eq!((found.bufsize, found.nsid), (Some(4096), Some(Some("a b".into()))));
    assert_eq!(found.local, Some(Local { localhost_prefix: false }));
    assert_eq!(
        found.chaos,
        Some(Chaos { version: Some("v1".into()), authors: vec!["ann".into(), "zoe".into()] })
    );
    rejects(&[
        "any x",
        "any {\n x\n}",
        "minimal x",
        "whoami x",
        "local x",
        "local {\n localhost_prefix maybe\n}",
        "local {\n x\n}",
        "bufsize 511",
        "bufsize 4097",
        "bufsize x",
        "bufsize 512 512",
        "chaos {\n x\n}",
    ]);
}

#[test]
fn template_reads_its_options_and_shows_the_place_inside_a_record() {
    let found = block(
        "template IN A a.test {\n match ^x \\.y\n answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n rcode NXDOMAIN\n \
         ederror 21 why\n fallthrough b.test\n}\ntemplate ANY ANY {\n}",
    );
    let [first, second] = found.template.as_slice() else { panic!() };
    assert_eq!(
        (first.qclass, first.qtype, first.rcode, first.matches.len(), first.answer.len()),
        (1, 1, 3, 2, 1)
    );
    assert_eq!(first.extended_error, Some((21, "why".into())));
    assert_eq!(first.fallthrough, Some(vec!["b.test".parse().unwrap()]));
    assert_eq!((second.qclass, second.qtype, second.matches[0].as_str()), (255, 255, ".*"));
    rejects(&[
        "template",
        "template IN",
        "template XX A",
        "template IN XYZ",
        "template IN A {\n match\n}",
        "template IN A {\n match (\n}",
        "template IN A {\n answer\n}",
        "template IN A {\n rcode X\n}",
        "template IN A {\n ederror x\n}",
        "template IN A {\n ederror 1 2 3\n}",
        "template IN A {\n var x\n}",
        "template IN A {\n var 1x 1\n}",
        "template IN A {\n var len 1\n}",
        "template IN A {\n var x 1\n var x 2\n}",
        "template IN A {\n var x y + 1\n var y 1\n}",
        "template IN A {\n expr\n}",
        "template IN A {\n expr nosuch()\n}",
        "template IN A {\n nothing\n}",
    ]);
    assert_eq!(
        finding("template IN A {\n answer \"{{ .Nmae }} 60 IN A 192.0.2.1\"\n}"),
        "3:13 there is no field `.Nmae`"
    );
    let found = block(
        "template IN A {\n var x int(group('n'))\n var y x * 2\n expr y > 1\n expr \"name() != ''\"\n}",
    );
    let [template] = found.template.as_slice() else { panic!() };
    assert_eq!((template.variables.len(), template.conditions.len()), (2, 2));
    assert_eq!((template.variables[1].0.as_str(), template.variables[1].1.text()), ("y", "x * 2"));
    assert_eq!(finding("template IN A {\n expr name() + \"z + 1\"\n}"), "3:17 there is no variable `z`");
}
