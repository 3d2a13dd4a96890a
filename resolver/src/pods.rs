//! Which pods of this node have an address in their resolv.conf: found without an API server and without asking anybody.
//!
//! Each running container has a folder of its runtime's, with the OCI specification by which it was started. It says which
//! file of the node is the container's /etc/resolv.conf, and its annotations say whose pod it is:
//!
//! ```text
//!   RUNTIME'S FOLDER/.../ID/config.json ─┬─ mounts: /etc/resolv.conf ─► the file, as it is now ─► nameservers
//!                                        └─ annotations ─► namespace/name
//! ```
//!
//! | runtime | folder |
//! | --- | --- |
//! | containerd (also k3s, RKE2, k0s, MicroK8s) | `/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID` and the like |
//! | CRI-O | `/run/containers/storage/overlay-containers/ID/userdata` |
//! | Docker, with cri-dockerd | the same as containerd's, namespace `moby`; no names there, so the host name of the container |
//!
//! The folders go when the container ends. All of it is read below `--host-root`, as if that were `/`: a link there leads
//! nowhere else (`openat2`, `RESOLVE_IN_ROOT`). What cannot be read is an error and never "nobody": who cleans up must be sure.
//!
//! Deliberately not here: other processes' /proc/PID/root, which none may look into but who may trace them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nodestub_corefile::nameservers;
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use serde_json::Value;

/// Where runtimes have their containers' folders; `*` is any one name.
const PLACES: [&str; 7] = [
    "run/containerd/io.containerd.runtime.v2.task/*/*/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/*/*/config.json",
    "run/k0s/containerd/io.containerd.runtime.v2.task/*/*/config.json",
    "var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/*/*/config.json",
    "run/docker/containerd/daemon/io.containerd.runtime.v2.task/*/*/config.json",
    "run/containers/storage/overlay-containers/*/userdata/config.json",
    "var/run/containers/storage/overlay-containers/*/userdata/config.json",
];
/// The kubelet's folder: where it is, there are pods.
const KUBELET: &str = "var/lib/kubelet";
/// The annotations that name a pod: containerd's, CRI-O's.
const NAMES: [(&str, &str); 2] = [
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name"),
    ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name"),
];
/// The most containers that are looked at; a kubelet runs 110 pods unless told otherwise.
const MAX_CONTAINERS: usize = 20_000;
/// The longest specification and the longest resolv.conf that are read, in octets.
const MAX_OCTETS: u64 = 8 << 20;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Running containers that were looked at, those between pods' included.
    pub containers: usize,
    /// The pods that use one of the addresses, by namespace and name; a container that bears no name by its host name.
    pub users: BTreeSet<String>,
}

