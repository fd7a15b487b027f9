use std::{collections::HashMap, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{embedding::PendingEmbeddings, load::Load, metrics::ReplicaMetrics};

const DIMENSIONS: usize = 2;

fn load() -> Arc<Load> {
    Load::new(Arc::new(ReplicaMetrics::new("test")))
}

fn job(load: &Arc<Load>, tenant: &str, lengths: &[usize]) -> (Job, PendingEmbeddings) {
    // A text's first token tells it apart.
    let texts = (100..).zip(lengths).map(|(first, length)| (first..).take(*length).collect()).collect();
    let request = EmbeddingRequest { texts, tenant: tenant.into(), deadline: None };
    let (reply, pending) = oneshot::channel();
    let place = load.wait(usize::MAX).expect("no bound");
    (Job { request, reply, submitted: Instant::now(), place }, pending)
}

/// What a model would say: the text's first token, and its length.
fn vectors(turns: &Turns, batch: &Batch) -> Vec<f32> {
    turns.texts(batch).into_iter().flat_map(|text| [text[0] as f32, text.len() as f32]).collect()
}

fn expected(lengths: &[usize]) -> Vec<f32> {
    (100..).zip(lengths).flat_map(|(first, length)| [first as f32, *length as f32]).collect()
}

fn step(turns: &mut Turns, tokens: usize) -> Vec<usize> {
    let batch = turns.next_batch(tokens);
    let (values, lengths) = (vectors(turns, &batch), turns.texts(&batch).into_iter().map(<[TokenId]>::len).collect());
    turns.computed(&batch, &values, DIMENSIONS, |_, _| {});
    lengths
}

#[test]
fn tenants_and_their_requests_take_turns() {
    let (mut turns, load) = (Turns::default(), load());
    let (flood, _flood) = job(&load, "flood", &[10; 100]);
    turns.push(flood);
    assert_eq!(step(&mut turns, 40), [10; 4]);
    let (second, mut second_end) = job(&load, "flood", &[7]);
    let (light, mut light_end) = job(&load, "light", &[8, 8]);
    turns.push(second);
    turns.push(light);
    // The flood's next text is first in the row, then the light tenant's, then the flood's other request.
    assert_eq!(step(&mut turns, 40), [10, 8, 7, 8]);
    assert_eq!(second_end.try_recv().expect("done").expect("vectors").values, expected(&[7]));
    assert_eq!(light_end.try_recv().expect("done").expect("vectors").values, expected(&[8, 8]));
    assert_eq!(step(&mut turns, 40), [10; 4]);
}

#[test]
fn a_text_longer_than_a_step_has_one_of_its_own() {
    let (mut turns, load) = (Turns::default(), load());
    let (long, _end) = job(&load, "a", &[3, 50, 3]);
    turns.push(long);
    assert_eq!([step(&mut turns, 10), step(&mut turns, 10), step(&mut turns, 10)], [vec![3], vec![50], vec![3]]);
    assert!(turns.is_empty() && load.now().waiting == 0);
}

#[test]
fn whoever_is_gone_or_late_takes_no_further_step() {
    let (mut turns, load) = (Turns::default(), load());
    let (gone, gone_end) = job(&load, "a", &[5, 5]);
    let (mut late, mut late_end) = job(&load, "a", &[6]);
    let (kept, _kept_end) = job(&load, "b", &[4]);
    let now = Instant::now();
    late.request.deadline = Some(now);
    [gone, late, kept].into_iter().for_each(|job| turns.push(job));
    drop(gone_end);
    let mut ended = Vec::new();
    turns.drop_unwanted(now, |how, job| ended.push((how, job.request.texts[0].len())));
    ended.sort_by_key(|(_, length)| *length);
    assert_eq!(ended, [(Ended::Cancelled, 5), (Ended::Failed, 6)]);
    assert_eq!(late_end.try_recv(), Ok(Err(EngineError::DeadlineExceeded)));
    assert_eq!(step(&mut turns, 100), [4]);
    assert!(turns.is_empty() && load.now().waiting == 0);
}

#[test]
fn a_vector_that_is_none_fails_its_own_request_alone() {
    let (mut turns, load) = (Turns::default(), load());
    let (bad, mut bad_end) = job(&load, "a", &[1, 2]);
    let (good, mut good_end) = job(&load, "b", &[3]);
    turns.push(bad);
    turns.push(good);
    let batch = turns.next_batch(100);
    let mut values = vectors(&turns, &batch);
    values[1] = f32::NAN;
    turns.computed(&batch, &values, DIMENSIONS, |_, _| {});
    assert!(matches!(bad_end.try_recv(), Ok(Err(EngineError::ModelFailed(_)))));
    assert_eq!(good_end.try_recv().expect("done").expect("vectors").values, expected(&[3]));
    assert!(turns.is_empty());
}

proptest! {
    #[test]
    fn every_request_gets_its_own_vectors_in_order(
        requests in prop::collection::vec((0..3_usize, prop::collection::vec(1..20_usize, 1..12), any::<bool>()), 1..12),
        tokens in 1..60_usize,
    ) {
        let (mut turns, load) = (Turns::default(), load());
        let (mut pending, mut taken) = (HashMap::new(), 0);
        for (number, (tenant, lengths, _)) in requests.iter().enumerate() {
            let (job, end) = job(&load, &tenant.to_string(), lengths);
            turns.push(job);
            pending.insert(number, end);
            // Some arrive while others are under way.
            taken += step(&mut turns, tokens).len();
        }
        for (number, (_, _, leaves)) in requests.iter().enumerate() {
            if *leaves {
                pending.remove(&number);
            }
        }
        turns.drop_unwanted(Instant::now() + Duration::from_secs(1), |_, _| {});
        let all: usize = requests.iter().map(|(_, lengths, _)| lengths.len()).sum();
        for _ in taken..all {
            let batch = step(&mut turns, tokens);
            prop_assert!(batch.len() == 1 || batch.iter().sum::<usize>() <= tokens);
        }
        prop_assert!(turns.is_empty() && turns.turns.is_empty() && load.now().waiting == 0);
        for (number, mut end) in pending {
            let found = end.try_recv().expect("it has ended").expect("vectors");
            prop_assert_eq!(found.values, expected(&requests[number].1));
        }
    }
}
