//! The way of a packet of ours through the chains of others: who would drop it.
//!
//! ```text
//! for each packet, for each hook on its way, for each base chain there, by priority:
//!   rule after rule: no ─▶ next │ yes ─▶ its verdict │ maybe ─▶ its verdict, maybe, and the next rule as well
//! ```
//!
//! A drop is certain when nothing before it may have let the packet pass. Drops that only may come before it change
//! nothing about that; accepts that only may come do. What has not been read yet is asked for ([`Wants`]), and then all
//! is judged anew: so only what our packets reach is ever read.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{BaseChain, ChainId, Set, SetId, Verdict, World};
use super::packet::Packet;
use super::sight::Sight;
use super::value::Truth;

/// `NFT_JUMP_STACK_SIZE`: the kernel refuses more.
const MAX_DEPTH: usize = 16;
/// Rules that are gone through in one judgement, over all packets and chains.
pub(super) const MAX_STEPS: usize = 4_000_000;

/// What must be read before a judgement counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) chains: BTreeSet<ChainId>,
    pub(super) sets: BTreeSet<SetId>,
}

/// Where a packet is dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Culprit {
    /// The chain that the rule stands in.
    pub(super) chain: ChainId,
    /// `None`: the base chain's policy.
    pub(super) rule: Option<u64>,
}

/// What a base chain does to packets of ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// Each packet that is dropped, and whether that is certain.
    pub(super) packets: BTreeMap<Packet, bool>,
    pub(super) culprits: BTreeSet<Culprit>,
}

/// A judgement.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// By the place of the base chain in [`World::base`].
    pub(super) obstacles: BTreeMap<usize, Obstacle>,
    /// What is missing; then nothing else counts.
    pub(super) wants: Wants,
    /// There was more than [`MAX_STEPS`] to go through.
    pub(super) is_partial: bool,
}

/// Judges all packets.
pub(super) fn judge<'a>(world: &'a World, packets: &'a [Packet]) -> Judgement {
    let mut order: Vec<usize> = (0..world.base.len()).collect();
    order.sort_by_key(|place| world.base.get(*place).map(|base| base.priority));
    let mut walk = Walk { world, judgement: Judgement::default(), steps: 0, place: 0 };
    for packet in packets {
        let mut sight = Sight::new(packet, world);
        for hook in packet.hooks() {
            for &place in &order {
                let Some(base) = world.base.get(place) else { continue };
                if base.hook != *hook || !base.id.table.scope.has(packet.is_ipv4()) {
                    continue;
                }
                sight.at(*hook, base.priority);
                walk.place = place;
                // On with the next even after a drop: all are said at once, not one after the other is gone.
                walk.base_chain(base, &mut sight);
            }
        }
    }
    walk.judgement
}

struct Walk<'a> {
    world: &'a World,
    judgement: Judgement,
    steps: usize,
    /// Of the base chain that is gone through.
    place: usize,
}

/// How a chain is left. That it may be left by a drop is not said here.
#[derive(Debug, Clone, Copy)]
struct Exit {
    /// The packet may come to its end, or return.
    falls_through: bool,
    /// It may be accepted.
    accepts: bool,
}

impl<'a> Walk<'a> {
    fn base_chain(&mut self, base: &BaseChain, sight: &mut Sight<'a>) {
        let exit = self.chain(&base.id, sight, Truth::Yes, 0);
        if exit.falls_through && base.drops_the_rest {
            let at = if exit.accepts { Truth::Maybe } else { Truth::Yes };
            self.dropped(sight.packet, at, Culprit { chain: base.id.clone(), rule: None });
        }
    }

