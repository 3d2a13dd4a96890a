//! Blocks, keys, snippets, imports and variables, and where each mistake is shown.

use crate::world::{World, blocks, findings, messages};
use nodestub_corefile::{Options, System, load, parse};

/// Zones with ports of each block.
#[track_caller]
fn zones(text: &str) -> Vec<Vec<String>> {
    let key = |key: &nodestub_corefile::config::ZoneKey| format!("{}:{}", key.zone, key.port);
    blocks(text).iter().map(|block| block.zones.iter().map(key).collect()).collect()
}

#[test]
fn reads_blocks_with_and_without_braces() {
    for (text, expected) in [
        ("localhost", vec![vec!["localhost.:53"]]),
        ("localhost\n  errors", vec![vec!["localhost.:53"]]),
        ("localhost:1234\n  errors stdout\n log", vec![vec!["localhost.:1234"]]),
        ("localhost {\n  errors\n}", vec![vec!["localhost.:53"]]),
        ("localhost\n{\n  errors\n}", vec![vec!["localhost.:53"]]),
        ("localhost { }", vec![vec!["localhost.:53"]]),
        ("a b:54 {\n}", vec![vec!["a.:53", "b.:54"]]),
        ("{$NOT_SET} a \"\" {\n}", vec![vec!["a.:53"]]),
        ("(s) {\n log\n}\na { import s\n errors\n}", vec![vec!["a.:53"]]),
        ("a, b {\n}", vec![vec!["a.:53", "b.:53"]]),
        ("a,\nb,\n c {\n}", vec![vec!["a.:53", "b.:53", "c.:53"]]),
        ("a,\n  b:1,\n  c", vec![vec!["a.:53", "b.:1", "c.:53"]]),
        ("a {\n}\nb {\n}", vec![vec!["a.:53"], vec!["b.:53"]]),
        ("a {\n} b {\n}", vec![vec!["a.:53"], vec!["b.:53"]]),
        ("a {\n errors {\n }\n cache {\n }\n}", vec![vec!["a.:53"]]),
        ("dns://a {\n}", vec![vec!["a.:53"]]),
        ("10.0.0.0/15 {\n}", vec![vec!["0.10.in-addr.arpa.:53", "1.10.in-addr.arpa.:53"]]),
        ("\u{feff}. {\r\n errors\r\n}\r\n", vec![vec![".:53"]]),
    ] {
        assert_eq!(zones(text), expected, "{text:?}");
    }
}

#[test]
fn a_zone_without_a_port_takes_the_one_of_the_options() {
    let options = Options { default_port: 1053, ..Options::default() };
    let loaded = parse("Corefile", "a b:54\n errors", &options, &World::new()).unwrap();
    let ports: Vec<_> = loaded.config.blocks[0].zones.iter().map(|key| key.port).collect();
    assert_eq!(ports, [1053, 54]);
}

#[test]
fn rejects_a_broken_structure_where_it_breaks() {
    for (text, expected) in [
        ("a, {\n}", "1:1 another zone is expected after the comma"),
        ("a, b,", "1:4 another zone is expected after the comma"),
        ("a\n  cache {\n    keepttl", "2:9 this `{` is never closed"),
        ("a {\n errors\n", "1:3 this `{` is never closed"),
        ("a\n cache {\n } }", "3:4 `}` stands behind a `}`"),
        ("a {\n cache {\n } errors\n}", "3:4 `errors` stands behind a `}`"),
        ("a {\n cache { keepttl }\n}", "2:18 `}` must stand on a line of its own"),
        ("a { errors }", "1:12 `}` must stand on a line of its own"),
        ("a {\n}\n}", "3:1 `}` closes nothing"),
        ("a\n errors\n}", "3:1 `}` closes nothing"),
        ("a {\n cache\n {\n }\n}", "3:2 `{` opens nothing"),
        ("a {\n cache {\n  disable success {\n }\n}", "3:19 this option takes no braces"),
        ("{\n errors\n}", "1:1 a server block needs a zone before its `{`"),
        ("a {\n}\nb\n errors", "3:1 a server block after another one needs braces"),
        ("\"\"", "1:1 a server block needs a zone before its `{`"),
        ("{$NONE} {\n}", "1:1 a server block needs a zone before its `{`"),
        ("a {}\n", "1:3 `{}` is not a domain name: a brace stands in it"),
        ("a{\n errors\n}", "3:1 `}` closes nothing"),
        ("a \"b", "1:3 a quote is never closed"),
    ] {
        let found = findings(&World::new(), text);
        assert!(found.contains(&format!("/etc/Corefile:{expected}")), "{text:?}: {found:?}");
    }
    assert_eq!(messages(""), ["no server block in /etc/Corefile"]);
    assert_eq!(messages("# nothing\n(snippet) {\n errors\n}"), ["no server block in /etc/Corefile"]);
}

