//! Sequences whose blocks lie anywhere, are shared or copied: the same bits as from blocks of their own, in order.

use parlance_inference_engine::{BlockCopy, TokenId};

use super::*;

const CONTEXT: usize = 64;

fn prompt(seed: u32, length: usize) -> Vec<TokenId> {
    (0..length as u32).map(|at| (at * 37 + seed * 11 + 5) % 250).collect()
}

/// The rows of logits behind every token, one after the other.
fn rows(model: &mut Model, tokens: &[TokenId]) -> Vec<Vec<f32>> {
    all_rows(model, &[LaneInput { lane: 0, start: 0, tokens, logits: 1 }])
}

/// The rows behind the last `logits` tokens, from position `start` on.
fn step(model: &mut Model, lane: usize, start: usize, tokens: &[TokenId], logits: usize) -> Vec<Vec<f32>> {
    let mut found = Vec::new();
    let input = LaneInput { lane, start, tokens: &tokens[start..], logits };
    model.step(&[input], &mut found).expect("the step succeeds");
    found.chunks(model.vocabulary()).map(<[f32]>::to_vec).collect()
}

#[test]
fn blocks_may_lie_anywhere_and_be_shared() {
    let tokens = [prompt(1, 40), prompt(2, 20)].concat();
    let other = [prompt(1, 32), prompt(3, 25)].concat();
    let mut model = tiny(3).model;
    assert_eq!((model.block_tokens(), model.blocks()), (32, 6));
    let (whole, whole_other) = (rows(&mut model, &tokens), rows(&mut model, &other));
    model.place(0, &[5, 2]);
    assert_eq!(step(&mut model, 0, 0, &tokens, 60), whole);
    // Lane 1 reads the first block where lane 0 has it, and goes on in one of its own.
    model.place(1, &[5, 0]);
    assert_eq!(step(&mut model, 1, 32, &other, 25), whole_other[32..]);
    assert_eq!(step(&mut model, 0, 59, &tokens, 1), whole[59..], "nothing of it was overwritten");
    model.place(2, &[3]);
    let long = LaneInput { lane: 2, start: 0, tokens: &tokens[..33], logits: 0 };
    assert!(model.step(&[long], &mut Vec::new()).is_err(), "a block does not hold 33 positions");
}

#[test]
fn a_copied_beginning_goes_on_like_its_own() {
    let (tokens, other) = ([prompt(1, 40), prompt(2, 9)].concat(), [prompt(1, 40), prompt(3, 14)].concat());
    let mut model = tiny(2).model;
    let whole_other = rows(&mut model, &other);
    step(&mut model, 0, 0, &tokens, 1);
    model.place(0, &[0, 1]);
    model.place(1, &[0, 3]);
    model.copy(BlockCopy { from: 1, to: 3, positions: 8 });
    assert_eq!(step(&mut model, 1, 40, &other, 14), whole_other[40..]);
    model.copy(BlockCopy { from: 1, to: 3, positions: 7 });
    let input = LaneInput { lane: 1, start: 40, tokens: &other[40..], logits: 1 };
    assert!(model.step(&[input], &mut Vec::new()).is_err(), "one position is missing");
}

#[test]
fn rejected_tokens_leave_no_trace() {
    let mut model = tiny(1).model;
    let tokens = prompt(1, CONTEXT);
    let whole = rows(&mut model, &tokens);
    // Across a block's end: four of nine tokens are other ones, and their positions are computed again.
    for begin in [5, 25, 31] {
        assert_eq!(rows(&mut model, &tokens), whole);
        let wrong = [&tokens[..begin + 5], &prompt(7, 4)].concat();
        let found = step(&mut model, 0, begin, &wrong, 9);
        assert_eq!(found[..5], whole[begin..begin + 5]);
        assert_eq!(step(&mut model, 0, begin + 5, &tokens[..begin + 9], 4), whole[begin + 5..begin + 9]);
    }
}

#[test]
fn memory_for_fewer_tokens_is_memory_for_one_context_at_least() {
    let bytes = tensors(metadata(), "").finish();
    for (cache_tokens, blocks) in [(Some(1), 2), (Some(100), 4), (None, 8)] {
        let options = LoadOptions { lanes: 4, cache_tokens, ..LoadOptions::new("tiny") };
        let model = load_bytes(&bytes, &options).expect("loads").model;
        assert_eq!((model.lanes(), model.blocks()), (4, blocks));
    }
}
