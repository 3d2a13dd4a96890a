//! `template`: answers made from a question by the Corefile's own patterns.

use std::collections::BTreeMap;

use nodestub_corefile::config::answering::Template;
use nodestub_corefile::expression::{ExpressionError, QueryData, Value};
use nodestub_corefile::gotemplate::{GoTemplate, MessageData, TemplateData};
use nodestub_corefile::{class_name, type_name};
use nodestub_wire::{Flags, Name, OwnedRecord, Rcode, Section, name_text, rtype};
use regex::Regex;

use super::records::read_record;
use crate::asked::Asked;

/// Class ANY.
const CLASS_ANY: u16 = 255;

/// The `template` directives of one block, in the order of the file.
#[derive(Debug)]
pub struct Templates(Vec<Compiled>);

#[derive(Debug)]
struct Compiled {
    config: Template,
    matches: Vec<Regex>,
}

/// What the templates say to a question.
#[derive(Debug)]
pub enum Verdict {
    /// None is for it.
    PassOn,
    /// None matches, and none lets it through.
    Fail,
    /// This.
    Answer(Box<Made>),
}

/// An answer of a template.
#[derive(Debug)]
pub struct Made {
    /// For the counters: zone, class and type.
    pub labels: [String; 3],
    /// Its code.
    pub rcode: Rcode,
    /// Its records; `None`: the code is SERVFAIL, and nothing else is said.
    pub records: Vec<OwnedRecord>,
    /// Of the answer section: places in `records` behind which the addresses of a CNAME's target belong.
    pub follow: Vec<usize>,
    /// RFC 8914: code and text.
    pub extended_error: Option<(u16, String)>,
    /// A record that could not be made.
    pub failure: Option<Failure>,
}

/// Why a record could not be made.
#[derive(Debug)]
pub struct Failure {
    /// `answer`, `authority` or `additional`.
    pub section: &'static str,
    /// Its template.
    pub template: String,
    /// The text was made, and is no record.
    pub is_record: bool,
    /// In words.
    pub cause: String,
}

impl Templates {
    /// From templates that were read: their expressions compile.
    pub fn new(templates: &[Template]) -> Self {
        let compile = |config: &Template| Compiled {
            matches: config.matches.iter().filter_map(|pattern| Regex::new(pattern.as_str()).ok()).collect(),
            config: config.clone(),
        };
        Self(templates.iter().map(compile).collect())
    }

    /// Answers, or passes on.
    pub fn answer(&self, asked: &Asked) -> Verdict {
        let name = asked.lower();
        for template in &self.0 {
            let Some(zone) = template.zone_of(&name) else { continue };
            if !template.is_for(asked.qtype, asked.qclass) {
                continue;
            }
            let text = asked.text();
            let matching = template.matches.iter().find(|regex| regex.is_match(&text));
            let mut data = matching.map(|regex| data(asked, &text, zone, regex, &template.config));
            let holds = data.as_mut().map(|data| template.holds(asked, data));
            match (data, holds) {
                (Some(data), Some(Ok(true))) => {
                    return Verdict::Answer(Box::new(template.make(asked, &data)));
                }
                (_, Some(Err(error))) => {
                    tracing::debug!(name = text, %error, "an expression of a template comes to nothing");
                    return Verdict::Fail;
                }
                _ if template.falls_through(&name) => {}
                _ => return Verdict::Fail,
            }
        }
        Verdict::PassOn
    }
}

impl Compiled {
    fn zone_of(&self, name: &Name) -> Option<&Name> {
        let zones = self.config.zones.iter().filter(|zone| name.is_within(zone));
        zones.max_by_key(|zone| zone.as_bytes().len())
    }

    fn is_for(&self, qtype: u16, qclass: u16) -> bool {
        let fits = |own: u16, asked: u16, any: u16| own == any || asked == any || own == asked;
        fits(self.config.qclass, qclass, CLASS_ANY) && fits(self.config.qtype, qtype, rtype::ANY)
    }

    fn falls_through(&self, name: &Name) -> bool {
        let zones = self.config.fallthrough.as_deref();
        zones.is_some_and(|zones| zones.is_empty() || zones.iter().any(|zone| name.is_within(zone)))
    }

