//! Handover, with real processes: under load nothing is lost, connections live on, the cache stays warm; and nothing
//! that a newcomer does, or fails to do, costs an answer.
//!
//! Each test has a network namespace of its own, and with it the rendezvous. Clients send each query once.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

mod failopen;
mod load;
mod scene;

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nodestub_lab::dns::{Options, query};
use nodestub_lab::{Daemon, Signal, ask, skip};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use load::{HANG, TcpLoad, UdpLoad, answer_on, ask_on, connect};
use scene::{
    COREFILE, HTTP, OTHER, SERVER, Scene, accept, hear, in_full, names, opening, patient, rounds, say,
    say_with, terminate, wait,
};

#[test]
fn loses_no_query_and_no_connection_over_many_handovers_and_stays_warm() {
    let Some(scene) = Scene::new("loses_no_query_and_no_connection_over_many_handovers_and_stays_warm")
    else {
        return;
    };
    let mut serving = scene.first();
    scene.warm_up();
    let asked_upstream = scene.asked_upstream();
    let (warm_since, mut ttl) = (Instant::now(), scene.ttl("n0.test"));
    // 50 rounds, a million queries, 20,000 a second in full; the rest of the time a tenth of it.
    let (rate, queries) = (in_full(3000, 20_000), in_full(10_000, 1_000_000));
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 6, rate);
    let tcp: Vec<_> = (0..3).map(|_| TcpLoad::start(&scene.net, SERVER, &names(), 8)).collect();
    let mut idle = scene.net.run(|| connect(SERVER)).unwrap();
    ask_on(&mut idle, "n1.test", 1);
    answer_on(&mut idle);
    let mut handovers = 0;
    for _ in 0..rounds(10, 50) {
        udp.wait_for(queries / u64::try_from(rounds(10, 50)).unwrap());
        let next = scene.next(&serving);
        handovers += 1;
        terminate(std::mem::replace(&mut serving, next));
        let age = u32::try_from(warm_since.elapsed().as_secs()).unwrap();
        let left = scene.ttl("n0.test");
        assert!(
            left <= ttl.min(3600 - age),
            "lengthened a life: {ttl} s, then {left} s at the age of {age} s"
        );
        ttl = left;
        // One that says nothing for a while moves as well as busy ones.
        ask_on(&mut idle, "n2.test", 2);
        assert_eq!(answer_on(&mut idle).id, 2);
    }
    udp.wait_for(500);
    let by_tcp: u64 = tcp.into_iter().map(TcpLoad::finish).sum();
    let tally = udp.finish();
    eprintln!("{handovers} handovers: {tally:?}, and {by_tcp} by TCP");
    assert_eq!((tally.lost, scene.asked_upstream()), (0, asked_upstream));
    assert!(tally.sent >= queries && by_tcp > 0, "{handovers} handovers with too few queries");
    assert!(scene.get(HTTP, "/ready").starts_with("HTTP/1.1 200"));
    assert_eq!(scene.metric("nodestub_handover_total{result=\"taken\"}"), "1");
    terminate(serving);
}

#[test]
fn serves_again_whenever_a_newcomer_is_killed_after_a_handover() {
    let Some(scene) = Scene::new("serves_again_whenever_a_newcomer_is_killed_after_a_handover") else {
        return;
    };
    let serving = scene.first();
    scene.warm_up();
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 4, 2000);
    let mut deaths = Vec::new();
    for round in 0..rounds(10, 50) {
        let mut newcomer = scene.start("Corefile");
        wait(&newcomer, "took over");
        udp.wait_for(u64::try_from(round % 5 * 50).unwrap());
        let ending = Instant::now();
        if round % 2 == 0 {
            // Nobody reads for a while: what comes waits in the sockets of one who will never read it.
            newcomer.signal(Signal::STOP).unwrap();
            udp.wait_until_sent(50);
        }
        newcomer.kill().unwrap();
        deaths.push((ending, Instant::now()));
        udp.wait_for(200);
    }
    let tally = udp.finish();
    eprintln!("{tally:?}");
    // What a dead one had taken out of its sockets died with it: at most a batch for each of its threads. What stood in
    // them, fifty and more where nobody read for a while, is answered.
    let batches = 16 * std::thread::available_parallelism().unwrap().get();
    let mut lost = tally.lost_at.clone();
    for (ending, dead) in deaths {
        let before = lost.len();
        lost.retain(|lost| *lost + failopen::HELD <= ending || *lost > dead);
        assert!(before - lost.len() <= batches, "the queue of a dead one was lost: {tally:?}");
    }
    assert_eq!(lost, [], "{tally:?}");
    assert_eq!(scene.metric("nodestub_handover_total{result=\"resumed\"}"), rounds(10, 50).to_string());
    assert!(scene.get(HTTP, "/ready").starts_with("HTTP/1.1 200"));
    terminate(serving);
}

