use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::identity::BootId;

/// Everything that a plan is made of, drawn at random.
#[derive(Debug, Clone)]
struct World {
    members: Vec<Candidate>,
    shards: Vec<Shard>,
}

fn node(number: usize) -> Incarnation {
    Incarnation { name: format!("node-{number}").parse().expect("a name"), boot: BootId(7) }
}

fn member(number: usize) -> Candidate {
    Candidate { node: node(number), zone: None, weight: Weight::ONE, draining: false }
}

fn members(count: usize) -> Vec<Candidate> {
    (0..count).map(member).collect()
}

/// Up to `nodes` members in up to 4 zones, some draining, and up to `shards` shards that belong to anybody: to members, to nodes that are gone,
/// to earlier starts, to nobody.
fn world(nodes: usize, shards: usize) -> impl Strategy<Value = World> {
    let drawn = (0usize..4, 1u32..6, prop::bool::weighted(0.15));
    let members = prop::collection::vec(drawn, 0..=nodes).prop_map(|drawn| {
        let member = |(number, (zone, weight, draining)): (usize, (usize, u32, bool))| Candidate {
            zone: zone.checked_sub(1).map(|zone| format!("zone-{zone}").parse().expect("a zone")),
            weight: Weight::new(weight).expect("a weight"),
            draining,
            ..member(number)
        };
        drawn.into_iter().enumerate().map(member).collect::<Vec<_>>()
    });
    members.prop_flat_map(move |members| {
        let anybody =
            prop::option::weighted(0.8, (0..members.len() + 3, prop::bool::weighted(0.05))).prop_map(|drawn| {
                drawn.map(|(number, old)| Incarnation { boot: BootId(7 - u64::from(old)), ..node(number) })
            });
        let shard = (anybody.clone(), anybody).prop_map(|(owner, warm)| Shard { owner, warm });
        (Just(members), prop::collection::vec(shard, 1..=shards))
            .prop_map(|(members, shards)| World { members, shards })
    })
}

fn counts<'a>(owners: impl Iterator<Item = Option<&'a Incarnation>>) -> BTreeMap<&'a Incarnation, usize> {
    let mut counts = BTreeMap::new();
    for owner in owners.flatten() {
        *counts.entry(owner).or_default() += 1;
    }
    counts
}

fn owned(plan: &Plan) -> BTreeMap<&Incarnation, usize> {
    counts(plan.hints.iter().map(|hint| hint.owner.as_ref()))
}

/// The world after `moves`.
fn after(shards: &[Shard], moves: &[Move]) -> Vec<Shard> {
    let mut shards = shards.to_vec();
    for Move { shard, to, .. } in moves {
        shards[*shard as usize].owner = Some(to.clone());
    }
    shards
}

/// A world in which every shard is where it should be, and every standby is warm.
fn settled(members: &[Candidate], count: usize) -> Vec<Shard> {
    let plan = plan(members, &vec![Shard::default(); count], usize::MAX);
    plan.hints.into_iter().map(|hint| Shard { owner: hint.owner, warm: hint.standby }).collect()
}

