//! The store: a folder with `ca.crt`, `tls.crt` and `tls.key`, as cert-manager and Secret volumes lay them out.
//!
//! In a Secret volume each file is a link into `..data`, itself a link to the folder of one version. That link is followed
//! once, and all three files are read behind it, so a volume that is exchanged meanwhile never gives a mixture.
//!
//! Each file is written beside its place and renamed into it, so that no reader ever sees half a file. The three
//! renames are three steps: a reader that comes between them finds a key and a certificate of different pairs,
//! refuses them ([`PairError::Mismatch`]), keeps what it has and looks again.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::pair::{Material, Pair, PairError};

/// The file of the CA, or of several: what clients trust.
pub const AUTHORITY_FILE: &str = "ca.crt";
/// The file of the serving certificate and its intermediates.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// The file of the serving certificate's key. Its mode is 0600.
pub const KEY_FILE: &str = "tls.key";

/// The largest file that is read, in bytes: the bound of a whole Secret (1 MiB,
/// `MaxSecretSize` in Kubernetes' `pkg/apis/core/types.go`).
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// In a volume of Kubernetes: the link to the folder of the version that is in force; it is exchanged as a whole.
const VERSION_LINK: &str = "..data";

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// A folder that certificates are kept in.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Names the folder; nothing is touched yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all three files, making the folder if it is not there.
    ///
    /// # Errors
    /// Names the step and the file that failed.
    pub fn write(&self, material: &Material) -> Result<(), FolderError> {
        fs::create_dir_all(&self.path)
            .map_err(|source| FolderError::new(Step::Create, &self.path, source))?;
        // The CA first: whoever sees the new certificate can find its CA.
        self.replace(AUTHORITY_FILE, &material.authority, CERTIFICATE_MODE)?;
        self.replace(KEY_FILE, &material.key, KEY_MODE)?;
        self.replace(CERTIFICATE_FILE, &material.certificate, CERTIFICATE_MODE)
    }

    /// Reads the text of all three files; a missing `ca.crt` counts as empty. In a volume of Kubernetes all three are of
    /// the same version.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn material(&self) -> Result<Material, FolderError> {
        let version = fs::read_link(self.path.join(VERSION_LINK)).ok();
        let read = self.read_version(version.as_deref());
        // Exchanged and removed while it was read: the new one is there in whole.
        let newer = fs::read_link(self.path.join(VERSION_LINK)).ok();
        if read.is_err() && newer != version { self.read_version(newer.as_deref()) } else { read }
    }

    fn read_version(&self, version: Option<&Path>) -> Result<Material, FolderError> {
        let folder = version.map_or_else(|| self.path.clone(), |version| self.path.join(version));
        let authority = match text(&folder, AUTHORITY_FILE) {
            Err(FolderError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        Ok(Material {
            certificate: text(&folder, CERTIFICATE_FILE)?,
            key: text(&folder, KEY_FILE)?,
            authority,
        })
    }

    /// Reads and checks what lies in the folder.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(&self, now: SystemTime) -> Result<Pair, FolderError> {
        self.check(&self.material()?, now)
    }

    /// Checks text that was read from here.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn check(&self, material: &Material, now: SystemTime) -> Result<Pair, FolderError> {
        Pair::parse(material, now).map_err(|source| self.refuse(source))
    }

    pub(crate) fn refuse(&self, source: PairError) -> FolderError {
        FolderError::Pair { folder: self.path.clone(), source }
    }

    fn replace(&self, name: &str, text: &[u8], mode: u32) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!(".{name}.{}.new", std::process::id()));
        // A left-over of a crash, which may have another mode.
        match fs::remove_file(&beside) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(FolderError::new(Step::Write, &beside, source));
            }
            _ => {}
        }
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)
            .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
            .map_err(|source| FolderError::new(Step::Write, &beside, source))
            .and_then(|()| {
                fs::rename(&beside, &path).map_err(|source| FolderError::new(Step::Rename, &path, source))
            });
        if written.is_err() {
            // The cause is reported; that the rest could not be cleared away would only hide it.
            drop(fs::remove_file(&beside));
        }
        written
    }
}

