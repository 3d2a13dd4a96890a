//! The demo itself, in the order in which it is printed. Each number that is not as it should be is said in red, and
//! makes the exit status 1.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use nodestub_demo::args::Arguments;
use nodestub_demo::terminal::{Palette, Style, WIDTH, printable, span, wrap};
use nodestub_demo::{BUILT_VARIABLE, STARTED_VARIABLE, now_ms};
use nodestub_lab::{Error, Pod};

use crate::cleanup::Cleanup;
use crate::diff::{self, Line};
use crate::manifest::{self, Picked};
use crate::resolv_conf::ResolvConf;
use crate::rounds::{Asker, NAMES, Outcome, Round};
use crate::scene::{Bypass, LOCAL, OUTSIDE_DELAY, POD, Scene};
use crate::steady::{Counted, Steady};

/// What a program is told when nobody reads its output any more (128 and SIGPIPE).
const BROKEN_PIPE: i32 = 141;
/// Width of a column of numbers.
const COLUMN: usize = 12;
/// What the pod asks for without a pause.
const STEADY_NAME: &str = "hoge.default.svc.cluster.local";
/// So many questions before and after what happens: a second each.
const STEADY_QUESTIONS: u64 = 500;

/// The demo.
pub(crate) struct Play<'a> {
    arguments: &'a Arguments,
    palette: Palette,
    picked: Picked,
    cleanup: Arc<Cleanup>,
    verdicts: Vec<Verdict>,
}

