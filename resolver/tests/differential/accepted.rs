//! What a Corefile may say: each directive of `directives.txt`, alone in a block, is taken or refused by both.

use std::process::Command;

use nodestub_lab::Netns;
use nodestub_lab::skip::{can_make_namespaces, skip};

use crate::scene::{HANG, coredns};

const DIRECTIVES: &str = include_str!("directives.txt");

/// Of how many directives one is tried, where not all are.
const SHARE: usize = 8;

/// A directive, and the mark in front of it.
fn directives() -> Vec<(char, String)> {
    let mut found: Vec<(char, String)> = Vec::new();
    for line in DIRECTIVES.lines().filter(|line| !line.starts_with('#')) {
        match (line.strip_prefix([' ']), line.split_once(' ')) {
            (Some(_), _) => {
                let (_, text) = found.last_mut().unwrap();
                *text += "\n";
                *text += line;
            }
            (None, Some((mark, text))) => found.push((mark.chars().next().unwrap(), text.to_owned())),
            (None, None) => panic!("no mark in front of {line:?}"),
        }
    }
    found
}

#[test]
fn what_coredns_takes_is_taken_and_what_it_refuses_is_refused() {
    let test = "what_coredns_takes_is_taken_and_what_it_refuses_is_refused";
    if !can_make_namespaces(test) {
        return;
    }
    let Some(coredns) = coredns() else {
        return skip("differential", "CoreDNS is not built: run tests/cluster/build coredns");
    };
    let (net, folder) = (Netns::new().unwrap(), tempfile::tempdir().unwrap());
    let place = folder.path().display().to_string();
    std::fs::write(folder.path().join("weights"), "a.test\n10.0.0.1 3\n").unwrap();
    std::fs::write(folder.path().join("resolv"), "search a.b c.d\nnameserver 127.0.0.1\n").unwrap();
    let full = std::env::var_os("NODESTUB_FULL").is_some();
    let directives = directives();
    assert!(directives.len() >= 280, "{}", directives.len());
    let mut differences = Vec::new();
    for (index, (mark, directive)) in directives.iter().enumerate() {
        if !full && *mark == '=' && index % SHARE != 0 {
            continue;
        }
        let bind = if directive.starts_with("bind") { "" } else { " bind 127.0.0.1\n" };
        let text = format!(".:5391 {{\n{bind} {directive}\n}}\n").replace("FOLDER", &place);
        let file = folder.path().join("Corefile");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(&coredns);
        command.arg("-conf").arg(&file);
        // It says its name when it serves, and ends when it does not.
        let theirs = net.spawn(command).unwrap().wait_for_line(HANG, |line| line.starts_with("CoreDNS-"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodestub-resolver"));
        command.arg("check").arg(&file);
        let ours = net.output(command).unwrap();
        let expected = match mark {
            '=' => theirs.is_ok(),
            '-' => false,
            _ => true,
        };
        let is_listed = *mark == '=' || theirs.is_ok() != expected;
        if ours.status.success() != expected || !is_listed {
            let said = String::from_utf8_lossy(&ours.stderr).into_owned();
            differences.push(format!("{mark} {directive}\nCoreDNS: {theirs:?}\nours: {said}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}
