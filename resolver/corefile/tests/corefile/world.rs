//! A world in memory, and short ways to parse in it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nodestub_corefile::config::ServerBlock;
use nodestub_corefile::{Environment, Loaded, Options, Report, parse};

/// Files and variables; whatever is not there does not exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    pub(crate) files: BTreeMap<PathBuf, String>,
    pub(crate) variables: BTreeMap<String, String>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::default().file("/etc/resolv.conf", "nameserver 192.0.2.53\n").file("/etc/hosts", "")
    }

    pub(crate) fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.into(), text.into());
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    pub(crate) fn parse(&self, text: &str) -> Result<Loaded, Report> {
        parse("/etc/Corefile", text, &Options::default(), self)
    }
}

impl Environment for World {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if self.files.keys().any(|file| file != path && file.starts_with(path)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.files
            .get(path)
            .map(|text| text.clone().into_bytes())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let below = self.files.keys().filter_map(|file| file.strip_prefix(directory).ok());
        let names = below.filter_map(|rest| rest.components().next());
        Ok(names.map(|name| name.as_os_str().to_string_lossy().into_owned()).collect())
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
}

/// The blocks of a Corefile that is right, warnings allowed.
#[track_caller]
pub(crate) fn blocks(text: &str) -> Vec<ServerBlock> {
    match World::new().parse(text) {
        Ok(loaded) => loaded.config.blocks,
        Err(report) => panic!("{text}\n{report}"),
    }
}

/// The only block of `. { DIRECTIVES }`.
#[track_caller]
pub(crate) fn block(directives: &str) -> ServerBlock {
    let mut blocks = blocks(&format!(". {{\n{directives}\n}}"));
    assert_eq!(blocks.len(), 1);
    blocks.remove(0)
}

/// The messages of a Corefile that is wrong.
#[track_caller]
pub(crate) fn messages(text: &str) -> Vec<String> {
    let Err(report) = World::new().parse(text) else { panic!("no error in:\n{text}") };
    report.diagnostics().iter().map(|diagnostic| diagnostic.message().to_owned()).collect()
}

/// `LINE:COLUMN message` of each finding, warnings of a right Corefile included.
pub(crate) fn findings(world: &World, text: &str) -> Vec<String> {
    let report = match world.parse(text) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report,
    };
    report
        .diagnostics()
        .iter()
        .map(|diagnostic| match report.position(diagnostic) {
            Some((file, line, column)) => format!("{file}:{line}:{column} {}", diagnostic.message()),
            None => diagnostic.message().to_owned(),
        })
        .collect()
}
