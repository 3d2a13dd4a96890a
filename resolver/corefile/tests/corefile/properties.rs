//! Whatever the text, reading it ends with an answer, and every finding lies inside its file.

use crate::world::World;
use nodestub_corefile::Report;
use proptest::prelude::*;

/// Words of which Corefiles are made, so that random ones get far into the parser.
fn word() -> impl Strategy<Value = String> {
    let fixed = [
        ".",
        "a.b:53",
        "{",
        "}",
        "\n",
        "\n",
        "\n",
        "\r\n",
        "bind",
        "lo",
        "127.0.0.1",
        "cache",
        "success",
        "denial",
        "9984",
        "forward",
        "/etc/resolv.conf",
        "except",
        "hosts",
        "fallthrough",
        "log",
        "errors",
        "import",
        "part",
        "*.x",
        "(s)",
        "s",
        "{$A}",
        "{%LOOP%}",
        "#",
        "\"",
        "\\\"",
        "\\",
        ",",
        "a,",
        "__PILLAR__LOCAL__DNS__",
        "__PILLAR__X__",
        "10.0.0.0/15",
        "tls://",
        "tls://.",
        "tls",
        "client_auth",
        "30s",
        "-1",
        "reload",
        "health",
        ":8080",
        "prometheus",
        "template",
        "ü",
        "\u{feff}",
        "\u{85}",
        "\u{1b}[2J",
    ];
    prop_oneof![8 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned), 1 => ".{0,8}"]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec((word(), prop_oneof![4 => Just(" "), 1 => Just("")]), 0..60)
        .prop_map(|words| words.into_iter().map(|(word, gap)| word + gap).collect())
}

fn check(text: &str, imported: &str) -> Result<(), TestCaseError> {
    let world = World::new()
        .file("/etc/part", imported)
        .file("/etc/a.x", imported)
        .variable("A", "forward . 9.9.9.9")
        .variable("LOOP", "{%LOOP%}");
    let (report, is_error): (Report, bool) = match world.parse(text) {
        Ok(loaded) => {
            prop_assert!(!loaded.config.blocks.is_empty());
            prop_assert!(loaded.config.blocks.iter().all(|block| !block.zones.is_empty()));
            (loaded.warnings, false)
        }
        Err(report) => (report, true),
    };
    let errors =
        report.diagnostics().iter().filter(|d| d.severity() == nodestub_corefile::report::Severity::Error);
    prop_assert_eq!(errors.count() > 0, is_error);
    for diagnostic in report.diagnostics() {
        prop_assert_eq!(diagnostic.span().is_some(), report.position(diagnostic).is_some());
        for span in diagnostic.span().into_iter().chain(diagnostic.related()) {
            let source = report.source(span.source);
            prop_assert!(
                source.is_some_and(|source| source.get(span.start..span.end).is_some()),
                "{:?}",
                span
            );
        }
    }
    if is_error {
        prop_assert!(report.to_string().contains("error"));
    }
    let has_colours = report.to_string().contains('\u{1b}');
    prop_assert!(!has_colours);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn texts_of_corefile_words_are_read_or_refused_in_place(text in text(), imported in text()) {
        check(&text, &imported)?;
    }

    #[test]
    fn any_text_is_read_or_refused_in_place(text in any::<String>(), imported in "\\PC{0,20}") {
        check(&text, &imported)?;
    }
}
