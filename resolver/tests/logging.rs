//! The lines that `log` and `errors` write, as an operator reads them from the real binary.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::SocketAddr;

use common::{SERVER, Scene, patient, patient_tcp, socket};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::{Options, Signal};

/// A Corefile of names that need nobody else, with these directives.
fn hosts(directives: &str) -> String {
    format!(
        "test {{\n bind 127.0.0.1\n hosts {{\n  192.0.2.1 a.test\n  192.0.2.2 b.test\n  reload 0\n }}\n cache\n\
         {directives}}}\n"
    )
}

#[test]
fn log_writes_a_line_for_each_query_of_its_names() {
    if !can_make_namespaces("log_writes_a_line_for_each_query_of_its_names") {
        return;
    }
    let scene = Scene::start(&hosts("log a.test absent.test\n"));
    let from: SocketAddr = socket("127.0.0.1:40404");
    let options = Options { id: Some(4711), from: Some(from), ..patient() };
    scene.ask_with(SERVER, "A.test", "A", &options);
    let first = scene.wait_for("[INFO]");
    let expected = r#"[INFO] 127.0.0.1:40404 - 4711 "A IN a.test. udp 24 false 512" NOERROR qr,aa,rd 46 0."#;
    assert!(first.starts_with(expected), "{first}");
    assert!(first.ends_with('s'), "{first}");
    // A hit, over TCP, with DO; and a name that is not logged.
    scene.ask("b.test", "A");
    scene.ask_with(SERVER, "a.test", "A", &Options { edns: Some(4096), dnssec_ok: true, ..patient_tcp() });
    let second = scene.wait_for(" tcp ");
    assert!(second.contains(r#""A IN a.test. tcp 35 true 65535" NOERROR"#), "{second}");
    scene.ask("a.test", "A");
    scene.ask("absent.test", "A");
    let last = scene.wait_for("absent.test");
    assert!(last.contains("SERVFAIL"), "{last}");
    let logged = scene.daemon.lines().into_iter().filter(|line| line.contains("[INFO]")).collect::<Vec<_>>();
    assert_eq!(logged.len(), 4, "{logged:#?}");
}

#[test]
fn log_takes_formats_and_classes_name_by_name() {
    if !can_make_namespaces("log_takes_formats_and_classes_name_by_name") {
        return;
    }
    let log = "log a.test \"<{type} {/log/class} {/log/type} {>opcode} {local} {/x/y} { {rsize} }>\"\nlog \
               no.test {combined} {\n class denial\n class error\n}\nlog . \"{name} {rcode}\" {\n class success\n}\n";
    let scene = Scene::start(&hosts(log));
    for (name, qtype) in
        [("a.test", "A"), ("a.test", "TXT"), ("absent.test", "A"), ("x.no.test", "A"), ("b.test", "A")]
    {
        scene.ask(name, qtype);
    }
    // 12 for the header, 8 + 4 for the question, 8 + 10 + 4 for the record.
    scene.wait_for("[INFO] <A success NOERROR 0 127.0.0.1 - { 46 }>");
    scene.wait_for("[INFO] b.test. NOERROR");
    let failed = scene.wait_for("x.no.test");
    assert!(failed.contains("SERVFAIL") && failed.ends_with("s \"0\""), "{failed}");
    let said = scene.daemon.lines().into_iter().filter(|line| line.contains("[INFO]")).collect::<Vec<_>>();
    assert_eq!(said.len(), 4, "{said:#?}");
    assert!(!said.iter().any(|line| line.contains("absent")), "{said:#?}");
}

#[test]
fn errors_that_look_alike_are_one_line_when_the_corefile_goes() {
    if !can_make_namespaces("errors_that_look_alike_are_one_line_when_the_corefile_goes") {
        return;
    }
    // Nobody listens there.
    let corefile = ". {\n bind 127.0.0.1\n errors {\n  consolidate 1h \"127.0.0.9:53\" warning show_first\n }\n \
                    forward . 127.0.0.9\n}\n";
    let mut scene = Scene::start(corefile);
    for name in ["a.test", "b.test", "c.test"] {
        assert_eq!(scene.rcode(name, "A"), "SERVFAIL");
    }
    let first = scene.wait_for("errors: 2 a.test. A: ");
    assert!(first.contains("WARN") && first.contains("127.0.0.9:53"), "{first}");
    scene.write_corefile(". {\n bind 127.0.0.1\n whoami\n}\n");
    scene.daemon.signal(Signal::HUP).unwrap();
    let line = scene.wait_for("3 errors like '127.0.0.9:53' occurred in last 3600s");
    assert!(line.contains("WARN"), "{line}");
    assert!(!scene.daemon.lines().iter().any(|line| line.contains("b.test. A")), "said apart as well");
}

#[test]
fn a_gathering_of_errors_ends_with_its_time() {
    if !can_make_namespaces("a_gathering_of_errors_ends_with_its_time") {
        return;
    }
    let corefile =
        ". {\n bind 127.0.0.1\n errors {\n  consolidate 1s 127.0.0.9:53\n }\n forward . 127.0.0.9\n}\n";
    let scene = Scene::start(corefile);
    assert_eq!(scene.rcode("a.test", "A"), "SERVFAIL");
    let line = scene.wait_for("1 errors like '127.0.0.9:53' occurred in last 1s");
    assert!(line.contains("ERROR"), "{line}");
}

#[test]
fn errors_says_which_question_got_no_answer_and_why() {
    if !can_make_namespaces("errors_says_which_question_got_no_answer_and_why") {
        return;
    }
    // Nobody listens there.
    let corefile = ". {\n bind 127.0.0.1\n errors\n forward . 127.0.0.9\n}\n";
    let scene = Scene::start(corefile);
    assert_eq!(scene.rcode("a.test", "A"), "SERVFAIL");
    let line = scene.wait_for("errors:");
    assert!(line.contains("a.test."), "{line}");
    // Not a timeout: the kernel says at once that nobody listens.
    assert!(line.contains("->127.0.0.9:53: read: connection refused"), "{line}");
}
