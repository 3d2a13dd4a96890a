//! What this machine lets us have: open files, CPUs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many open files as the system allows: a thousand clients and their upstreams need more than the customary 1024.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(cause) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%cause, now = limit.current, "cannot raise the limit of open files");
    }
}

/// CPUs on which this process may run; at least one.
pub fn allowed_cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None);
    let cpus =
        allowed.map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect());
    cpus.ok().filter(|cpus: &Vec<usize>| !cpus.is_empty()).unwrap_or_else(|| vec![0])
}
