//! The `/etc/resolv.conf` of a pod, and which names a resolver library makes of one under it.

use std::fmt;

use serde_json::Value;

use nodestub_lab::Error;

/// glibc's default (`RES_MAXNDOTS` is 15).
const DEFAULT_NDOTS: usize = 1;

/// What a pod's `resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// In order.
    pub(crate) nameservers: Vec<String>,
    /// In order.
    pub(crate) searches: Vec<String>,
    /// `name` or `name:value`.
    pub(crate) options: Vec<String>,
}

impl ResolvConf {
    /// As kubelet composes it for `dnsPolicy: None`: `dnsConfig` and nothing else (`pkg/kubelet/network/dns/dns.go`).
    ///
    /// # Errors
    /// The pod has another policy, or no nameserver.
    pub(crate) fn of_pod(pod: &Value) -> Result<Self, Error> {
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        let policy = spec.get("dnsPolicy").and_then(Value::as_str).unwrap_or("ClusterFirst");
        if policy != "None" {
            return Err(Error::new(format!(
                "compose resolv.conf: the patched pod has dnsPolicy {policy}, not None"
            )));
        }
        let config = spec.get("dnsConfig").unwrap_or(&Value::Null);
        let items = |field: &str| config.get(field).and_then(Value::as_array).into_iter().flatten();
        let texts = |field| items(field).filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
        let option = |option: &Value| {
            let name = option.get("name")?.as_str()?;
            Some(match option.get("value").and_then(Value::as_str) {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            })
        };
        let found = Self {
            nameservers: texts("nameservers"),
            searches: texts("searches"),
            options: items("options").filter_map(option).collect(),
        };
        if found.nameservers.is_empty() {
            return Err(Error::new("compose resolv.conf: the patched pod has no nameserver"));
        }
        Ok(found)
    }

    /// The names that glibc asks for, in order, until one exists (`res_nsearch`).
    pub(crate) fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let dots = name.matches('.').count();
        let searched = self.searches.iter().map(|domain| format!("{name}.{}", domain.trim_end_matches('.')));
        let mut all: Vec<String> = searched.map(|name| format!("{}.", name.trim_end_matches('.'))).collect();
        let itself = format!("{name}.");
        if dots >= self.ndots() {
            all.insert(0, itself);
        } else {
            all.push(itself);
        }
        all
    }

    /// Whether the library asks all servers in turn, and not the first as long as it answers.
    pub(crate) fn rotates(&self) -> bool {
        self.options.iter().any(|option| option == "rotate")
    }

    fn ndots(&self) -> usize {
        let value = self.options.iter().rev().find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
        value.unwrap_or(DEFAULT_NDOTS)
    }
}

impl fmt::Display for ResolvConf {
    /// In the order in which containerd writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.searches.is_empty() {
            writeln!(f, "search {}", self.searches.join(" "))?;
        }
        for nameserver in &self.nameservers {
            writeln!(f, "nameserver {nameserver}")?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({"spec": {"dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["169.254.20.10", "10.96.0.10"],
            "searches": ["default.svc.cluster.local", "svc.cluster.local"],
            "options": [{"name": "ndots", "value": "5"}, {"name": "trust-ad"}, {"name": "x", "value": ""}]}}})
    }

    #[test]
    fn composes_what_kubelet_composes() {
        let text = ResolvConf::of_pod(&pod()).unwrap().to_string();
        let expected = "search default.svc.cluster.local svc.cluster.local\nnameserver 169.254.20.10\n\
                        nameserver 10.96.0.10\noptions ndots:5 trust-ad x\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn rejects_pods_that_would_get_something_else() {
        let mut other = pod();
        other["spec"]["dnsPolicy"] = json!("ClusterFirst");
        assert!(ResolvConf::of_pod(&other).unwrap_err().to_string().contains("ClusterFirst"));
        let mut empty = pod();
        empty["spec"]["dnsConfig"]["nameservers"] = json!([]);
        assert!(ResolvConf::of_pod(&empty).unwrap_err().to_string().contains("no nameserver"));
    }

    #[test]
    fn searches_as_glibc_does() {
        let five = ResolvConf::of_pod(&pod()).unwrap();
        assert_eq!(
            five.candidates("hoge"),
            ["hoge.default.svc.cluster.local.", "hoge.svc.cluster.local.", "hoge."]
        );
        assert_eq!(five.candidates("a.b.c.d.e.f").first().unwrap(), "a.b.c.d.e.f.");
        assert_eq!(five.candidates("hoge."), ["hoge."]);
        let one = ResolvConf { options: Vec::new(), ..five };
        assert_eq!(one.candidates("example.com").first().unwrap(), "example.com.");
        assert_eq!(one.candidates("example.com").len(), 3);
    }
}