/// Where it is played.
pub(crate) enum Ground<'a> {
    /// In namespaces of the demo's own; others enter them by this process.
    Namespaces { outer: Option<&'a str> },
    /// On loopback, for this reason.
    Loopback { reason: &'a str },
}

/// A line of the summary.
struct Verdict {
    subject: &'static str,
    good: String,
    faults: Vec<String>,
}

impl<'a> Play<'a> {
    /// Reads the manifest, and minds signals from here on.
    pub(crate) fn new(arguments: &'a Arguments) -> Result<Self, Error> {
        let cleanup = Arc::new(Cleanup::default());
        cleanup.on_signals()?;
        Ok(Self {
            arguments,
            palette: Palette::for_stdout(arguments.colour),
            picked: manifest::load(arguments.manifest.as_deref())?,
            cleanup,
            verdicts: Vec::new(),
        })
    }

    /// Plays to the end, whichever it is, and takes everything away.
    pub(crate) fn perform(self, ground: &Ground<'_>) -> Result<u8, Error> {
        let cleanup = Arc::clone(&self.cleanup);
        let played = match *ground {
            Ground::Namespaces { outer } => self.in_namespaces(outer),
            Ground::Loopback { reason } => self.on_loopback(reason),
        };
        // Not left to `Drop`: the thread that waits for signals holds on to it.
        cleanup.finish();
        played
    }

    /// `outer` is the process by which others enter them.
    fn in_namespaces(mut self, outer: Option<&str>) -> Result<u8, Error> {
        let mut scene = Scene::in_namespaces(&self.cleanup, self.arguments.manifest.as_deref())?;
        self.opening();
        self.note(
            "Network namespaces of the demo's own; the machine's is not touched. Connection tracking is forced on in \
             the node, so that its table shows what would fill it.",
        );
        scene.force_tracking()?;
        let played = self.play(&mut scene, true);
        self.end(played, &scene, outer)
    }

    /// Says why and what is left out.
    fn on_loopback(mut self, reason: &str) -> Result<u8, Error> {
        let mut scene = Scene::on_loopback(&self.cleanup)?;
        self.opening();
        self.warn(&format!("On loopback, with high ports: {reason}."));
        self.note(
            "Left out: the pod's and the node's network, the local address, the bypass of connection tracking, what \
             happens when the resolver is killed or replaced, and the system's resolver library, which knows port 53 only; the demo's own client asks instead.",
        );
        let played = self.play(&mut scene, false);
        self.end(played, &scene, None)
    }

    fn opening(&self) {
        self.line(self.palette.paint(Style::Bold, "Nodestub: DNS for pods, answered on their own node"));
        self.line(self.palette.heading("The place"));
    }

    fn play(&mut self, scene: &mut Scene, namespaces: bool) -> Result<(), Error> {
        let namespace = self.picked.namespace.clone();
        scene.start_cluster_dns(&namespace)?;
        scene.start_resolver(Bypass::On)?;
        self.cast(scene);

        let resolv_conf = self.admission(scene)?;
        let pod = match scene.pod().filter(|_| namespaces) {
            Some(netns) => Some(Pod::new(netns, &resolv_conf.to_string())?),
            None => None,
        };
        let asker = Asker { scene, pod: pod.as_ref(), resolv_conf: &resolv_conf, namespace: &namespace };
        let questions = self.names(&asker)?;
        if namespaces {
            self.tracking(&asker, questions)?;
            self.death_and_handover(scene)?;
        }
        Ok(())
    }

    /// Who is where.
    fn cast(&self, scene: &Scene) {
        let ends = scene.endpoints;
        let outside = format!("scripted, {} ms away", OUTSIDE_DELAY.as_millis());
        let mut rows = vec![
            ("node", ends.resolver.to_string(), "nodestub-resolver"),
            ("cluster DNS", ends.cluster_dns.to_string(), "a second one, with the Services"),
            ("outside DNS", ends.outside_dns.to_string(), outside.as_str()),
            ("webhook", String::new(), "nodestub-webhook, asked as API servers ask"),
        ];
        if scene.pod().is_some() {
            rows.insert(0, ("pod", POD.to_string(), "getent; its default route is the node"));
        }
        self.line("");
        for (place, address, what) in rows {
            self.line(format_args!("  {place:<14}{} {what}", self.cyan(format_args!("{address:<20}"))));
        }
    }

    fn admission(&mut self, scene: &Scene) -> Result<ResolvConf, Error> {
        let (address, ca) = scene.start_webhook(&self.picked.namespace)?;
        let Picked { file, kind, name, namespace, pod } = &self.picked;
        self.line(self.palette.heading("A Pod is created"));
        self.line(format_args!(
            "  {} {} in namespace {} {}",
            printable(kind),
            self.cyan(printable(name)),
            self.cyan(printable(namespace)),
            self.palette.paint(Style::Dim, format_args!("({})", printable(file)))
        ));
        let admitted = scene.admit(address, &ca, &self.picked)?;
        self.line(format_args!("  POST https://{}/mutate", crate::admission::SERVER_NAME));
        self.line(format_args!(
            "  {} in {}, {} operations; {} against the CA just issued",
            self.green(&admitted.decision),
            span(admitted.took),
            admitted.operations,
            admitted.tls,
        ));
        for warning in &admitted.warnings {
            self.warn(&format!("Warning: {warning}"));
        }
        if admitted.operations == 0 {
            return Err(Error::new(format!(
                "the webhook leaves this Pod as it is ({}), so there is nothing more to show: give a Pod that may be changed",
                admitted.decision
            )));
        }
        self.line("");
        for line in diff::between(pod, &admitted.pod) {
            self.line(match line {
                Line::Added(text) => self.green(format_args!("  + {}", printable(&text))),
                Line::Removed(text) => self.red(format_args!("  - {}", printable(&text))),
                Line::Same(text) => format!("    {}", printable(&text)),
                Line::Left(_) => self.palette.paint(Style::Dim, "    ..."),
            });
        }

        let resolv_conf = ResolvConf::of_pod(&admitted.pod)?;
        self.line(self.palette.heading("/etc/resolv.conf of the Pod"));
        for line in resolv_conf.to_string().lines() {
            self.line(format_args!("  {}", printable(line)));
        }
        let mut faults = Vec::new();
        let local = LOCAL.to_string();
        if resolv_conf.nameservers.first() != Some(&local) {
            faults.push(format!("the first nameserver of the Pod is not {local}"));
        }
        let good = format!("{} over {}, in {}", admitted.decision, admitted.tls, span(admitted.took));
        self.verdicts.push(Verdict { subject: "admission", good, faults });
        Ok(resolv_conf)
    }

    /// Two rounds; returns how many questions they were.
    fn names(&mut self, asker: &Asker<'_>) -> Result<f64, Error> {
        let idle = asker.idle()?;
        asker.scene.forget_tracked()?;
        let (first, second) = (asker.round()?, asker.round()?);
        self.line(self.palette.heading(if idle.is_some() { "Names, resolved in the Pod" } else { "Names" }));
        match idle {
            Some(idle) => self.note(&format!(
                "By getent, so by the system's own library; {} of each time is getent itself.",
                span(idle)
            )),
            None => self.note("By the demo's own client, with the Pod's search list."),
        }
        self.line("");
        self.line(self.palette.paint(
            Style::Dim,
            format_args!("  {:<32}{:<18}{:>COLUMN$}{:>COLUMN$}", "", "", "first", "again"),
        ));
        let mut wrong: Vec<String> = Vec::new();
        for (((name, wanted), one), two) in NAMES.iter().zip(&first.asked).zip(&second.asked) {
            let fault = fault(name, *wanted, &one.outcome).or_else(|| fault(name, *wanted, &two.outcome));
            let (style, text) = match &one.outcome {
                Outcome::Address(address) => (Style::Green, address.clone()),
                Outcome::None => (Style::Green, "no such name".to_owned()),
                Outcome::Failed(_) => (Style::Red, "failed".to_owned()),
            };
            let style = if fault.is_some() { Style::Red } else { style };
            let text = self.palette.paint(style, format_args!("{text:<18}"));
            self.line(format_args!(
                "  {name:<32}{text}{:>COLUMN$}{:>COLUMN$}",
                span(one.took),
                span(two.took)
            ));
            wrong.extend(fault);
        }
        self.line("");
        let (one, two) = (first.counted, second.counted);
        for (label, a, b) in [
            ("questions to the node's resolver", one.questions, two.questions),
            ("  answered from its cache", one.hits, two.hits),
            ("  passed on to the cluster DNS", one.misses, two.misses),
        ] {
            self.line(format_args!("  {label:<50}{a:>COLUMN$.0}{b:>COLUMN$.0}"));
        }
        let label = "the resolver's own time for one, on average";
        self.line(format_args!("  {label:<50}{:>COLUMN$}{:>COLUMN$}", span(one.mean()), span(two.mean())));

        let expected = asker.questions();
        let mut not_cached = Vec::new();
        for (which, counted) in [("first", one), ("second", two)] {
            if counted.failures > 0.0 {
                wrong.push(format!("{:.0} answers of the {which} round were SERVFAIL", counted.failures));
            }
            if counted.questions < expected && !asker.resolv_conf.rotates() {
                let missing = expected - counted.questions;
                wrong.push(format!(
                    "{missing:.0} questions of the {which} round went past the node's resolver"
                ));
            }
        }
        if two.misses > 0.0 || two.hits < two.questions {
            not_cached.push(format!(
                "{:.0} questions of the second round were not answered from the cache",
                two.misses
            ));
        }
        let good = format!("{} of {} as they should be", NAMES.len(), NAMES.len());
        self.verdicts.push(Verdict { subject: "names", good, faults: wrong });
        let good = format!(
            "{:.0} of {:.0} questions of round two; {} instead of {} each",
            two.hits,
            two.questions,
            span(two.mean()),
            span(one.mean())
        );
        self.verdicts.push(Verdict { subject: "cache", good, faults: not_cached });
        Ok(one.questions + two.questions)
    }

    /// What the rounds so far have left in the node's table, and what they leave without the bypass.
    fn tracking(&mut self, asker: &Asker<'_>, questions: f64) -> Result<(), Error> {
        let scene = asker.scene;
        let (with, to_cluster) = scene.tracked()?;
        let status = scene.stop_resolver()?;
        scene.delete_rules()?;
        scene.start_resolver(Bypass::Off)?;
        scene.forget_tracked()?;
        let rounds = [asker.round()?, asker.round()?];
        let (without, _) = scene.tracked()?;

        self.line(self.palette.heading("Connection tracking on the node"));
        self.note(
            "Entries for the local address, port 53, after two rounds of the names above. For the second row the \
             rules were deleted, the resolver was started anew with -setupiptables=false, and the same names were asked \
             for again.",
        );
        self.line("");
        let header = format!("  {:<50}{:>COLUMN$}{:>COLUMN$}", "", "questions", "entries");
        self.line(self.palette.paint(Style::Dim, header));
        let unbypassed = rounds.iter().map(|round| round.counted.questions).sum();
        for (label, questions, entries, good) in [
            ("with the bypass", questions, with, with == 0),
            ("without it", unbypassed, without, without > 0),
        ] {
            let style = if good { Style::Green } else { Style::Red };
            let entries = self.palette.paint(style, format_args!("{entries:>COLUMN$}"));
            self.line(format_args!("  {label:<50}{questions:>COLUMN$.0}{entries}"));
        }
        self.line("");
        self.note(&format!(
            "The resolver's own connections to the cluster DNS ({to_cluster}) are tracked in any case: kube-proxy \
             needs that."
        ));

        let mut faults: Vec<String> = rounds.iter().flat_map(wrong_names).collect();
        if with != 0 {
            faults.push(format!("{with} entries with the bypass, where there should be none"));
        }
        if without == 0 {
            faults.push("no entry without the bypass, so the count proves nothing".to_owned());
        }
        if !status.success() {
            faults.push(format!("the resolver ended with {status} when it was asked to stop"));
        }
        let good = format!("{with} entries with the bypass, {without} without it");
        self.verdicts.push(Verdict { subject: "conntrack", good, faults });
        Ok(())
    }

    /// The resolver is killed, and then replaced, while the pod asks.
    fn death_and_handover(&mut self, scene: &Scene) -> Result<(), Error> {
        let Some(pod) = scene.pod() else { return Ok(()) };
        let stopped = scene.stop_resolver()?;
        scene.start_resolver(Bypass::On)?;

        let steady = Steady::start(pod, scene.endpoints.resolver, STEADY_NAME)?;
        steady.wait_for(STEADY_QUESTIONS);
        scene.kill_resolver();
        let dead = steady.sent();
        let before = scene.asked_cluster_dns()?;
        steady.wait_for(STEADY_QUESTIONS);
        let by_cluster_dns = scene.asked_cluster_dns()? - before;
        scene.start_resolver(Bypass::On)?;
        steady.wait_for(STEADY_QUESTIONS);
        let killed = steady.finish()?;

        let steady = Steady::start(pod, scene.endpoints.resolver, STEADY_NAME)?;
        steady.wait_for(STEADY_QUESTIONS);
        let before = scene.asked_cluster_dns()?;
        let status = scene.hand_over()?;
        steady.wait_for(STEADY_QUESTIONS);
        let passed_on = scene.asked_cluster_dns()? - before;
        let replaced = steady.finish()?;

        self.line(self.palette.heading("The resolver goes, the answers do not"));
        self.note(&format!(
            "The Pod asks {LOCAL} for one name every 2 ms, each time once. First the resolver is killed (SIGKILL), \
             and a second later started again: meanwhile the node's kernel sends the questions to the cluster DNS. \
             Then a new one takes over from it, with its sockets and its cache, and the old one is stopped."
        ));
        self.line("");
        let header = format!("  {:<38}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}", "", "questions", "lost", "slowest");
        self.line(self.palette.paint(Style::Dim, header));
        // What the killed process held is lost; nothing later may be.
        let later = killed.lost.iter().filter(|number| **number >= dead).count();
        let show = |label: &str, counted: &Counted, is_good: bool| {
            let style = if is_good { Style::Green } else { Style::Red };
            let lost = self.palette.paint(style, format_args!("{:>COLUMN$}", counted.lost.len()));
            let slowest = span(counted.slowest);
            self.line(format_args!("  {label:<38}{:>COLUMN$}{lost}{slowest:>COLUMN$}", counted.sent));
        };
        show("killed, and started again", &killed, later == 0);
        show("replaced by a new one", &replaced, replaced.lost.is_empty());
        self.line("");
        self.note(&format!(
            "Answered by the cluster DNS while there was no resolver: {by_cluster_dns:.0}. Asked of it over the \
             handover: {passed_on:.0}, for the cache came along."
        ));

        let mut faults = Vec::new();
        if later > 0 {
            faults.push(format!("{later} questions were lost that were asked after its death"));
        }
        if by_cluster_dns < 1.0 {
            faults.push("the cluster DNS answered nothing while there was no resolver".to_owned());
        }
        let good =
            format!("{} of {} questions lost, none asked after its death", killed.lost.len(), killed.sent);
        self.verdicts.push(Verdict { subject: "SIGKILL", good, faults });
        let mut faults = Vec::new();
        if !replaced.lost.is_empty() {
            faults.push(format!("{} questions were lost in the handover", replaced.lost.len()));
        }
        if passed_on > 0.0 {
            faults.push(format!("{passed_on:.0} questions went to the cluster DNS, so the cache was cold"));
        }
        for status in [stopped, status].iter().filter(|status| !status.success()) {
            faults.push(format!("the resolver ended with {status} when it was asked to stop"));
        }
        let good =
            format!("{} of {} questions lost, the cache stayed warm", replaced.lost.len(), replaced.sent);
        self.verdicts.push(Verdict { subject: "handover", good, faults });
        Ok(())
    }

    /// The summary, and with `--keep` the time until Ctrl-C.
    fn end(mut self, played: Result<(), Error>, scene: &Scene, outer: Option<&str>) -> Result<u8, Error> {
        played?;
        self.line(self.palette.heading("Summary"));
        for verdict in std::mem::take(&mut self.verdicts) {
            let subject = self.palette.paint(Style::Bold, format_args!("{:<10}", verdict.subject));
            if verdict.faults.is_empty() {
                self.line(format_args!("  {} {subject} {}", self.green("✓"), verdict.good));
            }
            for fault in &verdict.faults {
                self.line(format_args!("  {} {subject} {}", self.red("✗"), self.red(fault)));
            }
            self.verdicts.push(verdict);
        }
        let subject = self.palette.paint(Style::Bold, format_args!("{:<10}", "time"));
        self.line(format_args!("    {subject} {}", times()));
        let failed = self.verdicts.iter().any(|verdict| !verdict.faults.is_empty());
        if failed {
            for (name, lines) in scene.logs() {
                self.line(self.palette.heading(&format!("The end of {name}")));
                self.line(lines);
            }
        }
        if self.arguments.keep {
            self.keep(scene, outer, failed)?;
        }
        Ok(u8::from(failed))
    }

    fn keep(&self, scene: &Scene, outer: Option<&str>, failed: bool) -> Result<(), Error> {
        let name = "hoge.default.svc.cluster.local";
        let ends = scene.endpoints;
        self.line(self.palette.heading("Kept running: ask it from another terminal"));
        match outer {
            Some(outer) => {
                if scene.stop_resolver().is_ok() {
                    scene.start_resolver(Bypass::On)?;
                }
                // In a user namespace the rights there have to be taken on first.
                let user = if is_real_root() { "" } else { " -U --preserve-credentials" };
                let enter = format!("nsenter -t {outer}{user} -n");
                self.line(format_args!(
                    "  {}",
                    self.cyan(format_args!("{enter} dig @{} {name}", ends.resolver.ip()))
                ));
                self.line(format_args!(
                    "  {}",
                    self.cyan(format_args!("{enter} curl http://{}/metrics", ends.metrics))
                ));
            }
            None => {
                let SocketAddr::V4(resolver) = ends.resolver else { return Ok(()) };
                let dig = format!("dig @{} -p {} {name}", resolver.ip(), resolver.port());
                self.line(format_args!("  {}", self.cyan(dig)));
                self.line(format_args!(
                    "  {}",
                    self.cyan(format_args!("curl http://{}/metrics", ends.metrics))
                ));
            }
        }
        self.line("  Ctrl-C ends it and removes everything.");
        self.cleanup.keep(failed);
        loop {
            std::thread::park();
        }
    }

    fn line(&self, text: impl Display) {
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            // Nobody reads any more: no reason to go on, and none to complain.
            self.cleanup.run();
            exit(BROKEN_PIPE);
        }
    }

    fn note(&self, text: &str) {
        self.paragraph(Style::Dim, text);
    }

    fn warn(&self, text: &str) {
        self.paragraph(Style::Yellow, text);
    }

    fn paragraph(&self, style: Style, text: &str) {
        for line in wrap(text, WIDTH - 2) {
            self.line(self.palette.paint(style, format_args!("  {line}")));
        }
    }

    fn cyan(&self, text: impl Display) -> String {
        self.palette.paint(Style::Cyan, text)
    }

    fn green(&self, text: impl Display) -> String {
        self.palette.paint(Style::Green, text)
    }

    fn red(&self, text: impl Display) -> String {
        self.palette.paint(Style::Red, text)
    }
}