#[test]
fn a_chain_of_three_serves_by_one_at_a_time() {
    let Some(scene) = Scene::new("a_chain_of_three_serves_by_one_at_a_time") else { return };
    let first = scene.first();
    scene.warm_up();
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 4, 2000);
    let second = scene.next(&first);
    let mut third = scene.next(&second);
    wait(&first, "a still newer resolver serves");
    assert_eq!(scene.metric("nodestub_standby"), "1");
    udp.wait_for(500);
    third.kill().unwrap();
    wait(&second, "this one serves again");
    udp.wait_for(500);
    assert!(!first.lines().iter().any(|line| line.contains("this one serves again")));
    assert_eq!(scene.metric("nodestub_standby"), "0");
    // The first one's end touches nothing.
    terminate(first);
    udp.wait_for(500);
    let tally = udp.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    terminate(second);
}

#[test]
fn hands_back_when_it_is_stopped_while_another_stands_by() {
    let Some(scene) = Scene::new("hands_back_when_it_is_stopped_while_another_stands_by") else { return };
    let first = scene.first();
    scene.warm_up();
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 4, 2000);
    let tcp = TcpLoad::start(&scene.net, SERVER, &names(), 8);
    for _ in 0..3 {
        let second = scene.start("Corefile");
        wait(&second, "took over");
        udp.wait_for(200);
        terminate(second);
        udp.wait_for(200);
    }
    tcp.finish();
    let tally = udp.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    terminate(first);
}

#[test]
fn what_was_begun_on_a_connection_is_finished_after_a_handover() {
    let Some(scene) = Scene::new("what_was_begun_on_a_connection_is_finished_after_a_handover") else {
        return;
    };
    let first = scene.first();
    let mut question = Vec::new();
    ask_on(&mut question, "n7.test", 7);
    let [mut cut_in_length, mut cut_in_message, mut waiting] =
        scene.net.run(|| [connect(SERVER), connect(SERVER), connect(SERVER)]).unwrap();
    // Answered once, so that the rest of the test knows it is served.
    for stream in [&mut cut_in_length, &mut cut_in_message, &mut waiting] {
        ask_on(stream, "n1.test", 1);
        assert_eq!(answer_on(stream).id, 1);
    }
    cut_in_length.write_all(&question[..1]).unwrap();
    cut_in_message.write_all(&question[..20]).unwrap();
    // Under way while the handover happens, with another one behind it.
    ask_on(&mut waiting, "slow1.test", 2);
    scene.upstream.wait_for(2, HANG).unwrap();
    let second = scene.next(&first);
    ask_on(&mut waiting, "n2.test", 3);
    cut_in_length.write_all(&question[1..]).unwrap();
    cut_in_message.write_all(&question[20..]).unwrap();
    assert_eq!(answer_on(&mut cut_in_length).data(), ["192.0.2.1"]);
    assert_eq!(answer_on(&mut cut_in_message).data(), ["192.0.2.1"]);
    assert_eq!(answer_on(&mut waiting).id, 2);
    assert_eq!(answer_on(&mut waiting).id, 3);
    terminate(first);
    for stream in [&mut cut_in_length, &mut cut_in_message, &mut waiting] {
        ask_on(stream, "n3.test", 9);
        assert_eq!(answer_on(stream).id, 9);
    }
    terminate(second);
}

#[test]
fn a_question_that_waits_for_its_upstream_is_answered_over_udp_by_who_asked() {
    let Some(scene) = Scene::new("a_question_that_waits_for_its_upstream_is_answered_over_udp_by_who_asked")
    else {
        return;
    };
    let first = scene.first();
    let client = scene
        .net
        .run(|| {
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(SERVER).unwrap();
            client.set_read_timeout(Some(HANG)).unwrap();
            client
        })
        .unwrap();
    client.send(&query("slow2.test", "A", &Options { id: Some(77), ..Options::default() }).unwrap()).unwrap();
    scene.upstream.wait_for(1, HANG).unwrap();
    let second = scene.next(&first);
    terminate(first);
    let mut answer = [0; 512];
    client.recv(&mut answer).unwrap();
    assert_eq!(answer[..2], [0, 77]);
    assert_eq!(scene.upstream.count(), 1);
    terminate(second);
}

