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