/// Reads a file of a folder.
fn text(folder: &Path, name: &str) -> Result<Vec<u8>, FolderError> {
    let path = folder.join(name);
    let file = File::open(&path).map_err(|source| FolderError::new(Step::Open, &path, source))?;
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|source| FolderError::new(Step::Read, &path, source))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FolderError::TooLarge { path });
    }
    Ok(text)
}

/// What was being done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the folder.
    Create,
    /// Opening a file to read it.
    Open,
    /// Reading an open file.
    Read,
    /// Writing a new file beside the old one.
    Write,
    /// Renaming the new file into its place.
    Rename,
}

/// Why the folder gave no pair, or could not be written.
#[derive(Debug)]
#[non_exhaustive]
pub enum FolderError {
    /// The file system refused.
    Io {
        /// What was being done.
        step: Step,
        /// To which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The files cannot be served.
    Pair {
        /// Where they lie.
        folder: PathBuf,
        /// What is wrong with them.
        source: PairError,
    },
}

impl FolderError {
    fn new(step: Step, path: &Path, source: io::Error) -> Self {
        Self::Io { step, path: path.to_owned(), source }
    }
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { step, path, .. } => {
                let step = match step {
                    Step::Create => "making the folder",
                    Step::Open => "opening",
                    Step::Read => "reading",
                    Step::Write => "writing",
                    Step::Rename => "renaming a new file to",
                };
                write!(f, "{step} {} failed", path.display())
            }
            Self::TooLarge { path } => {
                write!(f, "{} is larger than {MAX_FILE_BYTES} bytes", path.display())
            }
            Self::Pair { folder, .. } => {
                write!(f, "the certificate in {} cannot be served", folder.display())
            }
        }
    }
}

impl std::error::Error for FolderError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Pair { source, .. } => Some(source),
            Self::TooLarge { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;
    use crate::issue::{Lifetimes, ServingNames, issue};

    fn material() -> Material {
        let names = ServingNames {
            service: "web".to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: Vec::new(),
            extra: Vec::new(),
        };
        issue(&names, Lifetimes::for_leaf(Duration::from_secs(3600)), SystemTime::now()).unwrap()
    }

    #[test]
    fn keeps_what_it_was_given_and_the_key_to_itself() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path().join("new/folder"));
        let first = material();
        folder.write(&first).unwrap();
        assert_eq!(folder.material().unwrap(), first);
        let second = material();
        folder.write(&second).unwrap();
        assert_eq!(folder.material().unwrap(), second);
        let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left over");
        folder.read(SystemTime::now()).unwrap();
    }

    #[test]
    fn names_the_file_that_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let error = folder.read(SystemTime::now()).unwrap_err();
        assert!(
            error.to_string().contains("opening") && error.to_string().contains(CERTIFICATE_FILE),
            "{error}"
        );
        folder.write(&material()).unwrap();
        fs::remove_file(home.path().join(AUTHORITY_FILE)).unwrap();
        folder.read(SystemTime::now()).unwrap();
        fs::remove_file(home.path().join(KEY_FILE)).unwrap();
        assert!(folder.read(SystemTime::now()).unwrap_err().to_string().contains(KEY_FILE));
    }

    #[test]
    fn rejects_files_over_the_bound() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        folder.write(&material()).unwrap();
        let large = File::create(home.path().join(CERTIFICATE_FILE)).unwrap();
        large.set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(matches!(folder.read(SystemTime::now()), Err(FolderError::TooLarge { .. })));
    }

    #[test]
    fn says_which_folder_cannot_be_made() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Folder::new(file.join("below")).write(&material()).unwrap_err();
        assert!(error.to_string().starts_with("making the folder"), "{error}");
    }
}
