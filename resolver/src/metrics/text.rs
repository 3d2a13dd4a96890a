//! The text format 0.0.4 of Prometheus, written by hand: it is forty lines, and what CoreDNS answers. (The official
//! crate writes OpenMetrics only, whose `# TYPE` lines carry other names than CoreDNS's.)

use std::fmt::{Display, Write};

/// A page of metrics that is being written.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

/// A label and its value.
pub(super) type Label<'a> = (&'a str, &'a dyn Display);

impl Page {
    /// Starts a family: all samples of one name follow it.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One sample.
    pub(super) fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.text.push_str(name);
        if !labels.is_empty() {
            self.text.push('{');
            for (index, (label, value)) in labels.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let value = escape(&value.to_string());
                self.part(format_args!("{comma}{label}=\"{value}\""));
            }
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// A counter or gauge without labels, with its family.
    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The buckets, sum and count of one histogram. `bounds` are the upper bounds; `counts` has one place more.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        for (index, count) in counts.iter().enumerate() {
            total += count;
            let bound = bounds.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let mut with_bound = labels.to_vec();
            with_bound.push(("le", &bound));
            self.sample(&bucket, &with_bound, total);
        }
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, total);
    }

    /// The finished page.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.part(line);
        self.text.push('\n');
    }

    fn part(&mut self, part: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        self.text.write_fmt(part).unwrap_or_default();
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_coredns_writes_it() {
        let mut page = Page::default();
        page.family("coredns_x_total", "counter", "Counter of x.");
        page.sample("coredns_x_total", &[("server", &"dns://:53"), ("zone", &"a\"b\\")], 3);
        page.histogram("coredns_y", &[("zone", &".")], &[0.5, 1.0], &[1, 0, 2], 4.5);
        assert_eq!(
            page.into_text(),
            r#"# HELP coredns_x_total Counter of x.
# TYPE coredns_x_total counter
coredns_x_total{server="dns://:53",zone="a\"b\\"} 3
coredns_y_bucket{zone=".",le="0.5"} 1
coredns_y_bucket{zone=".",le="1"} 1
coredns_y_bucket{zone=".",le="+Inf"} 3
coredns_y_sum{zone="."} 4.5
coredns_y_count{zone="."} 3
"#
        );
    }
}
