//! Counters out of a page in Prometheus' text form.

/// The sum of all samples of a metric whose labels contain all of `labels`. A metric that is not there is 0.
pub(crate) fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    page.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let has = |(key, value): &(&str, &str)| found.contains(&format!("{key}=\"{value}\""));
            labels.iter().all(has).then(|| value.split(' ').next()?.parse::<f64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP hits_total Hits.
# TYPE hits_total counter
hits_total{server=\"dns://:53\",type=\"success\",zones=\".\"} 3
hits_total{server=\"dns://:53\",type=\"denial\",zones=\".\"} 4
hits_total_of_others 100
plain 2.5
";

    #[test]
    fn adds_up_what_fits() {
        for (name, labels, expected) in [
            ("hits_total", &[][..], 7.0),
            ("hits_total", &[("type", "denial")], 4.0),
            ("hits_total", &[("type", "denial"), ("zones", "x.")], 0.0),
            ("plain", &[], 2.5),
            ("absent", &[], 0.0),
        ] {
            let found = sum(PAGE, name, labels);
            assert!((found - expected).abs() < f64::EPSILON, "{name} {labels:?}: {found}");
        }
    }
}