#[test]
fn a_newcomer_that_cannot_serve_never_disturbs() {
    let Some(scene) = Scene::new("a_newcomer_that_cannot_serve_never_disturbs") else { return };
    let first = scene.first();
    scene.warm_up();
    scene.write("unreadable", ".:53 {\n    forwrad . 127.0.0.1:5300\n}\n");
    // An address that this namespace does not have: found out only once the sockets have been handed over.
    scene.write(
        "unbindable",
        &format!("{COREFILE}\nx.test:53 {{\n    bind 192.0.2.77\n    forward . 127.0.0.1:5300\n}}\n"),
    );
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 4, 2000);
    for file in ["unreadable", "unbindable", "unreadable", "unbindable"] {
        let mut newcomer = scene.start(file);
        assert!(!newcomer.wait(HANG).unwrap().success());
        udp.wait_for(200);
    }
    let tally = udp.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    assert_eq!(scene.metric("nodestub_handover_total{result=\"failed\"}"), "2");
    terminate(first);
}

#[test]
fn a_newcomer_that_hangs_is_given_up_and_the_watchdog_waits_for_that() {
    let Some(scene) = Scene::new("a_newcomer_that_hangs_is_given_up_and_the_watchdog_waits_for_that") else {
        return;
    };
    let first = scene.first();
    scene.warm_up();
    // Greeted, given all sockets, and silent from then on. Nobody asks meanwhile, so nothing tells busy from deaf.
    let newcomer = scene.knock();
    say(&newcomer, &opening(1, 1, &[0xff; 10]));
    say(&newcomer, &[6]);
    wait(&first, "the handover failed; this resolver serves on");
    let said = first.lines().join("\n");
    assert!(!said.contains("the watchdog's question"), "{said}");
    scene.warm_up();
    drop(newcomer);
    terminate(first);
}

#[test]
fn strangers_and_babblers_do_no_harm() {
    let Some(scene) = Scene::new("strangers_and_babblers_do_no_harm") else { return };
    let first = scene.first();
    scene.warm_up();
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 4, 1000);

    let other_version = scene.knock();
    say(&other_version, &opening(1, 999, b"what version 999 says"));
    let refused = hear(&other_version);
    assert_eq!(refused[..9], *b"\x02NODESTUB");
    assert!(hear(&other_version).is_empty(), "a refusal is the last word");
    wait(&first, "was refused version=\"9.9.9\" refusal=Protocol");

    // One who has started before: sockets never move backwards.
    let older = scene.knock();
    say(&older, &opening(1, 1, &[[0; 8].as_slice(), &[0, 1]].concat()));
    assert_eq!(hear(&older)[..9], *b"\x02NODESTUB");
    wait(&first, "refusal=NotNewer");

    for babble in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"\x01NODESTU", &[6], &[8], &[0xff; 70_000]] {
        let line = scene.knock();
        say(&line, babble);
        assert!(hear(&line).is_empty());
    }
    // One who hangs up, and one who says all the right things and dies when it is handed the sockets.
    drop(scene.knock());
    let greedy = scene.knock();
    say(&greedy, &opening(1, 1, &[u64::MAX.to_be_bytes().as_slice(), &[0, 1]].concat()));
    while hear(&greedy) != [5] {}
    say(&greedy, &[6]);
    assert_eq!(hear(&greedy)[0], 7);
    drop(greedy);
    wait(&first, "the handover failed; this resolver serves on");

    udp.wait_for(500);
    let tally = udp.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    terminate(scene.next(&first));
    terminate(first);
}

#[test]
fn what_is_kept_while_the_cache_travels_follows_it() {
    let Some(scene) = Scene::new("what_is_kept_while_the_cache_travels_follows_it") else { return };
    let first = scene.first();
    scene.ttl("n1.test");
    let has =
        |message: &[u8], name: &[u8]| message[0] == 4 && message.windows(name.len()).any(|at| at == name);
    let hello =
        |cache_format: u8| opening(1, 1, &[u64::MAX.to_be_bytes().as_slice(), &[0, cache_format]].concat());
    let line = scene.knock();
    say(&line, &hello(1));
    let mut before = Vec::new();
    while before.last().map(Vec::as_slice) != Some(&[5]) {
        before.push(hear(&line));
    }
    assert!(before.iter().any(|message| has(message, b"\x02n1\x04test\0")));
    scene.ttl("n2.test");
    say(&line, &[6]);
    let mut after = Vec::new();
    while after.last().map(Vec::as_slice) != Some(&[8]) {
        after.push(hear(&line));
    }
    assert!(after.iter().any(|message| has(message, b"\x02n2\x04test\0")));
    drop(line);
    wait(&first, "this resolver serves on");
    // One that keeps answers in another form gets none.
    let line = scene.knock();
    say(&line, &hello(99));
    assert_eq!((hear(&line)[0], hear(&line)), (3, vec![5]));
    drop(line);
    scene.ttl("n1.test");
    terminate(first);
}