#[test]
fn finds_all_mistakes_of_meaning_at_once() {
    let text = "https://. {\n cache -1\n erratic\n forwrd . 9.9.9.9\n forward . x:y\n}\n";
    assert_eq!(
        findings(&World::new(), text),
        [
            "/etc/Corefile:1:1 serving over `https://` is not supported by this version",
            "/etc/Corefile:2:8 `-1` is not a number from 1 to 4294967295",
            "/etc/Corefile:3:2 `erratic` is not supported by this version",
            "/etc/Corefile:4:2 unknown directive `forwrd`",
            "/etc/Corefile:5:12 `x:y` is neither an IP address, nor a file, nor a host name",
        ]
    );
}

#[test]
fn reads_over_the_braces_of_a_directive_that_it_does_not_know() {
    let text = ". {\n etcd IN A {\n  answer \"{{ .Name }}\" {\n }\n }\n kubernetes { x }\n errors\n}";
    assert_eq!(
        messages(text),
        ["`etcd` is not supported by this version", "`kubernetes` is not supported by this version"]
    );
}

#[test]
fn suggests_the_directive_that_was_probably_meant() {
    let report = World::new().parse(". {\n fowrard . 9.9.9.9\n}").unwrap_err();
    assert_eq!(report.diagnostics()[0].help_text(), Some("did you mean `forward`?"));
    let report = World::new().parse(". {\n xyzzy\n}").unwrap_err();
    assert!(
        report.diagnostics()[0].help_text().unwrap().starts_with("these directives are supported: acl, any")
    );
}

#[test]
fn puts_snippets_where_they_are_imported() {
    let found = blocks(
        "(common) {\n errors\n cache {\n  import ttl\n }\n}\n(ttl) { success 2048 7\n}\n\
         a {\n import common\n log\n}\nb {\n log\n import common\n}",
    );
    for block in &found {
        assert!(block.errors.is_some() && !block.log.is_empty());
        assert_eq!(block.cache.as_ref().unwrap().success.max_ttl, 7);
    }
    assert_eq!(found.len(), 2);
}

#[test]
fn says_a_mistake_in_a_snippet_once() {
    let text = "(s) {\n cahce 30\n}\na {\n import s\n}\nb {\n import s\n}";
    assert_eq!(findings(&World::new(), text), ["/etc/Corefile:2:2 unknown directive `cahce`"]);
}

#[test]
fn imports_files_relative_to_the_importing_one() {
    let world = World::new()
        .file("/etc/conf/one.conf", "a {\n import two\n}\nimport ../more/zones")
        .file("/etc/conf/two", "errors\nlog")
        .file("/etc/more/zones", "b\n{\n}\n");
    // A path with `..` is not tidied: links may stand in it.
    let world = world.file("/etc/conf/../more/zones", "b\n{\n}\n");
    let config = world.parse("import ./conf/one.conf\nc {\n}").unwrap().config;
    let zones: Vec<_> = config.blocks.iter().map(|block| block.zones[0].zone.to_string()).collect();
    assert_eq!(zones, ["a.", "b.", "c."]);
    assert!(config.blocks[0].errors.is_some() && !config.blocks[0].log.is_empty());
}