/// Why it is not known who uses them.
#[derive(Debug)]
pub struct Unreadable {
    path: PathBuf,
    cause: io::Error,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {} of the node: {}", self.path.display(), self.cause)
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Looks through the containers that run on the node whose files are below `host_root`.
///
/// # Errors
/// Something is there and cannot be read.
pub fn that_use(addresses: &[IpAddr], host_root: &Path) -> Result<Pods, Unreadable> {
    let root = Root::open(host_root)?;
    let mut specifications = BTreeSet::new();
    for place in PLACES {
        root.find(Path::new(""), place, &mut specifications)?;
    }
    let mut pods = Pods::default();
    for path in specifications {
        // A container that ended meanwhile uses nothing.
        let Some(text) = root.read(&path)? else { continue };
        let garbled = |cause: serde_json::Error| Unreadable { path: path.clone(), cause: cause.into() };
        let specification: Value = serde_json::from_slice(&text).map_err(garbled)?;
        pods.containers += 1;
        let Some(resolv_conf) = resolv_conf_of(&specification) else { continue };
        let Some(text) = root.read(Path::new(resolv_conf))? else {
            // Gone with its container, or not below the root: the difference is everything.
            if root.read(&path)?.is_none() {
                continue;
            }
            let cause = io::Error::new(io::ErrorKind::NotFound, "it is not below --host-root");
            return Err(Unreadable { path: resolv_conf.into(), cause });
        };
        let asked = nameservers(&String::from_utf8_lossy(&text));
        if asked.iter().any(|server| addresses.contains(&server.ip())) {
            pods.users.insert(name_of(&specification).unwrap_or_else(|| path.display().to_string()));
        }
    }
    Ok(pods)
}

/// Whether a kubelet is at work on the node whose files are below `host_root`.
pub fn has_kubelet(host_root: &Path) -> bool {
    host_root.join(KUBELET).is_dir()
}

/// The node's file for the container's /etc/resolv.conf.
fn resolv_conf_of(specification: &Value) -> Option<&str> {
    let mounts = specification.get("mounts")?.as_array()?;
    let mount = mounts
        .iter()
        .find(|mount| mount.get("destination").and_then(Value::as_str) == Some("/etc/resolv.conf"))?;
    mount.get("source")?.as_str()
}

fn name_of(specification: &Value) -> Option<String> {
    let annotation = |key: &str| specification.get("annotations")?.get(key)?.as_str();
    let by_annotation = NAMES
        .iter()
        .find_map(|(namespace, name)| Some(format!("{}/{}", annotation(namespace)?, annotation(name)?)));
    by_annotation.or_else(|| specification.get("hostname")?.as_str().map(str::to_owned))
}

/// The node's `/`.
struct Root(OwnedFd);

impl Root {
    fn open(path: &Path) -> Result<Self, Unreadable> {
        let opened = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        opened.map(Self).map_err(|cause| Unreadable { path: path.into(), cause: cause.into() })
    }

    /// Collects the paths below `folder` that a pattern stands for. What is not there is nobody's.
    fn find(&self, folder: &Path, pattern: &str, found: &mut BTreeSet<PathBuf>) -> Result<(), Unreadable> {
        let Some((before, after)) = pattern.split_once("*/") else {
            found.insert(folder.join(pattern));
            return Ok(());
        };
        let folder = folder.join(before);
        let place = folder.clone();
        let unreadable = |cause: Errno| Unreadable { path: place.clone(), cause: cause.into() };
        let Some(opened) = self.at(&folder, OFlags::DIRECTORY)? else { return Ok(()) };
        for entry in Dir::read_from(opened).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            if found.len() >= MAX_CONTAINERS {
                let cause = io::Error::other(format!("more than {MAX_CONTAINERS} containers"));
                return Err(Unreadable { path: folder, cause });
            }
            self.find(&folder.join(name), after, found)?;
        }
        Ok(())
    }

