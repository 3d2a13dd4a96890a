//! What a rule sees of a packet of ours at one place of its way, expression by expression.
//!
//! The kernel's registers are octets of which some bits are known. What ends a rule in the kernel ends it here; what may
//! end it leaves it at "maybe". Numbers are those of linux/netfilter/nf_tables.h.

use super::model::{
    Device, Element, Expression, Fixed, Hook, INVERTED_DESTINATION, INVERTED_FRAGMENT, INVERTED_INPUT_DEVICE,
    INVERTED_OUTPUT_DEVICE, INVERTED_PROTOCOL, INVERTED_SOURCE, Set, Value, Verdict, World,
};
use super::packet::Packet;
use super::value::{Octet, Truth, equals, known, unknown, within};
use super::xt;

/// From here on our table has made our packets untracked.
const OUR_PRIORITY: i32 = -300;
/// `NF_CT_STATE_INVALID_BIT`: what a packet that nobody has looked at yet counts as.
const STATE_INVALID: u8 = 1;
/// `NF_CT_STATE_UNTRACKED_BIT`.
const STATE_UNTRACKED: u8 = 1 << 6;
/// `IFNAMSIZ`.
const DEVICE_NAME_OCTETS: usize = 16;
const LOOPBACK: &str = "lo";
const LOOPBACK_INDEX: u32 = 1;
const REGISTER_OCTETS: usize = 64;