#[test]
fn imports_the_files_of_a_pattern_in_order_and_none_is_fine() {
    let world = World::new()
        .file("/etc/zones/b.conf", "b {\n}")
        .file("/etc/zones/a.conf", "a {\n}\nimport b.conf.part")
        .file("/etc/zones/b.conf.part", "part {\n}")
        .file("/etc/zones/dir.conf/inner", "no {\n}")
        .file("/etc/zones/readme", "not a Corefile");
    let config = world
        .parse("import zones/*.conf\nimport nothing/*\nc {\n import nothing/*.x\n errors\n}")
        .unwrap()
        .config;
    let zones: Vec<_> = config.blocks.iter().map(|block| block.zones[0].zone.to_string()).collect();
    assert_eq!(zones, ["a.", "part.", "b.", "c."]);
}

#[test]
fn takes_import_for_a_directive_only_at_the_start_of_a_line() {
    let world = World::new().file("import", "nameserver 192.0.2.1");
    assert!(world.parse(". {\n forward . import\n}").is_ok());
}

#[test]
fn rejects_imports_that_cannot_be() {
    for (text, expected) in [
        ("import", "1:1 `import` needs a file, a pattern or the name of a snippet"),
        ("import a b", "1:10 `import` takes one file, pattern or name"),
        ("import \"\"", "1:8 the name of the file to import is empty"),
        ("import missing.conf", "1:8 cannot import `missing.conf`"),
        ("import zones", "1:8 cannot import `zones`"),
        ("import /*/*.txt", "1:8 a pattern may hold one `*` and one `?`, and no `[`"),
        ("import /???/?*?o", "1:8 a pattern may hold one `*` and one `?`, and no `[`"),
        ("import /[a-z]", "1:8 a pattern may hold one `*` and one `?`, and no `[`"),
        ("import {$}", "1:8 cannot import `{$}`"),
        ("import {%%}", "1:8 cannot import `{%%}`"),
        (". {\n cache {\n  import missing\n }\n}", "3:10 cannot import `missing`"),
        ("(s) {\n errors\n}\n(s) {\n}\n", "4:1 the snippet `s` is defined twice"),
        ("(s)\nerrors", "1:1 the snippet `s` has no body"),
        ("(s) {\n import s\n}\n. {\n import s\n}", "2:9 `s` imports itself"),
        ("(s) {\n import t\n}\n(t) {\n import s\n}\n. {\n import s\n}", "5:9 `s` imports itself"),
        ("import Corefile", "1:8 `Corefile` imports itself"),
    ] {
        let world = World::new().file("/etc/zones/file", "").file("/etc/Corefile", text);
        assert_eq!(findings(&world, text), [format!("/etc/Corefile:{expected}")], "{text:?}");
    }
}

#[test]
fn names_the_imported_file_in_which_a_mistake_stands() {
    let world = World::new().file("/etc/part", "\n  erors\n");
    assert_eq!(findings(&world, ". {\n import part\n}"), ["/etc/part:2:3 unknown directive `erors`"]);
}

#[test]
fn stops_at_too_many_imports_and_words() {
    let snippets = |levels: usize, each: usize| {
        let mut text = "(s0) {\n errors\n}\n".to_owned();
        for level in 1..=levels {
            text += &format!("(s{level}) {{\n{}}}\n", format!(" import s{}\n", level - 1).repeat(each));
        }
        text + &format!(". {{\n import s{levels}\n}}")
    };
    let too_many = messages(&snippets(20, 10));
    assert!(too_many.contains(&"more than 10000 imports".to_owned()), "{too_many:?}");
    let too_deep = messages(&snippets(150, 1));
    assert!(too_deep.contains(&"more than 100 imports inside one another".to_owned()), "{too_deep:?}");
    let long =
        format!("(s) {{\n{}}}\n. {{\n{}}}", " errors stdout\n".repeat(2000), " import s\n".repeat(600));
    let too_long = messages(&long);
    assert!(too_long.contains(&"more than 1000000 words with all imports".to_owned()), "{too_long:?}");
}