fn wrong_names(round: &Round) -> Vec<String> {
    let all = NAMES.iter().zip(&round.asked);
    all.filter_map(|((name, wanted), asked)| fault(name, *wanted, &asked.outcome)).collect()
}

fn fault(name: &str, wanted: Option<std::net::Ipv4Addr>, found: &Outcome) -> Option<String> {
    match (wanted, found) {
        (Some(wanted), Outcome::Address(found)) if *found == wanted.to_string() => None,
        (None, Outcome::None) => None,
        (_, Outcome::Failed(why)) => Some(format!("{name}: {why}")),
        (Some(wanted), Outcome::None) => Some(format!("{name} was not found; it is {wanted}")),
        (Some(wanted), Outcome::Address(found)) => Some(format!("{name} came to {found}; it is {wanted}")),
        (None, Outcome::Address(found)) => Some(format!("{name} came to {found}; it does not exist")),
    }
}

/// How long all took, as far as is known.
fn times() -> String {
    let moment = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let since = |start: u64, end: u64| span(Duration::from_millis(end.saturating_sub(start)));
    let now = now_ms();
    match (moment(STARTED_VARIABLE), moment(BUILT_VARIABLE)) {
        (Some(started), Some(built)) => {
            format!("{}, of which {} to build", since(started, now), since(started, built))
        }
        _ => "not measured: started without cargo demo".to_owned(),
    }
}

/// Whether root outside is root here: then the first line of the map is the identity.
fn is_real_root() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().take(2).all(|number| number == "0"))
}
