//! Over the daemon's life: certificates that are renewed, Corefiles that change, another process that takes over, the end.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nodestub_lab::{Daemon, Signal, ask};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secure::Pair;

use crate::common::{HANG, SERVER, binary, patient, patient_tcp, resolver};
use crate::secure;
use crate::stage::{PATIENT, RIGHT, Served, Stage, TLS, asked, bare, connect, upstream};

/// One block; connections may be silent for longer than anything here takes.
const BY_TLS: &str = "tls://. {
 bind 127.0.0.1
 tls FOLDER/server.crt FOLDER/server.key
 forward . 127.0.0.2
 timeouts {
  read 4m
  idle 4m
 }
}
";

/// Puts a pair into the folder as a mounted Secret's change does: files are links into `..data`, which is swapped.
fn mount(stage: &Stage, version: &str, pair: &Pair) {
    let folder = stage.path(&format!("secret/..{version}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("tls.crt"), &pair.certificate).unwrap();
    std::fs::write(folder.join("tls.key"), &pair.key).unwrap();
    symlink(format!("..{version}"), stage.path("secret/..new")).unwrap();
    std::fs::rename(stage.path("secret/..new"), stage.path("secret/..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        drop(symlink(format!("..data/{name}"), stage.path(&format!("secret/{name}"))));
    }
}

fn der(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
}

#[test]
fn a_renewed_secret_is_served_without_a_restart_and_a_broken_one_is_not() {
    let test = "a_renewed_secret_is_served_without_a_restart_and_a_broken_one_is_not";
    let Some(stage) = Stage::new(test) else { return };
    let [first, second, third, fourth] = [(); 4].map(|()| stage.authority.sign("dns.test"));
    mount(&stage, "1", &first);
    let scene = stage.serve_text(
        "tls://. {\n bind 127.0.0.1\n tls FOLDER/secret/tls.crt FOLDER/secret/tls.key\n timeouts {\n idle 4m\n }\n forward . 127.0.0.2\n \
         prometheus 127.0.0.1:9153\n}\n",
    );
    let config = stage.trust().config();
    let mut old = scene.try_connect_with(&config).unwrap();
    assert_eq!((old.ask("a.test").data(), old.shown()), (vec![RIGHT], der(&first)));

    mount(&stage, "2", &second);
    scene.wait_for("has changed, and is served");
    let shown = || scene.connect(&stage.trust()).shown();
    assert_eq!(shown(), der(&second));
    // What is there goes on, and sessions are taken up as before.
    assert_eq!(old.ask("b.test").data(), [RIGHT]);
    let again = scene.try_connect_with(&config).unwrap();
    assert_eq!(again.conn().handshake_kind(), Some(rustls::HandshakeKind::Resumed));

    // The key of another one.
    mount(&stage, "3", &Pair { key: fourth.key.clone(), ..third.clone() });
    scene.wait_for("cannot be used together");
    assert_eq!(shown(), der(&second));
    let file = stage.path("secret/tls.crt").display().to_string();
    let changes = |result| {
        scene.metrics().sum("nodestub_tls_certificate_changes_total", &[("file", &file), ("result", result)])
    };
    let outdated = || scene.metrics().sum("nodestub_tls_certificate_outdated", &[("file", &file)]) > 0.5;
    assert!(outdated() && (changes("refused") - 1.0).abs() < 0.5 && (changes("served") - 1.0).abs() < 0.5);
    // A good one again; an order to reload does not wait for the next look.
    mount(&stage, "4", &third);
    let mut scene = scene;
    scene.daemon.signal(Signal::HUP).unwrap();
    scene.wait_for("the Corefile was reloaded");
    assert_eq!(scene.connect(&stage.trust()).shown(), der(&third));
    assert!(scene.metrics().sum("nodestub_tls_certificate_outdated", &[]) < 0.5);
}

#[test]
fn zones_over_tls_come_and_go_with_the_corefile() {
    let Some(stage) = Stage::new("zones_over_tls_come_and_go_with_the_corefile") else { return };
    let plain = ".:53 {\n bind 127.0.0.1\n cache\n forward . 127.0.0.2\n prometheus 127.0.0.1:9153\n}\n";
    let mut scene = stage.serve_text(plain);
    let mut reloads = 0;
    let reload = |scene: &mut Served, text: &str, reloads: &mut usize| {
        scene.write_corefile(&stage.in_folder(text));
        scene.daemon.signal(Signal::HUP).unwrap();
        *reloads += 1;
        let end = Instant::now() + HANG;
        let count = |scene: &Served, text: &str| {
            scene.daemon.lines().iter().filter(|line| line.contains(text)).count()
        };
        while count(scene, "the Corefile was reloaded") < *reloads {
            assert!(Instant::now() < end, "{}", scene.daemon.lines().join("\n"));
            sleep(Duration::from_millis(20));
        }
    };
    assert!(scene.try_connect(&stage.trust()).is_err());
    reload(&mut scene, &format!("{plain}{BY_TLS}"), &mut reloads);
    let mut client = scene.connect(&stage.trust());
    assert_eq!(client.ask("a.test").data(), [RIGHT]);
    // Another `tls` for the next handshake, at the same sockets.
    stage.write("other", &stage.authority.sign("dns.test"));
    reload(&mut scene, &format!("{plain}{}", BY_TLS.replace("server.", "other.")), &mut reloads);
    assert_ne!(scene.connect(&stage.trust()).shown(), client.shown());
    assert_eq!(client.ask("a.test").data(), [RIGHT]);
    // The same port in the clear, with UDP; what spoke TLS there is over.
    reload(&mut scene, &plain.replace(".:53", ". .:853"), &mut reloads);
    for options in [patient(), patient_tcp(), patient_tcp(), patient_tcp(), patient_tcp()] {
        assert_eq!(scene.ask_with(TLS, "a.test", "A", &options).data(), [RIGHT]);
    }
    assert!(scene.try_connect(&stage.trust()).is_err());
    assert!(client.try_ask("a.test").is_err());
    // And back; then there is none.
    reload(&mut scene, &format!("{plain}{BY_TLS}"), &mut reloads);
    let mut client = scene.connect(&stage.trust());
    assert_eq!(client.ask("a.test").data(), [RIGHT]);
    let short = nodestub_lab::Options { timeout: Duration::from_secs(2), ..patient() };
    // A thread that was just answering lets go of its socket when it comes to it.
    let end = Instant::now() + HANG;
    while scene.net.run(|| ask(TLS, "a.test", "A", &short)).unwrap().is_ok() {
        assert!(Instant::now() < end, "still answered by UDP");
    }
    reload(&mut scene, plain, &mut reloads);
    assert!(scene.try_connect(&stage.trust()).is_err());
    assert!(client.try_ask("a.test").is_err());
    // What cannot be served changes nothing.
    reload(&mut scene, &format!("{plain}{BY_TLS}"), &mut reloads);
    scene.write_corefile(&stage.in_folder(&BY_TLS.replace("server.crt", "none.crt")));
    scene.daemon.signal(Signal::HUP).unwrap();
    scene.wait_for("none.crt");
    assert_eq!(scene.connect(&stage.trust()).ask("a.test").data(), [RIGHT]);
    assert_eq!(scene.ask("a.test", "A").data(), [RIGHT]);
}

/// A daemon that hands over.
fn start(stage: &Stage, corefile: &std::path::Path) -> Daemon {
    let mut command: Command = resolver(corefile);
    command.args(["--handover", "test", "-metrics-listen-address", "127.0.0.1:9253"]);
    stage.net.spawn(command).unwrap()
}

fn wait(daemon: &Daemon, text: &str) {
    daemon.wait_for_line(HANG, |line| line.contains(text)).unwrap();
}

#[test]
fn a_newer_process_takes_the_listener_and_the_older_one_serves_its_connections_to_their_end() {
    let test = "a_newer_process_takes_the_listener_and_the_older_one_serves_its_connections_to_their_end";
    let Some(stage) = Stage::new(test) else { return };
    let _upstream = upstream(&stage.net);
    let corefile = stage.corefile(
        ". tls://. {\n bind 127.0.0.1\n tls FOLDER/server.crt FOLDER/server.key\n cache 300\n forward . 127.0.0.2\n timeouts {\n \
         read 4m\n idle 4m\n }\n}\n",
    );
    let config = stage.trust().config();
    let reach = || connect(&stage.net, TLS, &config);
    let mut first = start(&stage, &corefile);
    wait(&first, "serving DNS over TLS");
    let mut old = reach().unwrap();
    assert_eq!(old.ask("a.test").data(), [RIGHT]);
    // Asked before, answered after the sockets have gone.
    old.send_all(&[asked("slow.test")]);
    // A handshake that has begun is done by who has begun it; this one never ends.
    let half = bare(&stage.net, [127, 0, 0, 1]);

    let mut second = start(&stage, &corefile);
    wait(&second, "took over; the resolver before this one stands by");
    wait(&first, "standing by");
    assert_eq!(old.receive().data(), [RIGHT]);
    assert_eq!(old.ask("late.test").data(), [RIGHT]);
    let mut new = reach().unwrap();
    assert_eq!(new.ask("a.test").data(), [RIGHT]);
    for options in [patient(), patient_tcp()] {
        let found = stage.net.run(|| ask(SERVER, "a.test", "A", &options)).unwrap().unwrap();
        assert_eq!(found.data(), [RIGHT]);
    }
    // The older one ends: it takes leave, and nobody else notices.
    assert!(first.terminate(HANG).unwrap().success(), "{}", first.lines().join("\n"));
    assert!(old.is_taken_leave_of());
    drop(half);
    assert_eq!(new.ask("b.test").data(), [RIGHT]);

    // A third comes, and the second dies: the listener is in two hands, and lives on. (The third, for it serves.)
    let third = start(&stage, &corefile);
    wait(&third, "took over; the resolver before this one stands by");
    let mut newest = reach().unwrap();
    assert_eq!((newest.ask("c.test").data(), new.ask("c.test").data()), (vec![RIGHT], vec![RIGHT]));
    drop(third);
    // Killed: who stood by serves again.
    wait(&second, "serves again");
    assert!(newest.try_ask("d.test").is_err());
    assert_eq!(reach().unwrap().ask("d.test").data(), [RIGHT]);
    assert_eq!(new.ask("e.test").data(), [RIGHT]);
    assert!(second.terminate(HANG).unwrap().success(), "{}", second.lines().join("\n"));
    assert!(new.is_taken_leave_of());
}

#[test]
fn a_newer_process_may_serve_the_port_otherwise() {
    let Some(stage) = Stage::new("a_newer_process_may_serve_the_port_otherwise") else { return };
    let _upstream = upstream(&stage.net);
    let corefile = stage.corefile(BY_TLS);
    let first = start(&stage, &corefile);
    wait(&first, "serving DNS over TLS");
    let config = stage.trust().config();
    let reach = || connect(&stage.net, TLS, &config);
    let mut old = reach().unwrap();
    let plain = stage.path("Plain");
    std::fs::write(&plain, ".:853 {\n bind 127.0.0.1\n forward . 127.0.0.2\n}\n").unwrap();
    let second = start(&stage, &plain);
    wait(&second, "took over; the resolver before this one stands by");
    wait(&first, "standing by");
    // Every one of them: there is one listener, and nobody else waits at it.
    for number in 0..20 {
        let options = if number % 4 == 0 { patient() } else { patient_tcp() };
        let found = stage.net.run(|| ask(TLS, "a.test", "A", &options)).unwrap().unwrap();
        assert_eq!(found.data(), [RIGHT]);
    }
    assert_eq!(old.ask("b.test").data(), [RIGHT]);
    drop(second);
    wait(&first, "serves again");
    for _ in 0..20 {
        assert_eq!(reach().unwrap().ask("c.test").data(), [RIGHT]);
    }
}

#[test]
fn who_stops_answers_what_was_asked_and_takes_leave() {
    let Some(stage) = Stage::new("who_stops_answers_what_was_asked_and_takes_leave") else { return };
    let mut scene = stage.serve(PATIENT);
    let (mut idle, mut busy) = (scene.connect(&stage.trust()), scene.connect(&stage.trust()));
    let half = bare(&scene.net, [127, 0, 0, 1]);
    assert_eq!((idle.ask("a.test").data(), busy.ask("a.test").data()), (vec![RIGHT], vec![RIGHT]));
    // More than are resolved at once on one connection: the others have been read, and wait.
    let queries: Vec<_> = (0..300).map(|number| asked(&format!("late{number}.test"))).collect();
    busy.send_all(&queries);
    scene.upstream.wait_for(250, HANG).unwrap();
    scene.daemon.signal(Signal::TERM).unwrap();
    for _ in &queries {
        assert_eq!(busy.receive().data(), [RIGHT]);
    }
    assert!(busy.is_taken_leave_of() && idle.is_taken_leave_of());
    let stopping = Instant::now();
    assert!(scene.daemon.wait(HANG).unwrap().success());
    assert!(stopping.elapsed() < Duration::from_secs(4), "somebody was waited for");
    drop(half);
}

#[test]
fn cleanup_refuses_while_somebody_listens_over_tls_alone() {
    let Some(stage) = Stage::new("cleanup_refuses_while_somebody_listens_over_tls_alone") else { return };
    stage.net.add_address("lo", "169.254.20.10".parse().unwrap(), 32).unwrap();
    let scene = stage.serve_text(
        "tls://. {\n bind 169.254.20.10\n tls FOLDER/server.crt FOLDER/server.key\n forward . 127.0.0.2\n}\n",
    );
    let mut command = binary();
    command.args(["cleanup", "-localip", "169.254.20.10"]);
    let output = stage.net.output(command).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("something listens on 169.254.20.10"), "{said}");
    assert_eq!(scene.connect_to("169.254.20.10:853", &stage.trust()).ask("a.test").data(), [RIGHT]);
}

#[test]
fn a_second_process_does_not_share_a_port_over_tls() {
    let Some(stage) = Stage::new("a_second_process_does_not_share_a_port_over_tls") else { return };
    let _upstream = upstream(&stage.net);
    let text =
        "tls://. {\n bind 127.0.0.1\n tls FOLDER/server.crt FOLDER/server.key\n forward . 127.0.0.2\n}\n";
    let corefile = stage.corefile(text);
    let served = start(&stage, &corefile);
    wait(&served, "serving DNS over TLS");
    // Its Corefile is the same, its rendezvous another: nobody hands over to it.
    let mut command = resolver(&corefile);
    command.args(["--handover", "other"]);
    let mut second = stage.net.spawn(command).unwrap();
    wait(&second, "127.0.0.1:853 is served by another process");
    assert!(!second.wait(HANG).unwrap().success());
    let config = stage.trust().config();
    assert_eq!(connect(&stage.net, TLS, &config).unwrap().ask("a.test").data(), [RIGHT]);
}
