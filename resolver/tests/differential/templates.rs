//! Templates: the records that they make, and what their expressions come to (each in a template of its own, as a text).

use crate::question::{A, AAAA, DNSSEC, EDNS, HINFO, MX, OVER_V6, PLAIN, Question, TCP, TXT, all};

pub(crate) const RECORDS: &str = r#"hex.example {
 bind BIND
 template IN AAAA hex.example {
  match ^(?P<x>[0-9a-f]{4})[.]
  answer "{{ .Name }} 60 AAAA 2001:db8::{{ .Group.x }}"
  answer "{{ .Name }} 60 AAAA 2001:db8::{{ parseInt .Group.x 16 16 }}"
  additional "extra.example. 30 IN MX {{ parseInt .Group.x 16 16 }} mail.example."
  ederror 21 "made here"
 }
}
. {
 bind BIND
 template IN A ip.test {
  match ^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)-(?P<c>[0-9]+)-(?P<d>[0-9]+)[.]ip[.]test[.]$
  answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
  fallthrough
 }
 template ANY ANY nx.example {
  rcode NXDOMAIN
  authority "nx.example. 60 {{ .Class }} SOA ns.nx.example. me.nx.example. (1 60 60 60 60)"
 }
 template IN TXT txt.example {
  match ^(\w+)[.](\w+)[.]txt[.]example
  answer "{{ .Name }} 60 IN TXT \"{{ index .Match 1 }} {{ index .Group `2` | printf `%q` | len }} {{ .Type }}\" {{ .Zone }}"
  answer "{{ .Name }} 60 IN TXT {{ if eq (index .Match 1) `yes` }}\"is yes\"{{ else }}no{{ end }}"
 }
 template IN A cname.example {
  answer "{{ .Name }} 60 IN CNAME four.test."
 }
 template IN SRV MX {
  match never
 }
 template IN MX mx.example {
  answer "{{ .Name }} 60 MX 10 m.{{ .Zone }}"
  answer "{{ .Name }} 60 MX 20 {{ .Name }}"
 }
 template IN A fails.example {
  answer "{{ .Name }} 60 IN A {{ index .Match 3 }}"
 }
 template IN A broken.example {
  answer "{{ .Name }} 60 IN A not.an.address"
 }
 template IN TXT message.example {
  answer "{{ .Name }} 60 IN TXT \"{{ .Message.Id }} {{ .Message.RecursionDesired }} {{ .Message.CheckingDisabled }}\""
  answer "{{ .Name }} 60 IN TXT \"{{ (index .Message.Question 0).Qtype }} {{ len .Message.Question }} {{ .Message.Response }}\""
 }
 template IN HINFO refuses.example {
  rcode REFUSED
 }
 cache
 forward . 127.0.0.53
}
"#;

pub(crate) fn records() -> Vec<Question> {
    all(
        &[
            "ip-10-95-12-8.ip.test.",
            "IP-1-2-3-4.ip.test.",
            "other.ip.test.",
            "a.nx.example.",
            "yes.b.txt.example.",
            "no.longer.txt.example.",
            "x.cname.example.",
            "00ff.hex.example.",
            "x.message.example.",
            "zz.hex.example.",
            "x.mx.example.",
            "x.fails.example.",
            "x.broken.example.",
            "refuses.example.",
            "a.test.",
        ],
        &[A, AAAA, TXT, MX, HINFO],
        &[PLAIN, TCP, EDNS, DNSSEC],
    )
}

macro_rules! expressions {
    ($($name:literal $text:literal)+) => {
        pub(crate) const EXPRESSIONS: &str = concat!(
            ". {\n bind BIND\n",
            $(
                " template IN TXT ", $name, ".expr.test {\n  match ^n(?P<n>[0-9]+)[.]\n  var x \"", $text,
                "\"\n  answer \"{{ .Name }} 60 IN TXT \\\"{{ .Var.x }}\\\"\"\n }\n",
            )+
            " forward . 127.0.0.53\n}\n"
        );

        pub(crate) fn expressions() -> Vec<Question> {
            all(&[$(concat!("n10.", $name, ".expr.test.")),+], &[TXT], &[PLAIN, TCP, EDNS, DNSSEC, OVER_V6])
        }
    };
}

