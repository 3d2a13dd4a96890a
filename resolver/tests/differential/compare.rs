//! What two answers to one question may not differ in.

use nodestub_lab::{Answer, Record};

use crate::allowed::{ALLOWED, Pair};
use crate::question::Question;

/// What differs and is not allowed to; `None`: nothing.
pub(crate) fn difference(
    question: &Question,
    theirs: &Answer,
    ours: &Answer,
    tolerance: u32,
) -> Option<String> {
    let mut pair = Pair { question, theirs: theirs.clone(), ours: ours.clone() };
    if same(&pair, tolerance) {
        return None;
    }
    for allowed in ALLOWED {
        (allowed.even_out)(&mut pair);
    }
    if same(&pair, tolerance) {
        return None;
    }
    Some(format!("{question}\n  CoreDNS: {}\n  ours:    {}", shown(theirs), shown(ours)))
}

fn same(pair: &Pair<'_>, tolerance: u32) -> bool {
    let Pair { theirs, ours, .. } = pair;
    let opcode = |answer: &Answer| answer.raw.get(2).map(|byte| byte >> 3 & 0xF);
    opcode(theirs) == opcode(ours)
        && (theirs.id, &theirs.rcode, &theirs.flags, &theirs.question)
            == (ours.id, &ours.rcode, &ours.flags, &ours.question)
        && theirs.edns == ours.edns
        && same_records(&theirs.answers, &ours.answers, tolerance)
        && same_records(&theirs.authority, &ours.authority, tolerance)
        && same_records(&theirs.additional, &ours.additional, tolerance)
}

/// The same records in any order, with the same TTLs but for the seconds that have passed.
fn same_records(theirs: &[Record], ours: &[Record], tolerance: u32) -> bool {
    let sorted = |records: &[Record]| {
        let mut sorted: Vec<_> = records
            .iter()
            // Case does not count in names; it does in the data of TXT.
            .map(|record| (record.name.to_lowercase(), record.rtype.clone(), data(record), record.ttl))
            .collect();
        sorted.sort();
        sorted
    };
    let (theirs, ours) = (sorted(theirs), sorted(ours));
    theirs.len() == ours.len()
        && theirs.iter().zip(&ours).all(|(theirs, ours)| {
            (&theirs.0, &theirs.1, &theirs.2) == (&ours.0, &ours.1, &ours.2)
                && theirs.3.abs_diff(ours.3) <= tolerance
        })
}

fn data(record: &Record) -> String {
    if record.rtype == "TXT" { record.data.clone() } else { record.data.to_lowercase() }
}

fn shown(answer: &Answer) -> String {
    let records =
        |records: &[Record]| records.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
    format!(
        "{} [{}] {:?} answer: {} authority: {} additional: {} edns: {:?}",
        answer.rcode,
        answer.flags,
        answer.question,
        records(&answer.answers),
        records(&answer.authority),
        records(&answer.additional),
        answer.edns
    )
}
