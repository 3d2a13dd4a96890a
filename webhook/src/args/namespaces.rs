//! Namespaces by flags, where nobody watches them in the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;

use super::ArgsError;
use crate::admit::Namespace;
use crate::admit::names::is_label;

/// Namespaces, where nobody watches them.
#[derive(Debug, Args)]
pub(super) struct NamespaceArgs {
    /// A namespace and its labels: NAME[:LABEL=VALUE[,LABEL=VALUE]...] (repeatable; in the environment, with `;` between)
    #[arg(long, env = "NODESTUB_NAMESPACE", value_name = "NAME:LABELS", value_delimiter = ';')]
    namespace: Vec<NamespaceLabels>,
    /// An annotation of such a namespace: NAME:KEY=VALUE (repeatable; in the environment, one on each line)
    #[arg(
        long,
        env = "NODESTUB_NAMESPACE_ANNOTATION",
        value_name = "NAME:KEY=VALUE",
        value_delimiter = '\n'
    )]
    namespace_annotation: Vec<NamespaceAnnotation>,
}

impl NamespaceArgs {
    /// Whether any is given.
    pub(super) fn is_empty(&self) -> bool {
        self.namespace.is_empty()
    }

    /// The namespaces by name, each with its labels and annotations.
    ///
    /// # Errors
    /// When one is given twice, or an annotation is for one that is not given.
    pub(super) fn read(self) -> Result<BTreeMap<String, Arc<Namespace>>, ArgsError> {
        let mut namespaces: BTreeMap<String, Namespace> = BTreeMap::new();
        for NamespaceLabels { name, labels } in self.namespace {
            let namespace = Namespace { labels, annotations: BTreeMap::new() };
            if namespaces.insert(name.clone(), namespace).is_some() {
                return Err(ArgsError::NamespaceTwice(name));
            }
        }
        for NamespaceAnnotation { name, key, value } in self.namespace_annotation {
            let Some(namespace) = namespaces.get_mut(&name) else {
                return Err(ArgsError::AnnotationWithoutNamespace(name));
            };
            namespace.annotations.insert(key, value);
        }
        Ok(namespaces.into_iter().map(|(name, namespace)| (name, Arc::new(namespace))).collect())
    }
}

/// A namespace and its labels: `NAME[:LABEL=VALUE[,LABEL=VALUE]...]`.
#[derive(Debug, Clone)]
pub struct NamespaceLabels {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl std::str::FromStr for NamespaceLabels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, labels) = text.split_once(':').unwrap_or((text, ""));
        let mut read = BTreeMap::new();
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, value) = pair(label)?;
            read.insert(key, value);
        }
        Ok(Self { name: namespace_name(name)?, labels: read })
    }
}

/// The value of `--namespace-annotation`.
#[derive(Debug, Clone)]
struct NamespaceAnnotation {
    name: String,
    key: String,
    value: String,
}

impl std::str::FromStr for NamespaceAnnotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, annotation) = text.split_once(':').ok_or("write NAME:KEY=VALUE")?;
        let (key, value) = pair(annotation)?;
        Ok(Self { name: namespace_name(name)?, key, value })
    }
}

fn namespace_name(name: &str) -> Result<String, String> {
    if is_label(name) { Ok(name.to_owned()) } else { Err(format!("{name:?} is not a namespace's name")) }
}

pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}