    /// `None`: it is not there.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Unreadable> {
        let Some(opened) = self.at(path, OFlags::empty())? else { return Ok(None) };
        let mut octets = Vec::new();
        let read = std::fs::File::from(opened).take(MAX_OCTETS).read_to_end(&mut octets);
        read.map(|_| Some(octets)).map_err(|cause| Unreadable { path: path.into(), cause })
    }

    fn at(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>, Unreadable> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = match openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            // A sandbox that does not know the call; then links are followed as they are.
            Err(Errno::NOSYS | Errno::PERM) => {
                let below = path.strip_prefix("/").unwrap_or(path);
                rustix::fs::openat(&self.0, below, flags, Mode::empty())
            }
            opened => opened,
        };
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(cause) => Err(Unreadable { path: path.into(), cause: cause.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LOCAL: &str = "169.254.20.10";

    /// A file of a node below a folder, with the folders that it needs.
    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As containerd 1.7 and 2 write it, with what is read of it.
    fn containerd(root: &Path, id: &str, name: &str, nameserver: &str) {
        let source = format!("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{id}/resolv.conf");
        let specification = format!(
            r#"{{"ociVersion": "1.1.0", "hostname": "h", "annotations": {{"io.kubernetes.cri.sandbox-name": "{name}",
                "io.kubernetes.cri.sandbox-namespace": "default"}}, "mounts": [
                {{"destination": "/proc", "type": "proc", "source": "proc"}},
                {{"destination": "/etc/resolv.conf", "type": "bind", "source": "{source}"}}]}}"#
        );
        put(
            root,
            &format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json"),
            &specification,
        );
        put(root, source.trim_start_matches('/'), &format!("search svc\nnameserver {nameserver}\n"));
    }

    fn users(root: &Path) -> Vec<String> {
        that_use(&[LOCAL.parse().unwrap()], root).unwrap().users.into_iter().collect()
    }

    #[test]
    fn names_the_pods_whose_resolv_conf_has_the_address_once_each() {
        let node = tempfile::tempdir().unwrap();
        let root = node.path();
        assert_eq!(that_use(&[LOCAL.parse().unwrap()], root).unwrap(), Pods::default());
        for (id, name, nameserver) in [
            ("1", "web", LOCAL),
            ("2", "web", LOCAL),
            ("3", "other", "10.96.0.10"),
            ("4", "none", "169.254.20.100"),
        ] {
            containerd(root, id, name, nameserver);
        }
        let found = that_use(&[LOCAL.parse().unwrap()], root).unwrap();
        assert_eq!(
            (found.containers, found.users.into_iter().collect::<Vec<_>>()),
            (4, vec!["default/web".into()])
        );
    }

    #[test]
    fn knows_the_folders_of_other_runtimes() {
        let node = tempfile::tempdir().unwrap();
        let root = node.path();
        let crio = "run/containers/storage/overlay-containers/77/userdata";
        let specification = format!(
            r#"{{"annotations": {{"io.kubernetes.pod.name": "db", "io.kubernetes.pod.namespace": "shop"}},
                "mounts": [{{"destination": "/etc/resolv.conf", "source": "/{crio}/resolv.conf"}}]}}"#
        );
        put(root, &format!("{crio}/config.json"), &specification);
        put(root, &format!("{crio}/resolv.conf"), "nameserver 169.254.20.10\n");
        // Docker's names are elsewhere; the host name of a pod's container is the pod's name.
        let docker = "/var/lib/docker/containers/88/resolv.conf";
        let specification = format!(
            r#"{{"hostname": "web-0", "mounts": [{{"destination": "/etc/resolv.conf", "source": "{docker}"}}]}}"#
        );
        put(root, "run/containerd/io.containerd.runtime.v2.task/moby/88/config.json", &specification);
        put(root, &docker[1..], "nameserver 10.96.0.10\nnameserver 169.254.20.10\n");
        assert_eq!(users(root), ["shop/db", "web-0"]);
    }

    #[test]
    fn follows_links_as_the_node_does_and_not_out_of_it() {
        let node = tempfile::tempdir().unwrap();
        let root = node.path();
        containerd(root, "1", "web", LOCAL);
        fs::create_dir_all(root.join("data")).unwrap();
        fs::rename(root.join("var/lib/containerd"), root.join("data/containerd")).unwrap();
        std::os::unix::fs::symlink("/data/containerd", root.join("var/lib/containerd")).unwrap();
        assert_eq!(users(root), ["default/web"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_names_it_and_not_nobody() {
        let node = tempfile::tempdir().unwrap();
        let root = node.path();
        containerd(root, "1", "web", "10.96.0.10");
        // As where only /run is mounted.
        fs::remove_dir_all(root.join("var")).unwrap();
        let error = that_use(&[LOCAL.parse().unwrap()], root).unwrap_err().to_string();
        assert!(error.contains("sandboxes/1/resolv.conf") && error.contains("--host-root"), "{error}");
        put(root, "run/containerd/io.containerd.runtime.v2.task/k8s.io/1/config.json", "{");
        let error = that_use(&[LOCAL.parse().unwrap()], root).unwrap_err().to_string();
        assert!(error.contains("k8s.io/1/config.json"), "{error}");
        assert!(that_use(&[], &root.join("nowhere")).is_err());
    }

    #[test]
    fn knows_a_kubelet_by_its_folder() {
        let node = tempfile::tempdir().unwrap();
        assert!(!has_kubelet(node.path()));
        fs::create_dir_all(node.path().join(KUBELET)).unwrap();
        assert!(has_kubelet(node.path()));
    }
}