expressions! {
    "a1" "1 + 2 * 3 - 4 % 3"
    "a2" "7 / 2"
    "a3" "6 / 2"
    "a4" "2 ** 3 ** 2"
    "a5" "0x1F + 0b11 + 0o7 + 1_000"
    "a6" "(1 + 2) * -3"
    "a7" "1e21 + 0.5"
    "a8" "0.00001"
    "a9" "1.5 * 2"
    "a10" "-7 % 3"
    "b1" "group('n') + group(1) + group(9) + group('x')"
    "b2" "int(group('n')) > 9 and not false"
    "b3" "name() + ' ' + type() + ' ' + class() + ' ' + proto()"
    "b4" "client_ip() + ' ' + server_port()"
    "b5" "[opcode(), size(), bufsize()]"
    "b6" "do() ? 'yes' : 'no'"
    "b7" "metadata('a/b') == ''"
    "b8" "incidr(client_ip(), '127.0.0.0/8')"
    "b9" "any(['11.0.0.0/8', '127.0.0.0/8', 'fd00::/8'], incidr(client_ip(), #))"
    "c1" "all([1, 2], {# > 0})"
    "c2" "if size() > 5 { 'a' } else { 'b' }"
    "c3" "let x = 2; let y = x * 3; y + x"
    "c4" "type() in ['TXT', 'A']"
    "c5" "type() not in ['TXT', 'A']"
    "c6" "name() contains 'expr' and name() startsWith 'n' and name() endsWith '.'"
    "c7" "name() not matches '^x'"
    "c8" "replace(group('n'), '1', 'a') | upper()"
    "c9" "split(name(), '.')[1:] | join('/')"
    "c10" "split(name(), '.')[-2]"
    "d1" "name()[1:3]"
    "d2" "map([1, 2, 3], # * 2)"
    "d3" "filter(1..5, # % 2 == 0)"
    "d4" "count([1, 2, 3], # > 1)"
    "d5" "find([1, 2, 3], # > 1)"
    "d6" "findIndex(['a', 'b'], # == 'b')"
    "d7" "one([1, 2], # == 1) and none([1, 2], # == 3)"
    "d8" "map(['a', 'b'], #index)"
    "d9" "any([[1], [2]], any(#, # == 2))"
    "d10" "find([1], # > 5)"
    "e1" "trim('  a ') + trimPrefix('ab', 'a') + trimSuffix('ab', 'b') + lower('A')"
    "e2" "repeat('ab', 2) + string(1.5) + string(3) + string(true)"
    "e3" "indexOf('abc', 'c') + lastIndexOf('abca', 'a')"
    "e4" "hasPrefix('ab', 'a') && hasSuffix('ab', 'b') || false"
    "e5" "max(1, 3, 2) + min(4, 2)"
    "e6" "abs(-3) + int('12') + int(2.9)"
    "e7" "ceil(1.2) + floor(1.8) + round(1.5)"
    "e8" "float('1.5')"
    "e9" "[first([1, 2]), last([1, 2])]"
    "e10" "take([1, 2, 3], 2)"
    "f1" "reverse(uniq([1, 2, 1]))"
    "f2" "concat([1], [2], ['a'])"
    "f3" "sort(['b', 'a'])"
    "f4" "bitand(6, 3) + bitor(4, 1) + bitxor(5, 1) + bitshl(1, 3) + bitshr(8, 2)"
    "f5" "nil ?? 'x'"
    "f6" "1 < 2 and 1 < 2 < 3"
    "f7" "'a' < 'b' and 1 == 1.0 and [1, 2] == [1, 2]"
    "f8" "splitAfter('a.b.c', '.')"
    "f9" "split('abc', '')"
    "f10" "split('a.b.c', '.', 2)"
    "g1" "replace('aaa', 'a', 'b', 2)"
    "g2" "max([3, 1]) + len('abc') + len([1, 2])"
    "g3" "int('x')"
    "g4" "incidr('notanip', '10.0.0.0/8')"
    "g5" "[1][3]"
    "g6" "true ? 1 : 2"
    "g7" "'x' + 'y'; 'z'"
    "g8" "trim('xxaxx', 'x')"
    "g9" "[1, 2, 3][1:2]"
    "g10" "5..3"
}

/// Conditions, one after the other, with and without a way on.
pub(crate) const CONDITIONS: &str = r#". {
 bind BIND
 template IN A cond.test {
  match ^n(?P<n>[0-9]+)[.]
  var n int(group('n'))
  var double n * 2
  expr n > 1
  expr double < 100 && name() != 'n7.cond.test.'
  answer "{{ .Name }} 60 IN A 192.0.2.{{ .Var.double }}"
  fallthrough even.cond.test
 }
 template IN A cond.test {
  expr 1
  answer "{{ .Name }} 60 IN A 192.0.2.1"
  fallthrough
 }
 template ANY A private.test {
  match ^ip-(?P<ip>[0-9-]+)[.]private[.]test[.]$
  var ip replace(group('ip'), '-', '.')
  expr "any(['10.0.0.0/8', '192.168.0.0/16'], incidr(ip, #))"
  answer "{{ .Name }} 60 IN A {{ .Var.ip }}"
  fallthrough
 }
 forward . 127.0.0.53
}
"#;

pub(crate) fn conditional() -> Vec<Question> {
    let names = [
        "n1.cond.test.",
        "n2.cond.test.",
        "n7.cond.test.",
        "n50.cond.test.",
        "n1.even.cond.test.",
        "N20.even.cond.test.",
        "other.cond.test.",
        "ip-10-1-2-3.private.test.",
        "ip-11-1-2-3.private.test.",
        "ip-192-168-0-1.private.test.",
        "ip-10-1.private.test.",
        "a.private.test.",
    ];
    all(&names, &[A, TXT], &[PLAIN, TCP, EDNS, DNSSEC])
}