    fn chain(&mut self, id: &ChainId, sight: &mut Sight<'a>, arrival: Truth, depth: usize) -> Exit {
        let world = self.world;
        let mut exit = Exit { falls_through: false, accepts: false };
        let Some(rules) = world.bodies.get(id) else {
            self.judgement.wants.chains.insert(id.clone());
            return Exit { falls_through: true, ..exit };
        };
        if depth > MAX_DEPTH {
            return Exit { falls_through: true, accepts: true };
        }
        let mut here = arrival;
        for rule in rules {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                self.judgement.is_partial = true;
                return Exit { falls_through: true, accepts: true };
            }
            let wants = &mut self.judgement.wants.sets;
            let mut find = |name: &str| -> Option<&'a Set> {
                let id = SetId { table: id.table.clone(), name: name.to_owned() };
                let set = world.sets.get(&id);
                if set.is_none() {
                    wants.insert(id);
                }
                set
            };
            for (truth, verdict) in sight.run(&rule.expressions, here == Truth::Yes, &mut find) {
                let at = here.and(truth);
                let sure = truth == Truth::Yes;
                let culprit = || Culprit { chain: id.clone(), rule: Some(rule.number) };
                // What may leave the chain, and how.
                let (mut may_accept, mut may_leave) = (false, false);
                match verdict {
                    Verdict::Continue => continue,
                    Verdict::Accept => may_accept = true,
                    Verdict::Drop => self.dropped(sight.packet, at, culprit()),
                    Verdict::Queue => {
                        self.dropped(sight.packet, at.and(Truth::Maybe), culprit());
                        may_accept = true;
                    }
                    Verdict::Return => may_leave = true,
                    Verdict::Jump(ref name) | Verdict::Goto(ref name) => {
                        let to = ChainId { table: id.table.clone(), name: name.clone() };
                        let sub = self.chain(&to, sight, at, depth + 1);
                        may_accept = sub.accepts;
                        if matches!(verdict, Verdict::Goto(_)) {
                            may_leave = sub.falls_through;
                        } else if sure && sub.falls_through {
                            // Back, and on with the next rule.
                            exit.accepts |= may_accept;
                            here = weakened(here, may_accept);
                            continue;
                        }
                    }
                }
                exit.accepts |= may_accept;
                exit.falls_through |= may_leave;
                if sure {
                    return exit;
                }
                here = weakened(here, may_accept || may_leave);
            }
        }
        Exit { falls_through: true, ..exit }
    }

    fn dropped(&mut self, packet: &Packet, at: Truth, culprit: Culprit) {
        if matches!(at, Truth::No | Truth::Unlikely) {
            return;
        }
        let obstacle = self.judgement.obstacles.entry(self.place).or_default();
        *obstacle.packets.entry(packet.clone()).or_default() |= at == Truth::Yes;
        obstacle.culprits.insert(culprit);
    }
}

