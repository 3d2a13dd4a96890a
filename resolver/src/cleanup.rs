//! `cleanup`: takes away everything that we ever made on this node, unless pods live by it.
//!
//! ```text
//!   who listens? ─► who has the address in resolv.conf? ([`crate::pods`]) ─► addresses, devices, rules go
//! ```
//!
//! Without the rules a pod's query to the address is refused, and without the address it goes nowhere. So a node where it
//! cannot be seen who uses them is left alone as one where somebody does. `--force` asks nobody.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use nodestub_corefile::config::Scheme;
use nodestub_dataplane::{Error, Removed};

use crate::listen::is_free;
use crate::pods::{self, Unreadable};

/// Pods that are named in the refusal; of more, the number.
const NAMED: usize = 10;

/// Where clients ask over TLS, unless the Corefile says another port, which is not known here.
const TLS_PORT: u16 = 853;

/// What is asked of `cleanup`.
#[derive(Debug)]
pub struct CleanUp {
    /// The addresses that nobody may use.
    pub addresses: Vec<IpAddr>,
    /// The port of DNS.
    pub port: u16,
    /// The node's `/`, as it is seen from here.
    pub host_root: PathBuf,
    /// Whether this process runs in a pod.
    pub in_a_pod: bool,
    /// Asks nobody.
    pub force: bool,
}

/// Takes away everything that we ever made on this node.
///
/// # Errors
/// Somebody uses it, that cannot be seen, or the kernel refuses.
pub async fn clean_up(wanted: &CleanUp) -> Result<Removed, CleanUpError> {
    if !wanted.force {
        nobody_uses(wanted)?;
    }
    nodestub_dataplane::cleanup().await.map_err(CleanUpError::Kernel)
}

fn nobody_uses(wanted: &CleanUp) -> Result<(), CleanUpError> {
    let mut addresses = wanted.addresses.iter();
    if let Some(address) = addresses.find(|address| somebody_listens(**address, wanted.port)) {
        return Err(CleanUpError::InUse(*address));
    }
    let found = pods::that_use(&wanted.addresses, &wanted.host_root).map_err(CleanUpError::Unreadable)?;
    if !found.users.is_empty() {
        return Err(CleanUpError::Pods { addresses: wanted.addresses.clone(), pods: found.users });
    }
    if found.containers == 0 && (wanted.in_a_pod || pods::has_kubelet(&wanted.host_root)) {
        return Err(CleanUpError::Blind(wanted.host_root.clone()));
    }
    Ok(())
}

/// In the clear at the port of DNS, or over TLS at the usual one.
fn somebody_listens(address: IpAddr, port: u16) -> bool {
    let asked = [(port, Scheme::Dns), (port, Scheme::Tls), (TLS_PORT, Scheme::Tls)];
    asked.into_iter().any(|(port, scheme)| !is_free(SocketAddr::new(address, port), scheme))
}

/// Why nothing, or not everything, was taken away.
#[derive(Debug)]
pub enum CleanUpError {
    /// Something listens on this address.
    InUse(IpAddr),
    /// Pods have one of the addresses in their resolv.conf.
    Pods {
        /// The addresses.
        addresses: Vec<IpAddr>,
        /// By namespace and name.
        pods: BTreeSet<String>,
    },
    /// Something of the container runtime's cannot be read.
    Unreadable(Unreadable),
    /// There are pods, and no container is to be seen below this folder.
    Blind(PathBuf),
    /// The kernel refused.
    Kernel(Error),
}

const HOW_TO_SEE: &str = "mount the node's / read-only in the container (a volume hostPath: {path: /}) and name the place \
                          with --host-root, or give --force";

impl fmt::Display for CleanUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(address) => write!(
                f,
                "something listens on {address}, so pods may be using it: stop the resolver first, or give --force"
            ),
            Self::Pods { addresses, pods } => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let named: Vec<&str> = pods.iter().take(NAMED).map(String::as_str).collect();
                let number = pods.len();
                let of = if number == 1 { "pod of this node has" } else { "pods of this node have" };
                write!(f, "{number} {of} {} as nameserver: {}", addresses.join(" or "), named.join(", "))?;
                if number > NAMED {
                    write!(f, " and {} more", number - NAMED)?;
                }
                write!(
                    f,
                    ". Delete them, or have them made anew without it; or give --force, and they lose DNS"
                )
            }
            Self::Unreadable(cause) => {
                write!(f, "it cannot be seen whether pods use the address: {cause}; {HOW_TO_SEE}")
            }
            Self::Blind(root) => write!(
                f,
                "it cannot be seen whether pods use the address: no container runtime's folder is below {}; {HOW_TO_SEE}",
                root.display()
            ),
            Self::Kernel(cause) => write!(f, "{cause}"),
        }
    }
}

impl std::error::Error for CleanUpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::InUse(_) | Self::Pods { .. } | Self::Blind(_) => None,
            Self::Unreadable(cause) => Some(cause),
            Self::Kernel(cause) => Some(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_where_pods_must_be_and_none_can_be_seen() {
        let node = tempfile::tempdir().unwrap();
        let asked = |in_a_pod| CleanUp {
            addresses: vec![],
            port: 53,
            host_root: node.path().into(),
            in_a_pod,
            force: false,
        };
        assert!(nobody_uses(&asked(false)).is_ok());
        let text = nobody_uses(&asked(true)).unwrap_err().to_string();
        assert!(
            text.contains("--host-root") && text.contains("--force") && text.contains("hostPath"),
            "{text}"
        );
        std::fs::create_dir_all(node.path().join("var/lib/kubelet")).unwrap();
        assert!(matches!(nobody_uses(&asked(false)), Err(CleanUpError::Blind(_))));
    }

    #[test]
    fn names_ten_pods_and_the_number_of_the_others() {
        let pods = (0..12).map(|number| format!("default/web-{number:02}")).collect();
        let refusal = CleanUpError::Pods { addresses: vec!["169.254.20.10".parse().unwrap()], pods };
        let text = refusal.to_string();
        assert!(
            text.starts_with("12 pods of this node have 169.254.20.10 as nameserver: default/web-00, "),
            "{text}"
        );
        assert!(text.contains("default/web-09 and 2 more") && !text.contains("web-10"), "{text}");
    }
}