#[test]
fn fills_in_variables_anywhere_in_a_word() {
    let world =
        World::new().variable("ZONE", "cluster.local").variable("PORT", "1053").variable("DIR", "cache");
    let config = world.parse("{$ZONE}:{%PORT%} {\n {$DIR} 7\n forward . 9.9.9.9:{$PORT}\n}").unwrap().config;
    let block = &config.blocks[0];
    assert_eq!((block.zones[0].zone.to_string().as_str(), block.zones[0].port), ("cluster.local.", 1053));
    assert_eq!(block.cache.as_ref().unwrap().success.max_ttl, 7);
    assert_eq!(
        findings(&world, ". {\n log {$NAME}x\n}"),
        ["/etc/Corefile:2:6 the environment variable `NAME` is not set"]
    );
}

#[test]
fn points_at_the_users_text_behind_a_variable() {
    let world = World::new().variable("TTL", "a very long value that is no number");
    assert_eq!(
        findings(&world, ". {\n reload {$TTL} 5\n}"),
        [
            "/etc/Corefile:2:9 `a very long value that is no number` is not a duration: a number and one of the units ns, us, ms, s, m, h is expected",
            "/etc/Corefile:2:16 `5` is not a duration: its unit is missing",
        ]
    );
}

#[test]
fn rejects_a_zone_that_is_served_twice_and_names_both_places() {
    for text in [
        ". {\n}\n. {\n}",
        ".:53 . {\n}",
        "a {\n bind 127.0.0.1\n}\na {\n bind 127.0.0.2 127.0.0.1\n}",
        "a {\n bind 127.0.0.1\n}\na {\n}",
        "a {\n}\nA. {\n bind 127.0.0.1\n}",
        "10.0.0.0/23 {\n}\n1.0.10.in-addr.arpa {\n}",
        "a {\n bind lo\n}\na {\n bind lo\n}",
    ] {
        let report = World::new().parse(text).unwrap_err();
        assert_eq!(report.diagnostics().len(), 1, "{text}\n{report}");
        assert!(report.diagnostics()[0].message().ends_with("is served twice"), "{report}");
        assert_eq!(report.diagnostics()[0].related().count(), 1, "{report}");
    }
    assert_eq!(
        messages("a {\n bind ::1 ::1\n}"),
        ["`a.` on port 53 is served twice: this stands in `bind` already"]
    );
}

#[test]
fn serves_a_zone_on_several_ports_and_addresses() {
    blocks(". {\n}\n.:54 {\n}\na {\n}");
    blocks("a {\n bind 127.0.0.1\n}\na {\n bind 127.0.0.2\n}\na {\n bind lo\n}");
}

#[test]
fn warns_of_an_address_in_place_of_a_zone() {
    assert_eq!(
        findings(&World::new(), "127.0.0.1:53 {\n}"),
        ["/etc/Corefile:1:1 `127.0.0.1:53` is read as the name of a zone"]
    );
}

#[test]
fn loads_real_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("Corefile");
    std::fs::write(directory.path().join("part.conf"), "errors").unwrap();
    std::fs::write(&path, ". {\n import *.conf\n}").unwrap();
    assert!(load(&path, &Options::default()).unwrap().config.blocks[0].errors.is_some());

    std::fs::write(&path, b". {\n \xff\n}").unwrap();
    let report = load(&path, &Options::default()).unwrap_err();
    assert!(report.to_string().contains("is not UTF-8 text"), "{report}");
    let report = load(&directory.path().join("none"), &Options::default()).unwrap_err();
    assert!(report.to_string().contains("cannot read"), "{report}");
    let report =
        parse("Corefile", "import {$NODESTUB_SURELY_NOT_SET}", &Options::default(), &System).unwrap_err();
    assert_eq!(report.diagnostics().len(), 2, "{report}");
}
