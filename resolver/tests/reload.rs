//! Reloads under load: no query is lost, whatever the new Corefile says, and a bad one is refused.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a test may stop at the first surprise, and counters are whole numbers"
)]

mod common;
#[path = "handover/load.rs"]
#[allow(dead_code, clippy::allow_attributes, reason = "the handover's tests use more of it")]
mod load;

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{HANG, SERVER, Scene};
use load::UdpLoad;
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::{Options, Signal};

/// Names of the load; `hosts` answers them, so none can be lost by an upstream.
const NAMES: usize = 50;

/// How often a new Corefile comes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Queries a second and seconds: as promised with NODESTUB_FULL=1, a tenth of both otherwise.
fn size() -> (u32, u32) {
    if std::env::var_os("NODESTUB_FULL").is_some() { (20_000, 60) } else { (2_000, 6) }
}

#[test]
fn no_query_is_lost_by_reloads_once_a_second_and_bad_corefiles_are_refused() {
    if !can_make_namespaces("no_query_is_lost_by_reloads_once_a_second_and_bad_corefiles_are_refused") {
        return;
    }
    let (rate, seconds) = size();
    let mut scene = Scene::start(&corefile(0));
    let names: Vec<String> = (0..NAMES).map(|number| format!("name{number}.test")).collect();
    let load = UdpLoad::start(&scene.net, SERVER, &names, 4, rate);
    load.wait_for(u64::from(rate) / 10);
    let mut refused = 0.0;
    let (mut reloaded, mut good) = (0, 0);
    let mut next = Instant::now();
    for number in 1..=seconds {
        let bad = number % 3 == 0;
        scene.write_corefile(&if bad { ".:53 {\n nonsense\n}\n".to_owned() } else { corefile(number) });
        scene.daemon.signal(Signal::HUP).unwrap();
        if bad {
            refused += 1.0;
            until("the bad file is counted", || failed_reloads(&scene) == refused);
            assert!(in_force(&scene, good), "the last good file has not stayed");
        } else {
            reloaded += 1;
            until("the new file is in force", || in_force(&scene, number));
            good = number;
        }
        next += INTERVAL;
        sleep(next.saturating_duration_since(Instant::now()));
    }
    let tally = load.finish();
    assert_eq!(tally.lost, 0, "{tally:?}");
    // Most of what was meant to be sent was: a load that starves proves nothing.
    assert!(tally.sent > u64::from(rate * seconds / 10), "{tally:?}");
    let said = scene.daemon.lines();
    let lines = |text: &str| said.iter().filter(|line| line.contains(text)).count();
    assert_eq!(lines("the Corefile was reloaded"), reloaded, "{}", said.join("\n"));
    assert_eq!(scene.metrics().sum("coredns_panics_total", &[]), 0.0);
}

/// Every one differs: in its answers, in the addresses that it listens on, and in its blocks.
fn corefile(number: u32) -> String {
    let more = if number.is_multiple_of(2) { " 127.0.0.3" } else { "" };
    let hosts: Vec<String> =
        (0..NAMES).map(|name| format!("  192.0.2.{} name{name}.test", 1 + number)).collect();
    let cache = if number.is_multiple_of(4) { "cache 30" } else { "cache 60" };
    let block = if number.is_multiple_of(5) {
        "other.test:53 {\n bind 127.0.0.1\n hosts {\n  192.0.2.99 x.other.test\n }\n}\n"
    } else {
        ""
    };
    format!(
        ".:53 {{\n bind 127.0.0.1{more}\n {cache}\n hosts {{\n{}\n }}\n prometheus 127.0.0.1:9153\n}}\n{block}",
        hosts.join("\n")
    )
}

fn in_force(scene: &Scene, number: u32) -> bool {
    // Its own time limit: what is lost is to be told with what was counted.
    let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
    let answer = scene.net.run(|| nodestub_lab::ask(SERVER, "name0.test", "A", &options)).unwrap();
    let answer = answer.unwrap_or_else(|error| {
        panic!("{error}\n{}\nthe daemon said:\n{}", scene.metrics().0, scene.daemon.lines().join("\n"))
    });
    answer.data() == [format!("192.0.2.{}", 1 + number)]
}

fn failed_reloads(scene: &Scene) -> f64 {
    scene.metrics().sum("coredns_reload_failed_total", &[])
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(10));
    }
}
