use proptest::prelude::*;

use super::*;

/// The same choice the plain way: everything sorted, one step after the other.
fn reference(row: &[f32], sampling: &Sampling, prompt: &[TokenId], reply: &[TokenId], position: u64) -> TokenId {
    let mut tokens: Vec<(f32, TokenId)> = (0..).zip(row).map(|(id, &logit)| (logit, id)).collect();
    for (logit, id) in &mut tokens {
        let count = reply.iter().filter(|&seen| seen == id).count() as u32;
        if count > 0 || prompt.contains(id) {
            *logit = penalised(*logit, count, sampling).clamp(f32::MIN, f32::MAX);
        }
    }
    tokens.sort_by(|a, b| b.0.partial_cmp(&a.0).expect("finite").then(a.1.cmp(&b.1)));
    if sampling.temperature == 0.0 {
        return tokens[0].1;
    }
    let max = tokens[0].0;
    let weigh = |logit: f32| weight((logit - max) / sampling.temperature);
    let total = |tokens: &[(f32, TokenId)]| tokens.iter().map(|t| weigh(t.0)).sum::<u64>();
    if sampling.top_k > 0 {
        tokens.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let target = (f64::from(sampling.top_p) * total(&tokens) as f64).ceil() as u64;
        let mut sum = 0;
        let enough = tokens.iter().position(|t| {
            sum += weigh(t.0);
            sum >= target.max(1)
        });
        let enough = enough.map_or(tokens.len(), |last| last + 1);
        tokens.truncate(enough);
    }
    tokens.retain(|t| weigh(t.0) >= (f64::from(sampling.min_p) * ONE as f64) as u64);
    tokens.sort_by_key(|t| t.1);
    let target = (u128::from(total(&tokens)) * u128::from(random::bits(sampling.seed, position))) >> 64;
    let mut sum = 0;
    let drawn = tokens.iter().find(|t| {
        sum += u128::from(weigh(t.0));
        sum > target
    });
    drawn.expect("the target is below the total").1
}

fn choose(row: &[f32], sampling: &Sampling, prompt: &[TokenId], reply: &[TokenId], position: u64) -> TokenId {
    let mut seen = Occurrences::new(sampling, prompt);
    reply.iter().for_each(|&id| seen.add(id));
    Sampler::default().choose(&mut row.to_vec(), sampling, &seen, position).expect("finite")
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        4 => -15.0f32..15.0,
        // Ties, both zeros, and the ends of the range.
        2 => prop::sample::select(vec![0.0, -0.0, 1.0, 2.0, 2.0]),
        1 => prop::sample::select(vec![f32::MIN, f32::MAX, -1e30, 1e-38]),
    ];
    let ordinary = prop::collection::vec(-15.0f32..15.0, 1..300);
    prop_oneof![3 => ordinary, 2 => prop::collection::vec(logit, 1..300)]
}

prop_compose! {
    fn samplings()(
        temperature in prop_oneof![1 => Just(0.0f32), 6 => 0.01f32..2.0],
        top_p in prop_oneof![1 => Just(1.0f32), 2 => 0.001f32..1.0],
        top_k in prop_oneof![1 => Just(0u32), 2 => 1u32..400],
        min_p in prop_oneof![2 => Just(0.0f32), 1 => 0.0f32..=1.0],
        repetition_penalty in prop_oneof![2 => Just(1.0f32), 1 => 0.001f32..2.0],
        presence_penalty in prop_oneof![2 => Just(0.0f32), 1 => -2.0f32..=2.0],
        frequency_penalty in prop_oneof![2 => Just(0.0f32), 1 => -2.0f32..=2.0],
        seed in any::<u64>(),
    ) -> Sampling {
        Sampling { temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn chooses_as_the_plain_way_does(
        row in rows(),
        sampling in samplings(),
        prompt in prop::collection::vec(any::<u32>(), 0..20),
        reply in prop::collection::vec(any::<u32>(), 0..20),
        position in 0u64..100_000,
    ) {
        let within = |ids: Vec<u32>| ids.into_iter().map(|id| id % row.len() as u32).collect::<Vec<_>>();
        let (prompt, reply) = (within(prompt), within(reply));
        let expected = reference(&row, &sampling, &prompt, &reply, position);
        prop_assert_eq!(choose(&row, &sampling, &prompt, &reply, position), expected);
    }

    #[test]
    fn weights_are_exponentials(x in -27.0f32..=0.0) {
        let exact = f64::from(x).exp() * ONE as f64;
        prop_assert!((weight(x) as f64 - exact).abs() <= exact * 1e-6 + 1.0, "{} for {}", weight(x), exact);
    }
}

#[test]
fn the_best_token_weighs_one_and_the_hopeless_nothing() {
    assert_eq!((weight(0.0), weight(-0.0)), (ONE, ONE));
    assert_eq!((weight(-40.0), weight(-1e30), weight(f32::NEG_INFINITY)), (0, 0, 0));
}

#[test]
fn equal_logits_rank_by_id_and_the_two_zeros_are_equal() {
    for row in [[-0.0f32, 0.0], [0.0, -0.0], [1.5, 1.5]] {
        for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 0.5)] {
            let sampling = Sampling { temperature, top_k, top_p, ..Sampling::default() };
            assert!((0..20).all(|position| choose(&row, &sampling, &[], &[], position) == 0), "{row:?} {sampling:?}");
        }
    }
}

#[test]
fn a_row_that_is_not_finite_is_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut row = vec![0.5; 100];
            row[57] = bad;
            assert_eq!(Sampler::default().choose(&mut row, &sampling, &Occurrences::default(), 0), Err(NotFinite));
        }
    }
}

#[test]
fn drawn_tokens_follow_the_probabilities() {
    let row = [2.0f32, 1.0, 0.0, -1.0].map(|x| x * 0.7);
    let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
    let mut counts = [0u32; 4];
    for position in 0..100_000 {
        counts[choose(&row, &sampling, &[], &[], position) as usize] += 1;
    }
    let total: f64 = [2.0f64, 1.0, 0.0, -1.0].iter().map(|x| x.exp()).sum();
    for (count, x) in counts.into_iter().zip([2.0f64, 1.0, 0.0, -1.0]) {
        let expected = x.exp() / total * 100_000.0;
        // Five standard deviations.
        assert!((f64::from(count) - expected).abs() < 5.0 * expected.sqrt(), "{count} for {expected}");
    }
}

#[test]
fn a_whole_vocabulary_is_chosen_from() {
    // Large rows take other depths and halvings than the property test's small ones.
    let row: Vec<f32> =
        (0..49_152).map(|n| (random::bits(3, n) >> 40) as f32 / (1 << 24) as f32 * 20.0 - 10.0).collect();
    for (position, (top_k, top_p, min_p)) in [
        (0, 1.0, 0.0),
        (40, 0.95, 0.0),
        (5000, 1.0, 0.0),
        (0, 0.9, 0.0),
        (0, 1.0, 0.05),
        (0, 0.999, 1e-6),
        (49_151, 1.0, 0.0),
    ]
    .into_iter()
    .enumerate()
    {
        for temperature in [0.1, 1.0, 2.0] {
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let position = position as u64;
            assert_eq!(choose(&row, &sampling, &[], &[], position), reference(&row, &sampling, &[], &[], position));
        }
    }
}
