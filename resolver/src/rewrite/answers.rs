//! What the rules that applied to a question make of its answer.

use nodestub_wire::{OwnedRecord, Rcode, Section, name_text, rtype, wire_name};

use super::names::{Matcher, Replacer};

/// What one rule does to an answer.
#[derive(Debug, Clone)]
pub enum Change {
    /// To the owners of its records.
    Owner(Replacer),
    /// To the names in their data.
    Value(Replacer),
    /// Brings TTLs into these bounds.
    Ttl(u32, u32),
    /// Replaces this code by that one.
    Rcode(u16, u16),
    /// A CNAME that leads to such a name leads elsewhere.
    Cname(Matcher, String),
}

/// An answer while it is rewritten.
#[derive(Debug)]
pub struct Rewriting {
    /// Its records.
    pub records: Vec<OwnedRecord>,
    /// Its code.
    pub rcode: Rcode,
}

/// A CNAME that leads elsewhere now: what is there has to be looked up.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The new target, in wire form.
    pub name: Vec<u8>,
    /// What it was, as text.
    pub old: String,
}

impl Rewriting {
    /// Applies the changes, the last first, to every record: authority, answer, additional, as CoreDNS goes. Returns where
    /// a CNAME leads now; then [`Rewriting::follow`] has to be called with what is there.
    pub fn apply(&mut self, changes: &[Change]) -> Option<Target> {
        let Self { records, rcode } = self;
        if records.is_empty() {
            for change in changes.iter().rev() {
                change_rcode(change, rcode);
            }
            return None;
        }
        let mut target = None;
        for section in [Section::Authority, Section::Answer, Section::Additional] {
            for record in records.iter_mut().filter(|record| record.section == section) {
                for change in changes.iter().rev() {
                    change_rcode(change, rcode);
                    let found = change_record(change, record);
                    if section == Section::Answer && target.is_none() {
                        target = found;
                    }
                }
            }
        }
        target
    }

    /// Puts the answer section of what was looked up behind the CNAMEs up to the one that leads there.
    pub fn follow(&mut self, target: &Target, found: Vec<OwnedRecord>) {
        let mut answers = Vec::new();
        for record in self.records.iter().filter(|record| record.section == Section::Answer) {
            if record.rtype != rtype::CNAME {
                continue;
            }
            let mut record = record.clone();
            let leads_there = name_text(&record.data) == target.old;
            if leads_there {
                record.data.clone_from(&target.name);
            }
            answers.push(record);
            if leads_there {
                break;
            }
        }
        answers.extend(found.into_iter().filter(|record| record.section == Section::Answer));
        self.records.retain(|record| record.section != Section::Answer);
        self.records.splice(0..0, answers);
    }
}

fn change_rcode(change: &Change, rcode: &mut Rcode) {
    if let Change::Rcode(from, to) = change
        && rcode.0 == *from
    {
        *rcode = Rcode(*to);
    }
}

fn change_record(change: &Change, record: &mut OwnedRecord) -> Option<Target> {
    match change {
        Change::Owner(replacer) => {
            // What would be no name stays what it was.
            if let Some(owner) = replaced(replacer, &record.owner) {
                record.owner = owner;
            }
        }
        Change::Value(replacer) => {
            if let Some(place) = record.value_name()
                && let Some(name) = record.data.get(place.clone()).and_then(|name| replaced(replacer, name))
            {
                record.data.splice(place, name);
            }
        }
        Change::Ttl(least, most) => record.ttl = record.ttl.clamp(*least, *most),
        Change::Cname(from, to) if record.rtype == rtype::CNAME => {
            let old = name_text(&record.data);
            // An exact rule compares; the others replace a part.
            let new = from.replace(&old, to)?;
            return Some(Target { name: wire_name(&new).ok()?, old });
        }
        Change::Rcode(..) | Change::Cname(..) => {}
    }
    None
}

fn replaced(replacer: &Replacer, name: &[u8]) -> Option<Vec<u8>> {
    wire_name(&replacer.replace(&name_text(name))?).ok()
}
