//! What a Corefile may refer to outside its own text: files and environment variables.
//!
//! The parser is pure; it reaches the world through [`Environment`] alone. [`System`] is the real one.
//! The globs of `import` are matched here too, over [`Environment::list`].

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

/// Longest file that is read, in bytes. A ConfigMap holds at most 1 MiB; imported files may be larger.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// The world around a Corefile.
pub trait Environment {
    /// The bytes of a file.
    ///
    /// # Errors
    /// Whatever reading gives; `NotFound` and `IsADirectory` are told apart from the rest.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// Whatever listing gives.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// An environment variable; `None` when it is not set.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The process's own files and variables.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Environment for System {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_FILE_BYTES) {
            Ok(bytes)
        } else {
            let message = format!("the file is larger than {} MiB", MAX_FILE_BYTES >> 20);
            Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn variable(&self, name: &str) -> Option<String> {
        // `var_os` would panic on neither of these, but they cannot name a variable.
        if name.is_empty() || name.contains(['=', '\0']) {
            return None;
        }
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

/// Whether a path of `import` is a pattern.
pub(crate) fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// Whether CoreDNS takes the pattern: at most one `*` and one `?`, and no `[...]`.
pub(crate) fn is_simple_pattern(path: &str) -> bool {
    let count = |wanted| path.chars().filter(|&c| c == wanted).count();
    count('*') <= 1 && count('?') <= 1 && !path.contains('[')
}

/// The paths that a pattern stands for, sorted; those that do not exist are found out by reading them.
pub(crate) fn expand_pattern(environment: &dyn Environment, pattern: &Path) -> Vec<PathBuf> {
    let mut found = BTreeSet::from([PathBuf::new()]);
    for component in pattern.components() {
        let Component::Normal(name) = component else {
            found = found.into_iter().map(|path| path.join(component)).collect();
            continue;
        };
        let name = name.to_string_lossy();
        found = found.into_iter().flat_map(|path| below(environment, &path, &name)).collect();
    }
    found.into_iter().collect()
}

fn below(environment: &dyn Environment, directory: &Path, name: &str) -> Vec<PathBuf> {
    if !is_pattern(name) {
        return vec![directory.join(name)];
    }
    let listed = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let names = environment.list(listed).unwrap_or_default();
    names.iter().filter(|entry| matches(name, entry)).map(|entry| directory.join(entry)).collect()
}

/// `*` is any run of characters, `?` is one; at most one of each, so that this is short work.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => matches_exactly(pattern, name),
        Some((head, tail)) => {
            let (head_length, tail_length) = (head.chars().count(), tail.chars().count());
            let length = name.chars().count();
            length >= head_length + tail_length
                && matches_exactly(head, &name.chars().take(head_length).collect::<String>())
                && matches_exactly(tail, &name.chars().skip(length - tail_length).collect::<String>())
        }
    }
}

fn matches_exactly(pattern: &str, name: &str) -> bool {
    pattern.chars().count() == name.chars().count()
        && pattern.chars().zip(name.chars()).all(|(wanted, c)| wanted == '?' || wanted == c)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Files and variables in memory.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Memory {
        pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
        pub(crate) variables: BTreeMap<String, String>,
    }

    impl Memory {
        pub(crate) fn with_file(mut self, path: &str, text: &str) -> Self {
            self.files.insert(path.into(), text.into());
            self
        }

        pub(crate) fn with_variable(mut self, name: &str, value: &str) -> Self {
            self.variables.insert(name.into(), value.into());
            self
        }
    }

    impl Environment for Memory {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            if self.files.keys().any(|file| file != path && file.starts_with(path)) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
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

    #[test]
    fn matches_one_star_and_one_question_mark() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("*.conf", "a.conf", true),
            ("*.conf", ".conf", true),
            ("*.conf", "a.conf.bak", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("?.conf", "ü.conf", true),
            ("?.conf", "ab.conf", false),
            ("x*y?", "x-yz", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn finds_files_below_a_pattern_in_order() {
        let memory = Memory::default()
            .with_file("/etc/b/zone.conf", "")
            .with_file("/etc/a/zone.conf", "")
            .with_file("/etc/a/other", "");
        let found = expand_pattern(&memory, Path::new("/etc/*/zone.conf"));
        assert_eq!(found, [PathBuf::from("/etc/a/zone.conf"), PathBuf::from("/etc/b/zone.conf")]);
        assert!(expand_pattern(&memory, Path::new("/nowhere/*")).is_empty());
    }

    #[test]
    fn reads_real_files_and_lists_real_directories() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "text").unwrap();
        assert_eq!(System.read(&directory.path().join("a")).unwrap(), b"text");
        assert_eq!(System.list(directory.path()).unwrap(), ["a"]);
        let missing = System.read(&directory.path().join("b")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let directory_read = System.read(directory.path()).unwrap_err();
        assert_eq!(directory_read.kind(), io::ErrorKind::IsADirectory);
        assert_eq!(System.variable("A=B"), None);
    }
}