/// How sure it is to come on, where the packet may have gone another way.
fn weakened(here: Truth, may_be_gone: bool) -> Truth {
    if may_be_gone { here.min(Truth::Maybe) } else { here }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::Desired;
    use crate::obstacles::model::{Device, Expression, Hook, Rule, Scope, Table};
    use crate::obstacles::packet::packets;

    const META_IIFNAME: u32 = 6;
    const CMP_EQ: u32 = 0;

    fn table() -> Table {
        Table { is_legacy: false, scope: Scope::Inet, name: "guard".to_owned() }
    }

    fn id(name: &str) -> ChainId {
        ChainId { table: table(), name: name.to_owned() }
    }

    fn rule(expressions: Vec<Expression>) -> Rule {
        Rule { number: 7, is_of_iptables: false, expressions }
    }

    fn verdict(verdict: Verdict) -> Rule {
        rule(vec![Expression::Verdict(verdict)])
    }

    fn maybe(verdict: Verdict) -> Rule {
        rule(vec![Expression::MayEnd, Expression::Verdict(verdict)])
    }

    /// A chain `input`, with others that rules may lead to.
    fn world(drops_the_rest: bool, chains: Vec<(&str, Vec<Rule>)>) -> World {
        let base = BaseChain { id: id("input"), hook: Hook::Input, priority: 0, drops_the_rest };
        let bodies = chains.into_iter().map(|(name, rules)| (id(name), rules)).collect();
        World { base: vec![base], bodies, ..World::default() }
    }

    /// Whether a pod's query is dropped: for certain, maybe, or not (`None`).
    fn drops(world: &World) -> Option<bool> {
        let local = ["169.254.20.10".parse().unwrap()];
        let desired = Desired::new(&local, "nodestub", NonZeroU16::new(53).unwrap(), None).unwrap();
        let packets = packets(&desired);
        let judgement = judge(world, &packets[..1]);
        assert_eq!(judgement.wants, Wants::default());
        judgement.obstacles.get(&0).and_then(|obstacle| obstacle.packets.get(&packets[0])).copied()
    }

    #[test]
    fn is_certain_only_where_nothing_before_may_have_accepted() {
        let input = |rules| vec![("input", rules)];
        assert_eq!(drops(&world(true, input(vec![]))), Some(true));
        assert_eq!(drops(&world(false, input(vec![]))), None);
        assert_eq!(drops(&world(true, input(vec![verdict(Verdict::Accept)]))), None);
        assert_eq!(drops(&world(true, input(vec![maybe(Verdict::Accept)]))), Some(false));
        // A drop that may come before changes nothing: it is dropped either way.
        assert_eq!(drops(&world(true, input(vec![maybe(Verdict::Drop)]))), Some(true));
        assert_eq!(drops(&world(false, input(vec![maybe(Verdict::Drop)]))), Some(false));
        assert_eq!(drops(&world(false, input(vec![verdict(Verdict::Queue)]))), Some(false));
        // A return in the base chain is its end, and so its policy.
        assert_eq!(
            drops(&world(true, input(vec![maybe(Verdict::Return), maybe(Verdict::Drop)]))),
            Some(true)
        );
        assert_eq!(
            drops(&world(true, input(vec![verdict(Verdict::Return), verdict(Verdict::Accept)]))),
            Some(true)
        );
    }

    #[test]
    fn follows_jumps_and_comes_back_but_not_from_a_goto() {
        let jump = || Verdict::Jump("sub".to_owned());
        let goto = || Verdict::Goto("sub".to_owned());
        let both = |first, sub| vec![("input", vec![first, verdict(Verdict::Drop)]), ("sub", sub)];
        assert_eq!(drops(&world(false, both(verdict(jump()), vec![]))), Some(true));
        assert_eq!(drops(&world(false, both(verdict(goto()), vec![]))), None);
        assert_eq!(drops(&world(false, both(maybe(goto()), vec![]))), Some(false));
        assert_eq!(drops(&world(false, both(verdict(jump()), vec![verdict(Verdict::Return)]))), Some(true));
        assert_eq!(drops(&world(false, both(verdict(jump()), vec![maybe(Verdict::Accept)]))), Some(false));
        assert_eq!(drops(&world(false, both(verdict(jump()), vec![verdict(Verdict::Accept)]))), None);
        // A circle, which the kernel refuses, ends.
        let circle = vec![("input", vec![verdict(jump())]), ("sub", vec![verdict(jump())])];
        assert_eq!(drops(&world(false, circle)), None);
    }

    #[test]
    fn asks_for_what_it_comes_to_and_for_nothing_else() {
        let sub = || Verdict::Jump("sub".to_owned());
        let other = Expression::Compare { from: 0, operator: CMP_EQ, octets: vec![1] };
        let constant = Expression::Constant { octets: vec![2], to: 0 };
        let never = rule(vec![constant, other, Expression::Verdict(Verdict::Jump("never".to_owned()))]);
        let world = world(false, vec![("input", vec![never, verdict(sub())])]);
        let local = ["169.254.20.10".parse().unwrap()];
        let desired = Desired::new(&local, "nodestub", NonZeroU16::new(53).unwrap(), None).unwrap();
        let wants = judge(&world, &packets(&desired)).wants;
        assert_eq!(wants, Wants { chains: [id("sub")].into(), sets: BTreeSet::new() });
    }

    #[test]
    fn takes_no_pods_packet_to_come_in_by_hardware() {
        let by = |device: &[u8]| {
            rule(vec![
                Expression::Meta { key: META_IIFNAME, to: 0 },
                Expression::Compare { from: 0, operator: CMP_EQ, octets: device.to_vec() },
                Expression::Verdict(Verdict::Drop),
            ])
        };
        for (device, expected) in
            [(&b"eth0\0"[..], None), (b"lo\0", None), (b"veth7\0", Some(false)), (b"eth", Some(false))]
        {
            let mut world = world(false, vec![("input", vec![by(device)])]);
            world.hardware = vec![Device { index: 2, name: "eth0".to_owned() }];
            assert_eq!(drops(&world), expected, "{device:?}");
            world.hardware.clear();
            assert_eq!(drops(&world), expected.or((device == b"eth0\0").then_some(false)), "{device:?}");
        }
    }
}
