//! What became of the queries.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::{PATIENCE, Plan};

/// Of one client, or of several.
pub(crate) struct Tally {
    started: Instant,
    own: IpAddr,
    sent: u64,
    answered: u64,
    lost: u64,
    /// Answers from another address than the one that was asked.
    pub(crate) wrong_source: u64,
    /// Answers to what had been answered, which harm nobody.
    pub(crate) again: u64,
    /// Messages to us that do not answer what was asked.
    pub(crate) wrong_answer: u64,
    /// Ports asked from, or connections opened.
    pub(crate) opened: u64,
    /// Connections that ended before we closed them, by who had answered on them: a resolver, the cluster DNS, nobody.
    ended_early: [u64; 3],
    /// Connections that one answered on, and later the other.
    pub(crate) changed_hands: u64,
    slowest: Duration,
    /// How often each address was the answer.
    answers: BTreeMap<IpAddr, u64>,
    /// Queries by the millisecond that they were sent in.
    timeline: Vec<Moment>,
    /// When the answers came, by the millisecond.
    answered_in: Vec<bool>,
}

/// The queries of one millisecond.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    sent: u32,
    by_resolver: u32,
    by_cluster: u32,
    lost: u32,
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Resolver,
    Cluster,
}

impl Tally {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            started: plan.started,
            own: plan.own,
            sent: 0,
            answered: 0,
            lost: 0,
            wrong_source: 0,
            again: 0,
            wrong_answer: 0,
            opened: 0,
            ended_early: [0; 3],
            changed_hands: 0,
            slowest: Duration::ZERO,
            answers: BTreeMap::new(),
            timeline: Vec::new(),
            answered_in: Vec::new(),
        }
    }

    pub(crate) fn sent(&mut self, at: Instant) {
        self.sent += 1;
        self.moment(at).sent += 1;
    }

    pub(crate) fn answered(&mut self, asked_at: Instant, address: IpAddr) -> Who {
        let now = Instant::now();
        self.answered += 1;
        self.slowest = self.slowest.max(now - asked_at);
        *self.answers.entry(address).or_default() += 1;
        let place = self.place(now);
        if self.answered_in.len() <= place {
            self.answered_in.resize(place + 1, false);
        }
        self.answered_in[place] = true;
        let is_own = address == self.own;
        let moment = self.moment(asked_at);
        if is_own {
            moment.by_cluster += 1;
            Who::Cluster
        } else {
            moment.by_resolver += 1;
            Who::Resolver
        }
    }

    pub(crate) fn lost(&mut self, asked_at: Instant) {
        self.lost += 1;
        self.moment(asked_at).lost += 1;
    }

    /// A connection ended that was to be kept, on which that one had answered.
    pub(crate) fn ended_early(&mut self, who: Option<Who>) {
        let place = match who {
            Some(Who::Resolver) => 0,
            Some(Who::Cluster) => 1,
            None => 2,
        };
        self.ended_early[place] += 1;
    }

    /// Both together.
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.sent += other.sent;
        self.answered += other.answered;
        self.lost += other.lost;
        self.wrong_source += other.wrong_source;
        self.again += other.again;
        self.wrong_answer += other.wrong_answer;
        self.opened += other.opened;
        self.changed_hands += other.changed_hands;
        self.slowest = self.slowest.max(other.slowest);
        for (sum, more) in self.ended_early.iter_mut().zip(other.ended_early) {
            *sum += more;
        }
        for (address, count) in other.answers {
            *self.answers.entry(address).or_default() += count;
        }
        let length = self.timeline.len().max(other.timeline.len());
        self.timeline.resize(length, Moment::default());
        for (sum, more) in self.timeline.iter_mut().zip(other.timeline) {
            sum.sent += more.sent;
            sum.by_resolver += more.by_resolver;
            sum.by_cluster += more.by_cluster;
            sum.lost += more.lost;
        }
        let length = self.answered_in.len().max(other.answered_in.len());
        self.answered_in.resize(length, false);
        for (any, more) in self.answered_in.iter_mut().zip(other.answered_in) {
            *any |= more;
        }
        self
    }

    /// To standard output, in words of the form `name=value`.
    pub(crate) fn report(&self, kind: &str) {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut line = format!(
            "{kind} sent={} answered={} lost={} again={} wrong_source={} wrong_answer={} opened={} slowest_ms={:.1} \
             longest_silence_ms={}",
            self.sent,
            self.answered,
            self.lost,
            self.again,
            self.wrong_source,
            self.wrong_answer,
            self.opened,
            ms(self.slowest),
            self.longest_silence(),
        );
        if kind == "tcp_kept" {
            let [resolver, cluster, nobody] = self.ended_early;
            write!(
                line,
                " ended_by_resolver={resolver} ended_by_cluster={cluster} ended_by_nobody={nobody} \
                 changed_hands={}",
                self.changed_hands
            )
            .unwrap();
        }
        println!("{line}");
        let by: Vec<String> = self.answers.iter().map(|(who, count)| format!("{who}={count}")).collect();
        println!("{kind} cluster_dns_saw {}", by.join(" "));
    }

    /// Lines `KIND MILLISECOND SENT BY_RESOLVER BY_CLUSTER LOST`, milliseconds since 1970.
    pub(crate) fn write_timeline(&self, kind: &str, start_ms: u128, out: &mut String) {
        for (moment, ms) in self.timeline.iter().zip(start_ms..).filter(|(moment, _)| moment.sent > 0) {
            let Moment { sent, by_resolver, by_cluster, lost } = moment;
            writeln!(out, "{kind} {ms} {sent} {by_resolver} {by_cluster} {lost}").unwrap();
        }
    }

    /// The most milliseconds one after the other in which no answer came, between the first and the last.
    fn longest_silence(&self) -> usize {
        let first = self.answered_in.iter().position(|any| *any).unwrap_or(0);
        let silent = self.answered_in[first..].split(|any| *any);
        silent.map(<[bool]>::len).max().unwrap_or(0)
    }

    fn moment(&mut self, at: Instant) -> &mut Moment {
        let place = self.place(at);
        if self.timeline.len() <= place {
            self.timeline.resize(place + 1, Moment::default());
        }
        &mut self.timeline[place]
    }

    fn place(&self, at: Instant) -> usize {
        usize::try_from((at - self.started).as_millis()).unwrap()
    }
}

/// Whether a query that was sent then is lost by now.
pub(crate) fn is_too_late(asked_at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(asked_at) > PATIENCE
}