/// The fewest moves that any plan with even shares needs: shards without a live owner, and what is above a share even if rounded up where
/// that helps.
fn fewest_moves(world: &World) -> usize {
    let serving: Vec<_> = world.members.iter().filter(|member| !member.draining).collect();
    let total: u64 = serving.iter().map(|member| u64::from(member.weight.get())).sum();
    let held = counts(world.shards.iter().map(|shard| shard.owner.as_ref()));
    let (mut kept, mut wish_more, mut round_up) = (0, 0, 0);
    for member in &serving {
        let share = world.shards.len() as u64 * u64::from(member.weight.get());
        let (floor, fraction) = ((share / total) as usize, share % total);
        let held = held.get(&member.node).copied().unwrap_or(0);
        kept += held.min(floor);
        wish_more += usize::from(fraction > 0 && held > floor);
        round_up += fraction;
    }
    if serving.is_empty() { 0 } else { world.shards.len() - kept - wish_more.min((round_up / total) as usize) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn plans_keep_their_promises(world in prop_oneof![4 => world(9, 70), 1 => world(200, 600), 1 => world(200, 4_096)]) {
        let plan = plan(&world.members, &world.shards, usize::MAX);
        prop_assert_eq!(plan.hints.len(), world.shards.len());
        check_balance(&world, &plan)?;
        check_standbys(&world, &plan)?;
        check_moves(&world, &plan)?;
    }

    #[test]
    fn the_order_of_members_says_nothing(world in world(30, 200), seed in any::<u64>()) {
        let mut shuffled = world.members.clone();
        shuffled.sort_by_key(|member| xxhash_rust::xxh3::xxh3_64_with_seed(member.node.name.as_str().as_bytes(), seed));
        prop_assert_eq!(plan(&world.members, &world.shards, 9), plan(&shuffled, &world.shards, 9));
    }

    #[test]
    fn bounded_moves_lead_to_the_same_number_of_moves(world in world(9, 70), bound in 1usize..8) {
        let all = plan(&world.members, &world.shards, usize::MAX).moves;
        let mut shards = world.shards.clone();
        let mut left = all.len();
        while left > 0 {
            let moves = plan(&world.members, &shards, bound).moves;
            prop_assert_eq!(moves.len(), left.min(bound));
            shards = after(&shards, &moves);
            left -= moves.len();
        }
        prop_assert_eq!(plan(&world.members, &shards, bound).moves, []);
    }

    #[test]
    fn a_node_that_joins_gets_its_share_and_nothing_else_moves(count in 1usize..40, shards in 1usize..600) {
        let plan = plan(&members(count + 1), &settled(&members(count), shards), usize::MAX);
        let share = shards / (count + 1);
        prop_assert!([share, share + 1].contains(&plan.moves.len()), "{} of {shards}", plan.moves.len());
        prop_assert!(plan.moves.iter().all(|change| change.to == node(count) && change.from.is_some()));
    }

    #[test]
    fn a_node_that_is_gone_or_drains_loses_its_shards_and_nothing_else_moves(
        count in 2usize..40, shards in 1usize..600, gone: prop::sample::Index, drains: bool,
    ) {
        let (mut left, settled) = (members(count), settled(&members(count), shards));
        let gone = gone.index(count);
        let lost = settled.iter().filter(|shard| shard.owner == Some(node(gone))).count();
        if drains { left[gone].draining = true } else { left.remove(gone); }
        let plan = plan(&left, &settled, usize::MAX);
        prop_assert_eq!(plan.moves.len(), lost);
        for change in &plan.moves {
            prop_assert_eq!(settled[change.shard as usize].owner.as_ref(), Some(&node(gone)));
            prop_assert_eq!(&change.from, &drains.then(|| node(gone)));
        }
        prop_assert!(plan.hints.iter().all(|hint| hint.owner != Some(node(gone)) && hint.standby != Some(node(gone))));
    }
}

/// Nobody is a whole shard from its share; who drains has nothing once somebody serves.
fn check_balance(world: &World, plan: &Plan) -> Result<(), TestCaseError> {
    let serving: Vec<_> = world.members.iter().filter(|member| !member.draining).collect();
    let total: u64 = serving.iter().map(|member| u64::from(member.weight.get())).sum();
    let owned = owned(plan);
    for member in &serving {
        let owned = owned.get(&member.node).copied().unwrap_or(0) as u64;
        let share = world.shards.len() as u64 * u64::from(member.weight.get());
        prop_assert!((owned * total).abs_diff(share) < total, "{member:?} owns {owned} of {}", world.shards.len());
    }
    if !serving.is_empty() {
        prop_assert_eq!(owned.values().sum::<usize>(), world.shards.len());
        prop_assert!(owned.keys().all(|owner| serving.iter().any(|member| member.node == **owner)));
    }
    Ok(())
}

/// A standby serves, is not the owner, and is in another zone if anybody is.
fn check_standbys(world: &World, plan: &Plan) -> Result<(), TestCaseError> {
    let zone = |node: &Incarnation| world.members.iter().find(|member| member.node == *node).map(|member| &member.zone);
    for hint in &plan.hints {
        let Some(owner) = &hint.owner else {
            prop_assert_eq!(&hint.standby, &None);
            continue;
        };
        let others = || world.members.iter().filter(|member| member.node != *owner && !member.draining);
        let Some(standby) = &hint.standby else {
            prop_assert_eq!(others().count(), 0);
            continue;
        };
        prop_assert!(others().any(|member| member.node == *standby));
        let elsewhere = others().any(|member| Some(&member.zone) != zone(owner));
        prop_assert_eq!(elsewhere, zone(standby) != zone(owner));
    }
    Ok(())
}

/// The moves are the difference between what is and what should be, as few as possible, in their order, and warm standbys come first.
fn check_moves(world: &World, plan: &Plan) -> Result<(), TestCaseError> {
    let hinted: Vec<_> = plan.hints.iter().map(|hint| hint.owner.clone()).collect();
    let lives = |node: &Option<Incarnation>| world.members.iter().find(|member| Some(&member.node) == node.as_ref());
    let now: Vec<_> = world.shards.iter().map(|shard| lives(&shard.owner).map(|owner| owner.node.clone())).collect();
    prop_assert_eq!(plan.moves.len(), now.iter().zip(&hinted).filter(|(now, then)| now != then).count());
    prop_assert_eq!(plan.moves.len(), fewest_moves(world));
    let mut last = Cause::Orphaned;
    for change in &plan.moves {
        let shard = change.shard as usize;
        prop_assert_eq!((&change.from, &Some(change.to.clone())), (&now[shard], &hinted[shard]));
        let cause = match lives(&change.from) {
            None => Cause::Orphaned,
            Some(owner) if owner.draining => Cause::Draining,
            Some(_) => Cause::Surplus,
        };
        prop_assert!(cause >= last);
        last = cause;
    }
    Ok(())
}

#[test]
fn nobody_there_means_no_owners() {
    let shards = vec![Shard { owner: Some(node(1)), warm: Some(node(2)) }; 64];
    let plan = plan(&[], &shards, 10);
    assert_eq!(plan, Plan { hints: vec![Hint::default(); 64], moves: vec![] });
}

#[test]
fn where_everybody_drains_shards_stay() {
    let members = [Candidate { draining: true, ..member(0) }, Candidate { draining: true, ..member(1) }];
    let shards = [Shard { owner: Some(node(1)), warm: None }, Shard { owner: Some(node(5)), warm: None }];
    let plan = plan(&members, &shards, 10);
    assert_eq!(plan.hints.iter().map(|hint| hint.owner.clone()).collect::<Vec<_>>(), [Some(node(1)), None]);
    assert_eq!((plan.moves, &plan.hints[0].standby), (vec![], &None));
}

#[test]
fn an_orphan_goes_to_its_warm_standby() {
    let members = members(4);
    let mut shards = settled(&members, 64);
    for shard in shards.iter_mut().filter(|shard| shard.owner == Some(node(0))).take(3) {
        shard.warm = Some(node(3));
    }
    let plan = plan(&members[1..], &shards, usize::MAX);
    let warm = plan.moves.iter().filter(|change| Some(&change.to) == shards[change.shard as usize].warm.as_ref());
    // Quotas are 21 and 22, so each of the three has room for at least 5 of the 16.
    assert!(warm.clone().count() >= 11, "{}", warm.count());
    assert!(warm.clone().filter(|change| change.to == node(3)).count() >= 3);
}

#[test]
fn a_restarted_node_does_not_own_what_its_last_start_owned() {
    let mut members = members(2);
    let shards = settled(&members, 10);
    members[0].node.boot = BootId(8);
    // The news of the older start, which comes late, changes nothing.
    let both = [members.clone(), vec![member(0)]].concat();
    let plan = plan(&both, &shards, usize::MAX);
    assert_eq!(plan.moves.len(), 5);
    assert!(plan.moves.iter().all(|change| change.from.is_none() && change.to == members[0].node));
}
