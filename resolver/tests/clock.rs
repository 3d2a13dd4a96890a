//! Steps of the wall clock change no TTL.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Scene, resolver, upstream_in};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Netns, Signal};

/// Longer than this test takes, in seconds.
const TTL: u32 = 3000;

#[test]
fn a_step_of_the_wall_clock_by_an_hour_changes_no_ttl() {
    let name = "a_step_of_the_wall_clock_by_an_hour_changes_no_ttl";
    let Some(library) = faketime() else {
        skip(name, "libfaketime is missing (Debian: apt-get install faketime)");
        return;
    };
    if !can_make_namespaces(name) {
        return;
    }
    let net = Netns::new().unwrap();
    let upstream = upstream_in(&net, "127.0.0.2:53", |query, _| {
        let (name, _) = question(query).unwrap();
        vec![Reply::now(answer(query, &[(&name, TTL, Data::A(Ipv4Addr::new(192, 0, 2, 1)))]).unwrap())]
    });
    let folder = tempfile::tempdir().unwrap();
    let (path, step) = (folder.path().join("Corefile"), folder.path().join("step"));
    std::fs::write(&path, ". {\n bind 127.0.0.1\n cache\n forward . 127.0.0.2\n}\n").unwrap();
    std::fs::write(&step, "+0").unwrap();
    let mut command = resolver(&path);
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &step);
    // A step of the wall clock leaves the other clocks alone.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
    let mut scene = Scene::of(net, command, folder);

    assert_eq!(scene.ask("a.test", "A").ttls(), [TTL]);
    for (number, by) in ["+1h", "-1h"].into_iter().enumerate() {
        std::fs::write(&step, by).unwrap();
        // It has stepped: what it logs from now on says so.
        scene.daemon.signal(Signal::HUP).unwrap();
        let line = wait_for_reload(&scene, number + 1);
        let apart = (seconds_of_day(&line) + 86_400 - now()) % 86_400;
        let apart = apart.min(86_400 - apart);
        assert!((3_000..4_200).contains(&apart), "{apart} s apart: {line}");

        let kept = scene.ask("a.test", "A");
        let ttl = kept.ttls().into_iter().next().unwrap();
        assert!((TTL - 200..=TTL).contains(&ttl), "TTL {ttl} after {by}");
        assert_eq!(scene.ask(&format!("fresh{number}.test"), "A").ttls(), [TTL]);
    }
    // One question for each name.
    assert_eq!(upstream.count(), 3);
}

fn wait_for_reload(scene: &Scene, number: usize) -> String {
    let end = std::time::Instant::now() + common::HANG;
    loop {
        let lines = scene.daemon.lines();
        let mut reloads =
            lines.iter().filter(|line| line.contains("reloaded") || line.contains("did not change"));
        if let Some(line) = reloads.nth(number - 1) {
            return line.clone();
        }
        assert!(std::time::Instant::now() < end, "no reload:\n{}", lines.join("\n"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Of a line that begins with `2026-11-25T17:20:51.5Z`.
fn seconds_of_day(line: &str) -> u64 {
    let time = line.split_once('T').unwrap().1;
    let mut parts = time.split([':', '.']).map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap();
    next() * 3600 + next() * 60 + next()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() % 86_400
}

fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let mut candidates =
        folders.chain(["/usr/lib".into()]).map(|folder| folder.join("faketime/libfaketime.so.1"));
    candidates.find(|path| path.exists())
}
