//! What could not run here, and why. A skip is never silent: it is printed, and `tests/run` lists it at the end.

use std::fs::OpenOptions;
use std::io::Write;

/// The variable that names the file which collects skips, one `NAME<TAB>reason` a line.
pub const SKIPS_FILE_VARIABLE: &str = "NODESTUB_SKIPS";

/// Says that a test did not run. The caller returns afterwards.
///
/// The line goes to standard error and, where `NODESTUB_SKIPS` names a file, to its end; a file that cannot be
/// written is said too, for a skip that nobody hears of would look like a pass.
pub fn skip(name: &str, reason: &str) {
    eprintln!("skipped {name}: {reason}");
    let Some(path) = std::env::var_os(SKIPS_FILE_VARIABLE) else { return };
    let line = format!("{}\t{}\n", one_line(name), one_line(reason));
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        // One write of a short line at the end of a file does not mix with another process's.
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("cannot note the skip in {}: {error}", path.display());
    }
}

/// Returns whether node tests can run in this process; if not, the skip has been noted.
///
/// ```no_run
/// fn answers_over_a_veth_pair() {
///     if !nodestub_lab::skip::can_make_namespaces("answers_over_a_veth_pair") {
///         return;
///     }
/// }
/// ```
pub fn can_make_namespaces(test: &str) -> bool {
    match crate::rights() {
        crate::Rights::Root => true,
        crate::Rights::UserNamespace => {
            skip(test, "needs rights for namespaces: run it as root, or under `nodestub-isolate`");
            false
        }
        crate::Rights::None(reason) => {
            skip(test, &reason);
            false
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}
