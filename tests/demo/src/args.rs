//! The command line. By hand: six flags are not worth the time that a parser's build takes.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::terminal::Colour;

/// What `--help` prints.
pub const HELP: &str = "\
Shows Nodestub's main job on this machine, with real processes and no cluster:
a Pod goes through the webhook, and resolves names by its node's resolver.

Usage: cargo demo [OPTIONS]

  --manifest FILE  take the first Pod or Pod template of FILE (YAML or JSON)
  --keep           leave it running and print how to ask it with dig, until Ctrl-C
  --loopback       without namespaces, on loopback: less to see, needs no rights at all
  --cluster        on a real one-node Kubernetes cluster instead, made on the spot, from nothing to a pod that asks its
                   node; needs root, Debian and Go, and the first time ten to twenty minutes to build Kubernetes
  --color WHEN     auto, always or never; auto is a terminal without NO_COLOR
  --help           print this

Exit status: 0 when every number is as it should be, 1 when not, 2 for a wrong option.
";

/// What the user wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Another manifest than the demo's own.
    pub manifest: Option<PathBuf>,
    /// Leave everything running until Ctrl-C.
    pub keep: bool,
    /// Make no namespaces even where that is allowed.
    pub loopback: bool,
    /// On a real cluster, made on the spot.
    pub cluster: bool,
    /// When to colour.
    pub colour: Colour,
    /// Print the help and do nothing else.
    pub help: bool,
}

impl Arguments {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let text = word.to_str().unwrap_or_default();
            let (name, attached) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
                _ => (text, None),
            };
            let has_value = attached.is_some();
            let mut value = || {
                let value = attached.clone().or_else(|| words.next());
                value
                    .filter(|value| !value.is_empty())
                    .ok_or_else(|| format!("{name} needs a value; see --help"))
            };
            match name {
                // As with every other program that cargo runs: `cargo demo -- --keep`. The alias has one already.
                "--" => {}
                "--manifest" => arguments.manifest = Some(PathBuf::from(value()?)),
                "--color" | "--colour" => arguments.colour = colour(&value()?)?,
                "--keep" if !has_value => arguments.keep = true,
                "--loopback" if !has_value => arguments.loopback = true,
                "--cluster" if !has_value => arguments.cluster = true,
                "--help" | "-h" if !has_value => arguments.help = true,
                _ => return Err(format!("unknown option {:?}; see --help", word.to_string_lossy())),
            }
        }
        if arguments.cluster && (arguments.loopback || arguments.manifest.is_some()) {
            return Err("--cluster goes with --keep and --color only; see --help".to_owned());
        }
        Ok(arguments)
    }
}

fn colour(value: &OsString) -> Result<Colour, String> {
    match value.to_str() {
        Some("auto") => Ok(Colour::Auto),
        Some("always") => Ok(Colour::Always),
        Some("never") => Ok(Colour::Never),
        _ => Err(format!("--color is auto, always or never, not {:?}", value.to_string_lossy())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn reads_every_option_in_both_forms() {
        let arguments = parse("--manifest a.yaml --keep --loopback --color=never").unwrap();
        assert_eq!(arguments.manifest, Some(PathBuf::from("a.yaml")));
        assert!(arguments.keep && arguments.loopback && !arguments.help);
        assert_eq!(arguments.colour, Colour::Never);
        assert_eq!(parse("--manifest=a=b --color always").unwrap().manifest, Some(PathBuf::from("a=b")));
        assert_eq!(parse("").unwrap(), Arguments::default());
        assert!(parse("-h").unwrap().help);
        let arguments = parse("--cluster --keep").unwrap();
        assert!(arguments.cluster && arguments.keep);
        assert!(parse("-- --keep").unwrap().keep);
    }

    #[test]
    fn rejects_what_it_does_not_know_and_says_where_help_is() {
        for line in [
            "--kepp",
            "file.yaml",
            "--manifest",
            "--manifest=",
            "--keep=yes",
            "--color sometimes",
            "-k",
            "--cluster --loopback",
            "--cluster --manifest a.yaml",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains("--"), "{line}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