#[test]
fn inherits_from_a_resolver_that_dies_while_it_gives() {
    let Some(scene) = Scene::new("inherits_from_a_resolver_that_dies_while_it_gives") else { return };
    let rendezvous = scene.hold_rendezvous();
    let inside = || {
        let flags = SocketFlags::CLOEXEC;
        let udp = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).unwrap();
        rustix::net::sockopt::set_socket_reuseport(&udp, true).unwrap();
        rustix::net::bind(&udp, &SERVER).unwrap();
        let tcp = std::net::TcpListener::bind(SERVER).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(SERVER).unwrap();
        client.set_read_timeout(Some(HANG)).unwrap();
        (udp, OwnedFd::from(tcp), client)
    };
    let (udp, tcp, client) = scene.net.run(inside).unwrap();
    // Both wait in queues that nobody reads.
    client.send(&query("n1.test", "A", &Options { id: Some(5), ..Options::default() }).unwrap()).unwrap();
    let mut stream = scene.net.run(|| connect(SERVER)).unwrap();
    ask_on(&mut stream, "n2.test", 6);

    let newcomer = scene.start("Corefile");
    let line = accept(&rendezvous);
    hear(&line);
    say(&line, &opening(3, 1, &[0_u64.to_be_bytes().as_slice(), &[0, 1]].concat()));
    say(&line, &[5]);
    assert_eq!(hear(&line), [6]);
    for (kind, given) in [(1, &udp), (2, &tcp)] {
        say_with(&line, &[7, kind, 4, 127, 0, 0, 1, 0, 53, 1], given);
    }
    drop((rendezvous, udp, tcp, line));
    wait(&newcomer, "the resolver that was handing over has died");
    let mut answer = [0; 512];
    client.recv(&mut answer).unwrap();
    assert_eq!(answer[..2], [0, 5]);
    assert_eq!(answer_on(&mut stream).id, 6);
    terminate(scene.next(&newcomer));
    terminate(newcomer);
}

#[test]
fn sockets_of_all_addresses_move_as_well() {
    let Some(scene) = Scene::new("sockets_of_all_addresses_move_as_well") else { return };
    scene.write("Corefile", &COREFILE.replace("    bind 127.0.0.1\n", ""));
    let mut serving = scene.first();
    scene.warm_up();
    let udp = UdpLoad::start(&scene.net, OTHER, &names(), 2, 1000);
    let v6: SocketAddr = "[::1]:53".parse().unwrap();
    let has_v6 = scene.net.run(|| std::net::UdpSocket::bind("[::1]:0").is_ok()).unwrap();
    for _ in 0..3 {
        let next = scene.next(&serving);
        terminate(std::mem::replace(&mut serving, next));
        if has_v6 {
            // An answer from another address than the one that was asked would not be taken.
            assert_eq!(
                scene.net.run(|| ask(v6, "n1.test", "A", &patient())).unwrap().unwrap().rcode,
                "NOERROR"
            );
        }
        udp.wait_for(100);
    }
    let tally = udp.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    terminate(serving);
}

#[test]
fn another_user_is_refused_and_told() {
    let Some(scene) = Scene::new("another_user_is_refused_and_told") else { return };
    let first = scene.first();
    // Where the build lies, another user may not be able to read.
    let program = scene.folder.path().join("resolver");
    // By another process: a file that this one has open for writing could not be executed from another test's thread.
    let copied =
        Command::new("cp").arg(env!("CARGO_BIN_EXE_nodestub-resolver")).arg(&program).status().unwrap();
    assert!(copied.success());
    for path in [scene.folder.path(), &program, &scene.folder.path().join("Corefile")] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    scene.net.set_sysctl("net/ipv4/ip_unprivileged_port_start", "0").unwrap();
    let mut command = Command::new(&program);
    command
        .args(["--handover", "test", "-conf"])
        .arg(scene.folder.path().join("Corefile"))
        .uid(1234)
        .gid(1234);
    let mut stranger = scene.net.spawn(command).unwrap();
    assert!(!stranger.wait(HANG).unwrap().success());
    wait(&stranger, "it belongs to user 0");
    wait(&first, "a process of another user asked for a handover, and was refused uid=1234");
    scene.ttl("n0.test");
    terminate(first);
}

