//! The differences that are allowed: a closed list, each with its row and its reason in ARCHITECTURE.md.
//!
//! Each evens out what it allows, and nothing else; what still differs then is ours to mend.

use nodestub_lab::Answer;

use crate::question::Question;

/// Both answers to one question.
pub(crate) struct Pair<'a> {
    pub(crate) question: &'a Question,
    pub(crate) theirs: Answer,
    pub(crate) ours: Answer,
}

/// One allowed difference.
pub(crate) struct Allowed {
    /// As ARCHITECTURE.md's table names it.
    pub(crate) what: &'static str,
    pub(crate) even_out: fn(&mut Pair<'_>),
}

pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed { what: "OPT in a reply", even_out: options_in_replies },
    Allowed { what: "a truncated answer by UDP", even_out: truncated },
    Allowed { what: "AD in a reply", even_out: authentic_data },
    Allowed { what: "DO in a reply", even_out: dnssec_ok },
];

/// The upstream's options and an OPT that was not asked for are hop by hop.
fn options_in_replies(pair: &mut Pair<'_>) {
    if pair.question.way.edns.is_none() && pair.ours.edns.is_none() {
        pair.theirs.edns = None;
    }
}

/// Ours asks again by TCP, and cuts for each client; CoreDNS hands the upstream's empty answer on.
fn truncated(pair: &mut Pair<'_>) {
    let cut = |answer: &Answer| answer.has("tc");
    if cut(&pair.theirs) && pair.theirs.answers.is_empty() {
        pair.ours.answers.clear();
        pair.ours.authority.clear();
        pair.ours.additional.clear();
        pair.ours.flags.clone_from(&pair.theirs.flags);
    }
}

/// Ours says AD only to who asked for it.
fn authentic_data(pair: &mut Pair<'_>) {
    let way = pair.question.way;
    if !way.dnssec_ok && !way.authentic_data && !pair.ours.has("ad") {
        pair.theirs.flags =
            pair.theirs.flags.split(' ').filter(|flag| *flag != "ad").collect::<Vec<_>>().join(" ");
    }
}

/// CoreDNS says DO wherever a directive of its own has made the OPT record; ours as the client said it.
fn dnssec_ok(pair: &mut Pair<'_>) {
    if let Some(theirs) = pair.theirs.edns.as_mut().filter(|edns| !edns.options.is_empty()) {
        theirs.dnssec_ok &= pair.question.way.dnssec_ok;
    }
}