/// `NFT_META_*`.
const META_PROTOCOL: u32 = 1;
pub(super) const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_CT_STATE`: the one key that says something of a packet without a connection.
const CONNTRACK_STATE: u32 = 0;
/// `RTN_LOCAL`: an address of this node.
const ADDRESS_LOCAL: u32 = 2;
/// `NFT_PAYLOAD_*_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_CMP_*`.
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LT: u32 = 2;
const CMP_LTE: u32 = 3;
const CMP_GT: u32 = 4;
const CMP_GTE: u32 = 5;

/// The device at one end of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// None: made here, or for here.
    Nobody,
    Loopback,
    /// A pod's, whatever its name.
    Pod,
}

/// Where a register's octets come from, as far as that matters for what is likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Plain,
    /// The name of a pod's device: never `lo`, never hardware.
    PodDevice,
    /// Its index.
    PodDeviceIndex,
    /// The kernel's own word on the route back to the sender. A pod's is there, where its packets come from.
    Route,
    /// The pod's address, from its first octet on.
    PodAddress,
}

/// A packet at a chain.
pub(super) struct Sight<'a> {
    pub(super) packet: &'a Packet,
    pub(super) hook: Hook,
    priority: i32,
    pub(super) mark: [Octet; 4],
    network: Vec<Octet>,
    transport: Vec<Octet>,
    hardware: &'a [Device],
    registers: [Octet; REGISTER_OCTETS],
    origins: [Origin; REGISTER_OCTETS],
}

/// What a rule comes to: the verdicts that it may have, each with how sure it is.
pub(super) type Outcome = Vec<(Truth, Verdict)>;

impl<'a> Sight<'a> {
    /// A packet bears no mark until somebody gives it one.
    pub(super) fn new(packet: &'a Packet, world: &'a World) -> Self {
        Self {
            packet,
            hook: Hook::Prerouting,
            priority: 0,
            mark: [Octet::known(0); 4],
            network: packet.network_header(),
            transport: packet.transport_header(),
            hardware: &world.hardware,
            registers: [Octet::UNKNOWN; REGISTER_OCTETS],
            origins: [Origin::Plain; REGISTER_OCTETS],
        }
    }

    pub(super) fn at(&mut self, hook: Hook, priority: i32) {
        self.hook = hook;
        self.priority = priority;
    }

    pub(super) fn input(&self) -> End {
        match self.hook {
            Hook::Prerouting | Hook::Input => self.other_end(),
            Hook::Output | Hook::Postrouting => End::Nobody,
        }
    }

    pub(super) fn output(&self) -> End {
        match self.hook {
            Hook::Prerouting | Hook::Input => End::Nobody,
            Hook::Output | Hook::Postrouting => self.other_end(),
        }
    }

    fn other_end(&self) -> End {
        if self.packet.kind.is_inside() { End::Loopback } else { End::Pod }
    }

    /// Whether it has been made untracked for sure, or for sure not yet: (may be untracked, may be invalid).
    pub(super) fn conntrack_states(&self) -> (bool, bool) {
        // What comes by `lo` was made untracked on its way out.
        let before = self.hook == Hook::Prerouting && self.packet.kind.is_inside();
        let late = matches!(self.hook, Hook::Input | Hook::Postrouting) || self.priority > OUR_PRIORITY;
        match (before || late, self.priority == OUR_PRIORITY) {
            (true, _) => (true, false),
            // Beside us, by the order in which the two were loaded.
            (false, true) => (true, true),
            (false, false) => (false, true),
        }
    }

    /// Goes through a rule. `find` gives a set by its name, or `None` where it has not been read yet. `is_sure`: the
    /// packet comes here for sure.
    pub(super) fn run(
        &mut self,
        expressions: &[Expression],
        is_sure: bool,
        find: &mut dyn FnMut(&str) -> Option<&'a Set>,
    ) -> Outcome {
        let mut truth = Truth::Yes;
        for expression in expressions {
            let step = match expression {
                Expression::Verdict(verdict) => return vec![(truth, verdict.clone())],
                Expression::Lookup { set, from, inverted, to, is_verdict } => {
                    // Judged anew once the set has been read.
                    let Some(set) = find(set) else { return Vec::new() };
                    if *is_verdict {
                        let mut verdicts = self.verdicts(set, *from);
                        for (found, _) in &mut verdicts {
                            *found = truth.and(*found);
                        }
                        return verdicts;
                    }
                    self.lookup(set, *from, *inverted, *to)
                }
                Expression::SetMark { from } => {
                    let value = self.register(*from, 4).to_vec();
                    self.set_mark(truth == Truth::Yes && is_sure, &value);
                    Truth::Yes
                }
                Expression::XtTarget { name, revision, data } => {
                    match xt::target(name, *revision, data, &self.mark) {
                        xt::Target::Verdict(found, verdict) => return vec![(truth.and(found), verdict)],
                        xt::Target::Mark(mark) => self.set_mark(truth == Truth::Yes && is_sure, &mark),
                        xt::Target::Continue => {}
                    }
                    Truth::Yes
                }
                other => self.step(other),
            };
            truth = truth.and(step);
            if truth == Truth::No {
                return Vec::new();
            }
        }
        Vec::new()
    }

    fn set_mark(&mut self, is_sure: bool, value: &[Octet]) {
        for (bits, new) in self.mark.iter_mut().zip(value) {
            *bits = if is_sure || *bits == *new { *new } else { Octet::UNKNOWN };
        }
    }

    fn step(&mut self, expression: &Expression) -> Truth {
        match expression {
            Expression::Meta { key, to } => self.load_meta(*key, *to),
            Expression::Header { base, offset, length, to } => {
                return self.load_header(*base, *offset, *length, *to);
            }
            Expression::Conntrack { key: CONNTRACK_STATE, to } => {
                let mask = match self.conntrack_states() {
                    (true, true) => Octet::partly(0, !(STATE_INVALID | STATE_UNTRACKED)),
                    (true, false) => Octet::known(STATE_UNTRACKED),
                    (false, _) => Octet::known(STATE_INVALID),
                };
                // A number of the machine's own order.
                let number = [mask, Octet::known(0), Octet::known(0), Octet::known(0)];
                self.load(*to, &in_machine_order(number), Origin::Plain);
            }
            Expression::Conntrack { .. } => return Truth::No,
            Expression::Route { to } => self.load(*to, &unknown(4), Origin::Route),
            Expression::DestinationType { to } if matches!(self.hook, Hook::Prerouting | Hook::Input) => {
                self.load(*to, &known(&ADDRESS_LOCAL.to_ne_bytes()), Origin::Plain);
            }
            Expression::Some { to } | Expression::DestinationType { to } => {
                self.load(*to, &unknown(DEVICE_NAME_OCTETS), Origin::Plain);
                return Truth::Maybe;
            }
            Expression::Constant { octets, to } => self.load(*to, &known(octets), Origin::Plain),
            Expression::Mask { from, to, mask, xor } => {
                let origin = self.origin(*from);
                let value: Vec<Octet> = self
                    .register(*from, mask.len())
                    .iter()
                    .zip(mask.iter().zip(xor))
                    .map(|(octet, (mask, xor))| octet.masked(*mask, *xor))
                    .collect();
                self.load(*to, &value, origin);
            }
            Expression::Swap { from, to, size, length } => {
                let origin = self.origin(*from);
                let mut value = self.register(*from, *length).to_vec();
                for part in value.chunks_mut((*size).max(1)) {
                    part.reverse();
                }
                self.load(*to, &value, origin);
            }
            Expression::Compare { from, operator, octets } => return self.compare(*from, *operator, octets),
            Expression::Range { from, low, high, inverted } => {
                return self.between(*from, low, high).inverted_if(*inverted);
            }
            Expression::XtMatch { name, revision, data } => return xt::matches(name, *revision, data, self),
            Expression::Fixed(fixed) => return self.fixed(fixed),
            Expression::MayEnd => return Truth::Maybe,
            Expression::Nothing
            | Expression::Verdict(_)
            | Expression::Lookup { .. }
            | Expression::SetMark { .. }
            | Expression::XtTarget { .. } => {}
        }
        Truth::Yes
    }

    fn load(&mut self, to: usize, octets: &[Octet], origin: Origin) {
        let places = self.registers.iter_mut().zip(&mut self.origins).skip(to);
        // The kernel clears what it does not fill of the last four octets.
        let rest = octets.len().next_multiple_of(4).saturating_sub(octets.len());
        let padded = octets.iter().copied().chain(std::iter::repeat_n(Octet::known(0), rest));
        for ((octet, from), new) in places.zip(padded) {
            (*octet, *from) = (new, origin);
        }
    }

    fn register(&self, from: usize, length: usize) -> &[Octet] {
        self.registers.get(from..from.saturating_add(length)).unwrap_or_default()
    }

    fn origin(&self, from: usize) -> Origin {
        self.origins.get(from).copied().unwrap_or(Origin::Plain)
    }

    fn load_meta(&mut self, key: u32, to: usize) {
        let is_ipv4 = self.packet.is_ipv4();
        let (octets, origin) = match key {
            META_PROTOCOL => (known(if is_ipv4 { &[0x08, 0x00] } else { &[0x86, 0xdd] }), Origin::Plain),
            META_MARK => (self.mark.to_vec(), Origin::Plain),
            META_IIF | META_OIF => match if key == META_IIF { self.input() } else { self.output() } {
                End::Nobody => (known(&0_u32.to_ne_bytes()), Origin::Plain),
                End::Loopback => (known(&LOOPBACK_INDEX.to_ne_bytes()), Origin::Plain),
                End::Pod => (unknown(4), Origin::PodDeviceIndex),
            },
            META_IIFNAME | META_OIFNAME => {
                match if key == META_IIFNAME { self.input() } else { self.output() } {
                    End::Nobody => (known(&[0; DEVICE_NAME_OCTETS]), Origin::Plain),
                    End::Loopback => (known(&padded(LOOPBACK)), Origin::Plain),
                    End::Pod => (unknown(DEVICE_NAME_OCTETS), Origin::PodDevice),
                }
            }
            META_NFPROTO => (known(&[if is_ipv4 { 2 } else { 10 }]), Origin::Plain),
            META_L4PROTO => (known(&[self.packet.protocol()]), Origin::Plain),
            _ => (unknown(DEVICE_NAME_OCTETS), Origin::Plain),
        };
        self.load(to, &octets, origin);
    }

    fn load_header(&mut self, base: u32, offset: usize, length: usize, to: usize) -> Truth {
        let header = match base {
            NETWORK_HEADER => &self.network,
            TRANSPORT_HEADER => &self.transport,
            _ => {
                self.load(to, &unknown(length), Origin::Plain);
                return Truth::Maybe;
            }
        };
        let found: Vec<Octet> =
            (0..length).map(|at| header.get(offset + at).copied().unwrap_or(Octet::UNKNOWN)).collect();
        let addresses = if self.packet.is_ipv4() { [12, 16] } else { [8, 24] };
        let is_address = base == NETWORK_HEADER && addresses.contains(&offset);
        let of_pod = is_address && found.iter().all(|octet| *octet == Octet::UNKNOWN);
        self.load(to, &found, if of_pod { Origin::PodAddress } else { Origin::Plain });
        Truth::Yes
    }

    fn compare(&self, from: usize, operator: u32, octets: &[u8]) -> Truth {
        let value = self.register(from, octets.len());
        let least = vec![0; octets.len()];
        let most = vec![u8::MAX; octets.len()];
        match operator {
            CMP_EQ => self.between(from, octets, octets),
            CMP_NEQ => self.between(from, octets, octets).not(),
            CMP_GTE => within(value, octets, &most),
            CMP_LTE => within(value, &least, octets),
            CMP_LT => within(value, octets, &most).not(),
            CMP_GT => within(value, &least, octets).not(),
            _ => Truth::Maybe,
        }
    }

    /// Whether a register holds something from `low` to `high`.
    fn between(&self, from: usize, low: &[u8], high: &[u8]) -> Truth {
        let value = self.register(from, low.len());
        match self.origin(from) {
            Origin::PodDevice if low == high && !self.may_be_named(low) => Truth::No,
            Origin::PodDeviceIndex if low == high && !self.may_be_numbered(low) => Truth::No,
            Origin::PodAddress if [low, high].iter().all(|end| !self.may_be_a_pods(end)) => Truth::No,
            // It says "missing" where the sender is spoofed or comes by a way that is not its own.
            Origin::Route => Truth::Unlikely,
            _ if low == high => equals(value, low),
            _ => within(value, low, high),
        }
    }

    /// Whether a pod's device may have this name, up to its final zero. Without one it is the beginning of a name.
    fn may_be_named(&self, octets: &[u8]) -> bool {
        let Some(end) = octets.iter().position(|octet| *octet == 0) else { return true };
        let is = |name: &str| octets.get(..end) == Some(name.as_bytes());
        !is(LOOPBACK) && !self.hardware.iter().any(|device| is(&device.name))
    }

    fn may_be_numbered(&self, octets: &[u8]) -> bool {
        let is = |index: u32| octets == index.to_ne_bytes();
        !is(LOOPBACK_INDEX) && !self.hardware.iter().any(|device| is(device.index))
    }

    /// Whether a pod's address may begin like this. None is of loopback, multicast, 6to4, or of a reserved block.
    fn may_be_a_pods(&self, octets: &[u8]) -> bool {
        match octets {
            [first, ..] if self.packet.is_ipv4() => !matches!(first, 0 | 127 | 224..),
            [0xff, ..] | [0, 0, ..] | [0x20, 0x02, ..] => false,
            _ => true,
        }
    }

    /// Whether the set has what the register holds; a map's value goes to its register.
    fn lookup(&mut self, set: &Set, from: usize, inverted: bool, to: Option<usize>) -> Truth {
        let Some(elements) = &set.elements else {
            if let Some(to) = to {
                self.load(to, &unknown(DEVICE_NAME_OCTETS), Origin::Plain);
            }
            return Truth::Maybe.unlikely_if(self.is_of_strangers(set, from));
        };
        let found = elements.iter().map(|element| self.is_in(element, set, from)).max().unwrap_or(Truth::No);
        if let Some(to) = to {
            let surely = elements.iter().find(|element| self.is_in(element, set, from) == Truth::Yes);
            match surely.and_then(|element| element.value.as_ref()) {
                Some(Value::Octets(octets)) => self.load(to, &known(octets), Origin::Plain),
                _ => self.load(to, &unknown(DEVICE_NAME_OCTETS), Origin::Plain),
            }
        }
        found.inverted_if(inverted).unlikely_if(self.is_of_strangers(set, from))
    }

    /// A named set of addresses that a rule looks a pod up in, as it is: a list of who is banned, and pods are not on it.
    fn is_of_strangers(&self, set: &Set, from: usize) -> bool {
        !set.is_anonymous && self.origin(from) == Origin::PodAddress
    }

    /// The verdicts that a map may give.
    fn verdicts(&self, set: &Set, from: usize) -> Outcome {
        let Some(elements) = &set.elements else { return vec![(Truth::Maybe, Verdict::Queue)] };
        let verdict = |element: &Element| match &element.value {
            Some(Value::Verdict(verdict)) => verdict.clone(),
            _ => Verdict::Continue,
        };
        let mut found = Outcome::new();
        for element in elements {
            match self.is_in(element, set, from) {
                Truth::No => {}
                Truth::Yes if element.range.is_some() => return vec![(Truth::Yes, verdict(element))],
                truth => {
                    let one = (truth.min(Truth::Maybe), verdict(element));
                    if !found.contains(&one) {
                        found.push(one);
                    }
                }
            }
        }
        // Nothing but the one for all others.
        if let [(truth, _)] = found.as_mut_slice()
            && elements.iter().all(|one| one.range.is_none() || self.is_in(one, set, from) == Truth::No)
        {
            *truth = Truth::Yes;
        }
        found
    }

    fn is_in(&self, element: &Element, set: &Set, from: usize) -> Truth {
        let Some((low, high)) = &element.range else { return Truth::Maybe };
        let (mut truth, mut start) = (Truth::Yes, 0);
        for length in &set.parts {
            let end = start + length;
            let (Some(low), Some(high)) = (low.get(start..end), high.get(start..end)) else {
                return Truth::Maybe;
            };
            truth = truth.and(self.between(from + start, low, high));
            start = end.next_multiple_of(4);
        }
        truth
    }

    fn fixed(&self, fixed: &Fixed) -> Truth {
        let inverted = |flag: u8| fixed.inverted & flag != 0;
        let address = |value: &[Octet], (wanted, mask): &(Vec<u8>, Vec<u8>)| {
            let of_pod = value.iter().all(|octet| *octet == Octet::UNKNOWN);
            if of_pod && mask.first() == Some(&u8::MAX) && !self.may_be_a_pods(wanted) {
                return Truth::No;
            }
            let masked: Vec<Octet> =
                value.iter().zip(mask).map(|(octet, mask)| octet.masked(*mask, 0)).collect();
            equals(&masked, wanted)
        };
        let protocol = fixed.protocol.is_none_or(|protocol| protocol == self.packet.protocol());
        address(&self.packet.source(), &fixed.source)
            .inverted_if(inverted(INVERTED_SOURCE))
            .and(
                address(&self.packet.destination(), &fixed.destination)
                    .inverted_if(inverted(INVERTED_DESTINATION)),
            )
            .and(self.device(self.input(), &fixed.input_device).inverted_if(inverted(INVERTED_INPUT_DEVICE)))
            .and(
                self.device(self.output(), &fixed.output_device)
                    .inverted_if(inverted(INVERTED_OUTPUT_DEVICE)),
            )
            .and(Truth::of(protocol).inverted_if(inverted(INVERTED_PROTOCOL)))
            .and(Truth::of(!fixed.fragments || inverted(INVERTED_FRAGMENT)))
    }

    fn device(&self, end: End, (wanted, mask): &(Vec<u8>, Vec<u8>)) -> Truth {
        let name = match end {
            End::Nobody => padded(""),
            End::Loopback => padded(LOOPBACK),
            End::Pod => {
                // As far as the mask goes, the final zero included unless it is the beginning of a name.
                let length = mask.iter().take_while(|mask| **mask != 0).count();
                return match length {
                    0 => Truth::Yes,
                    _ if self.may_be_named(wanted.get(..length).unwrap_or_default()) => Truth::Maybe,
                    _ => Truth::No,
                };
            }
        };
        let pairs = name.iter().zip(wanted.iter().zip(mask));
        Truth::of(pairs.fold(true, |same, (octet, (wanted, mask))| same && (octet ^ wanted) & mask == 0))
    }
}

/// A device's name as the kernel compares it.
fn padded(name: &str) -> [u8; DEVICE_NAME_OCTETS] {
    let mut octets = [0; DEVICE_NAME_OCTETS];
    for (octet, byte) in octets.iter_mut().zip(name.bytes()) {
        *octet = byte;
    }
    octets
}

/// From the lowest octet first.
fn in_machine_order(mut number: [Octet; 4]) -> [Octet; 4] {
    if cfg!(target_endian = "big") {
        number.reverse();
    }
    number
}