    /// Works out the variables, and whether all conditions are true. What is no condition is not true, as in CoreDNS.
    fn holds(&self, asked: &Asked, data: &mut TemplateData) -> Result<bool, ExpressionError> {
        let config = &self.config;
        if config.variables.is_empty() && config.conditions.is_empty() {
            return Ok(true);
        }
        let (rtype, class) = (type_name(asked.qtype), class_name(asked.qclass));
        let query = QueryData {
            rtype: &rtype,
            class: &class,
            name: &data.name,
            protocol: asked.protocol.label(),
            size: asked.bytes,
            client: asked.client,
            server: asked.server,
            id: asked.id,
            dnssec_ok: asked.dnssec_ok,
            buffer_size: asked.buffer_size,
            groups: &data.group,
        };
        for (name, expression) in &config.variables {
            let value = expression.evaluate(&query, &data.variables)?;
            data.variables.insert(name.clone(), value);
        }
        for condition in &config.conditions {
            if condition.evaluate(&query, &data.variables)? != Value::Bool(true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn make(&self, asked: &Asked, data: &TemplateData) -> Made {
        let mut made = Made {
            labels: [data.zone.clone(), data.class.clone(), data.rtype.clone()],
            rcode: Rcode(self.config.rcode),
            records: Vec::new(),
            follow: Vec::new(),
            extended_error: self.config.extended_error.clone(),
            failure: None,
        };
        if made.rcode == Rcode::SERVFAIL {
            made.extended_error = None;
            return made;
        }
        let config = &self.config;
        for (section, name, templates) in [
            (Section::Answer, "answer", &config.answer),
            (Section::Additional, "additional", &config.additional),
            (Section::Authority, "authority", &config.authority),
        ] {
            for template in templates {
                if let Err(failure) = made.add(template, data, section, name) {
                    made.failure = Some(failure);
                    return made;
                }
                let wants_address = matches!(asked.qtype, rtype::A | rtype::AAAA);
                if section == Section::Answer
                    && wants_address
                    && made.records.last().is_some_and(|record| record.rtype == rtype::CNAME)
                {
                    made.follow.push(made.records.len());
                }
            }
        }
        made
    }
}

impl Made {
    fn add(
        &mut self,
        template: &GoTemplate,
        data: &TemplateData,
        section: Section,
        name: &'static str,
    ) -> Result<(), Failure> {
        let failure = |is_record, cause| Failure {
            section: name,
            template: template.text().to_owned(),
            is_record,
            cause,
        };
        let line = template.execute(data).map_err(|error| failure(false, error.to_string()))?;
        let record =
            read_record(&line, section).ok_or_else(|| failure(true, format!("{line:?} is no record")))?;
        self.records.push(record);
        Ok(())
    }
}

fn data(asked: &Asked, text: &str, zone: &Name, regex: &Regex, config: &Template) -> TemplateData {
    let groups = regex.captures(text);
    let matches: Vec<String> = groups
        .iter()
        .flat_map(|groups| groups.iter().map(|group| group.map_or("", |group| group.as_str()).to_owned()))
        .collect();
    let mut group: BTreeMap<String, String> =
        matches.iter().enumerate().map(|(index, value)| (index.to_string(), value.clone())).collect();
    for (name, value) in regex.capture_names().zip(&matches) {
        if let Some(name) = name {
            group.insert(name.to_owned(), value.clone());
        }
    }
    let qclass = if asked.qclass == CLASS_ANY { config.qclass } else { asked.qclass };
    let qtype = if asked.qtype == rtype::ANY { config.qtype } else { asked.qtype };
    TemplateData {
        zone: zone.to_string(),
        name: text.to_owned(),
        regex: regex.as_str().to_owned(),
        matches,
        group,
        class: class_name(qclass),
        rtype: type_name(qtype),
        qclass: asked.qclass,
        qtype: asked.qtype,
        question: name_text(&asked.name),
        remote: asked.client_ip().to_string(),
        variables: BTreeMap::new(),
        message: MessageData {
            id: asked.id,
            recursion_desired: asked.flags.has(Flags::RD),
            authentic_data: asked.flags.has(Flags::AD),
            checking_disabled: asked.flags.has(Flags::CD),
        },
    }
}