#[test]
fn who_does_not_hand_over_is_left_alone_and_free_addresses_are_served() {
    let Some(scene) = Scene::new("who_does_not_hand_over_is_left_alone_and_free_addresses_are_served") else {
        return;
    };
    let rendezvous = scene.hold_rendezvous();
    let refuse = |answer: &[u8]| {
        let line = accept(&rendezvous);
        assert_eq!(hear(&line)[..9], *b"\x01NODESTUB");
        say(&line, answer);
        line
    };
    // The addresses are free: serves, and says that there will be no handover.
    let serving = scene.start("Corefile");
    let line = refuse(&opening(2, 999, &[1, 42]));
    wait(&serving, "it speaks protocol 999 of the handover (version 9.9.9)");
    wait(&serving, "serving DNS");
    drop(line);
    scene.ttl("n0.test");
    // They are not: says why, and goes.
    for (answer, reason) in [
        (opening(2, 999, &[1]), "it speaks protocol 999 of the handover"),
        (b"garbage".to_vec(), "sent what is no message of a handover"),
    ] {
        let mut newcomer = scene.start("Corefile");
        let _line = refuse(&answer);
        assert!(!newcomer.wait(HANG).unwrap().success());
        let said = wait(&newcomer, "another resolver serves 127.0.0.1:53 and does not hand it over");
        assert!(said.contains(reason), "{said}");
    }
    // One that says nothing is waited for, but not beyond the order to stop.
    let newcomer = scene.start("Corefile");
    let line = accept(&rendezvous);
    assert_eq!(hear(&line)[..9], *b"\x01NODESTUB");
    terminate(newcomer);
    scene.ttl("n0.test");
    terminate(serving);
}

#[test]
fn addresses_that_come_and_go_with_a_newcomers_corefile_are_served_by_it_alone() {
    let Some(scene) =
        Scene::new("addresses_that_come_and_go_with_a_newcomers_corefile_are_served_by_it_alone")
    else {
        return;
    };
    let first = scene.first();
    scene.warm_up();
    scene.write("Moved", &COREFILE.replace("127.0.0.1\n", "127.0.0.2\n").replace("8181", "8182"));
    let second = scene.start("Moved");
    wait(&second, "took over");
    wait(&first, "standing by");
    let moved = scene.net.run(|| ask(OTHER, "n0.test", "A", &patient())).unwrap().unwrap();
    assert_eq!(moved.rcode, "NOERROR");
    assert!(scene.get("127.0.0.1:8182".parse().unwrap(), "/ready").starts_with("HTTP/1.1 200"));
    // Nobody keeps a socket there in which a query would wait for ever.
    let quick = Options { timeout: Duration::from_secs(5), ..Options::default() };
    let error = scene.net.run(|| ask(SERVER, "n0.test", "A", &quick)).unwrap().unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    // The first comes back with what it had.
    terminate(second);
    wait(&first, "the newer resolver stops; this one serves again");
    wait(&first, "the Corefile was reloaded");
    scene.ttl("n0.test");
    assert!(scene.get(HTTP, "/ready").starts_with("HTTP/1.1 200"));
    terminate(first);
}

#[test]
fn the_number_of_threads_may_change() {
    let Some(scene) = Scene::new("the_number_of_threads_may_change") else { return };
    let all = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    if cpus.len() < 2 {
        skip("the_number_of_threads_may_change", "needs two CPUs");
        return;
    }
    let on = |count: usize| {
        let mut set = rustix::thread::CpuSet::new();
        cpus.iter().take(count).for_each(|cpu| set.set(*cpu));
        let command = scene.command("Corefile");
        // A child inherits the CPUs of the thread that starts it.
        scene
            .net
            .run(|| {
                rustix::thread::sched_setaffinity(None, &set).unwrap();
                Daemon::spawn(command).unwrap()
            })
            .unwrap()
    };
    let mut serving = on(1);
    wait(&serving, "serving DNS");
    scene.warm_up();
    let udp = UdpLoad::start(&scene.net, SERVER, &names(), 4, 2000);
    // One that adds a socket to the group and dies: what waits in its own queue is answered as well.
    let mut two = on(2);
    wait(&two, "took over");
    udp.wait_for(200);
    two.signal(Signal::STOP).unwrap();
    udp.wait_until_sent(200);
    two.signal(Signal::KILL).unwrap();
    wait(&serving, "has died; this one serves again");
    udp.wait_for(500);
    for count in [2, 1, 2] {
        let next = on(count);
        wait(&next, "took over");
        udp.wait_for(500);
        terminate(std::mem::replace(&mut serving, next));
        udp.wait_for(500);
    }
    let tally = udp.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    terminate(serving);
}
