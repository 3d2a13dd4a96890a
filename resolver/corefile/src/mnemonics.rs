//! Names of record types, classes and response codes, as CoreDNS's library spells them (miekg/dns 1.1.73).

use crate::context::Problem;
use crate::report::shown;

const TYPES: [(u16, &str); 86] = [
    (1, "A"),
    (2, "NS"),
    (3, "MD"),
    (4, "MF"),
    (5, "CNAME"),
    (6, "SOA"),
    (7, "MB"),
    (8, "MG"),
    (9, "MR"),
    (10, "NULL"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (19, "X25"),
    (20, "ISDN"),
    (21, "RT"),
    (23, "NSAP-PTR"),
    (24, "SIG"),
    (25, "KEY"),
    (26, "PX"),
    (27, "GPOS"),
    (28, "AAAA"),
    (29, "LOC"),
    (30, "NXT"),
    (31, "EID"),
    (32, "NIMLOC"),
    (33, "SRV"),
    (34, "ATMA"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (39, "DNAME"),
    (41, "OPT"),
    (42, "APL"),
    (43, "DS"),
    (44, "SSHFP"),
    (45, "IPSECKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (49, "DHCID"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (55, "HIP"),
    (56, "NINFO"),
    (57, "RKEY"),
    (58, "TALINK"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (62, "CSYNC"),
    (63, "ZONEMD"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (99, "SPF"),
    (100, "UINFO"),
    (101, "UID"),
    (102, "GID"),
    (103, "UNSPEC"),
    (104, "NID"),
    (105, "L32"),
    (106, "L64"),
    (107, "LP"),
    (108, "EUI48"),
    (109, "EUI64"),
    (128, "NXNAME"),
    (249, "TKEY"),
    (250, "TSIG"),
    (251, "IXFR"),
    (252, "AXFR"),
    (253, "MAILB"),
    (254, "MAILA"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
    (258, "AVC"),
    (260, "AMTRELAY"),
    (261, "RESINFO"),
    (32768, "TA"),
    (32769, "DLV"),
];

const CLASSES: [(u16, &str); 6] = [(1, "IN"), (2, "CS"), (3, "CH"), (4, "HS"), (254, "NONE"), (255, "ANY")];

const RCODES: [(u16, &str); 20] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (6, "YXDOMAIN"),
    (7, "YXRRSET"),
    (8, "NXRRSET"),
    (9, "NOTAUTH"),
    (10, "NOTZONE"),
    (11, "DSOTYPENI"),
    (16, "BADSIG"),
    (17, "BADKEY"),
    (18, "BADTIME"),
    (19, "BADMODE"),
    (20, "BADNAME"),
    (21, "BADALG"),
    (22, "BADTRUNC"),
    (23, "BADCOOKIE"),
];

fn find(table: &[(u16, &str)], name: &str) -> Option<u16> {
    table.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
}

/// The number of a record type's name, in capitals.
pub fn type_number(name: &str) -> Option<u16> {
    find(&TYPES, name)
}

/// The name of a record type; `TYPE1234` where it has none.
pub fn type_name(number: u16) -> String {
    let known = TYPES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("TYPE{number}"), |(_, name)| (*name).to_owned())
}

/// The number of a class's name, in capitals.
pub fn class_number(name: &str) -> Option<u16> {
    find(&CLASSES, name)
}

/// The name of a class; `CLASS1234` where it has none.
pub fn class_name(number: u16) -> String {
    let known = CLASSES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("CLASS{number}"), |(_, name)| (*name).to_owned())
}

/// A record type, in capitals as CoreDNS wants it.
pub(crate) fn read_type(text: &str) -> Result<u16, Problem> {
    type_number(text).ok_or_else(|| {
        Problem::new(format!("unknown record type {}", shown(text)))
            .help("write it in capitals, such as `AAAA`")
    })
}

/// A class, in capitals as CoreDNS wants it.
pub(crate) fn read_class(text: &str) -> Result<u16, Problem> {
    class_number(text).ok_or_else(|| {
        Problem::new(format!("unknown class {}", shown(text))).help("write `IN`, `CH` or `ANY`")
    })
}

/// A response code by its name, in any case.
pub(crate) fn read_rcode(text: &str) -> Result<u16, Problem> {
    find(&RCODES, &text.to_uppercase()).ok_or_else(|| {
        Problem::new(format!("unknown response code {}", shown(text)))
            .help("write its name, such as `NXDOMAIN`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_belong_together() {
        for (name, number) in [("A", 1), ("AAAA", 28), ("HTTPS", 65), ("ANY", 255), ("CAA", 257)] {
            assert_eq!((type_number(name), type_name(number).as_str()), (Some(number), name));
        }
        assert_eq!((type_number("a"), type_name(65_280)), (None, "TYPE65280".to_owned()));
        assert_eq!((read_class("CH"), class_name(7)), (Ok(3), "CLASS7".to_owned()));
        assert_eq!(read_rcode("nxdomain"), Ok(3));
        assert!(read_rcode("NXDOMAINS").is_err());
    }
}
