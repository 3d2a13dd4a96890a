//! The pages in docs/directives: one for each directive, and their examples are Corefiles.

use std::path::PathBuf;

use crate::world::World;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/directives"))
}

/// Names of the directives that have a page, and the pages.
fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "README" {
            pages.push((name, std::fs::read_to_string(path).unwrap()));
        }
    }
    pages.sort();
    pages
}

#[test]
fn every_directive_has_a_page_with_all_its_parts_and_a_row_in_the_index() {
    let index = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let unknown = World::new().parse(". {\n xyzzy\n}").unwrap_err();
    let help = unknown.diagnostics()[0].help_text().unwrap();
    let supported: Vec<&str> = help.split_once(": ").unwrap().1.split(", ").collect();
    let pages = pages();
    assert_eq!(pages.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), supported);
    for (name, page) in pages {
        assert!(index.contains(&format!("[`{name}`]({name}.md)")), "{name}");
        for part in ["Description", "Syntax", "Defaults and bounds", "Metrics", "Examples"] {
            assert!(page.contains(&format!("\n## {part}\n")), "{name}: {part}");
        }
    }
}

#[test]
fn every_example_can_be_served() {
    let world = World::new().variable("NODE_NAME", "node1");
    for (name, page) in pages() {
        let examples = page.split_once("\n## Examples\n").unwrap().1;
        for example in examples.split("```corefile\n").skip(1) {
            let text = example.split_once("```").unwrap().0;
            if let Err(report) = world.parse(text) {
                panic!("{name}:\n{report}");
            }
        }
    }
}
