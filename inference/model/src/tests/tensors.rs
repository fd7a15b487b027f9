//! The path of other devices than the processor: burn's own operations, against the references and itself. On burn-flex always; on wgpu
//! and CUDA with the feature, by `make test-wgpu` and `make test-cuda`.
#![expect(clippy::print_stdout, reason = "how far the logits are apart is part of the result")]

use parlance_inference_engine::{BlockCopy, EngineError, LaneInput, TextCodec as _, TokenModel as _};

use super::{
    all_rows,
    families::{NAMES, assembled, difference, expected},
    metadata, options, tensors, values,
};
use crate::{DeviceChoice, LoadOptions, LoadedModel, Model, ModelError, Precision, load};

/// The largest difference that a logit may have in f32, in parts of the logit or of 1, whichever is larger.
const TOLERANCE: f32 = 1e-4;
/// The largest distance of a row of logits from the reference's, in parts of that row's length, in f16 and in bf16, which have 11 and 8
/// bits. The models' weights are random, so that nothing evens out as it does in a trained one.
const F16_DISTANCE: f32 = 1e-2;
const BF16_DISTANCE: f32 = 8e-2;
/// The same where products of f32 may round their factors to TF32, as tensor cores do: 11 bits too.
#[cfg(feature = "cuda")]
const TF32_DISTANCE: f32 = F16_DISTANCE;

fn on(device: DeviceChoice, precision: Precision, lanes: usize) -> LoadOptions {
    LoadOptions { device, precision, ..options(lanes) }
}

fn family(name: &str, options: &LoadOptions) -> LoadedModel {
    load(assembled(name).path(), options, &|_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// Every family, alone and in ragged batches, against the reference.
fn agree_with_the_reference(device: DeviceChoice) {
    let differences = NAMES.map(|name| {
        let mut model = family(name, &on(device, Precision::F32, 3)).model;
        let ragged = ragged_rows(name, &mut model).into_iter().map(|(found, exact)| largest_difference(&found, &exact));
        (name, ragged.fold(difference(name, &mut model), f32::max))
    });
    assert!(differences.iter().all(|(_, difference)| *difference <= TOLERANCE), "{differences:?}");
}

/// The same in numbers that round.
fn come_near_the_reference(device: DeviceChoice, precision: Precision, most: f32) {
    let distances = NAMES.map(|name| {
        let mut model = family(name, &on(device, precision, 3)).model;
        let rows = ragged_rows(name, &mut model);
        (name, rows.into_iter().map(|(found, exact)| distance(&found, &exact)).fold(0.0, f32::max))
    });
    println!("{precision}: {distances:?}");
    assert!(distances.iter().all(|(_, distance)| *distance <= most), "{precision}: {distances:?}");
}

fn largest_difference(found: &[f32], exact: &[f32]) -> f32 {
    let differences = found.iter().zip(exact).map(|(found, exact)| (found - exact).abs() / exact.abs().max(1.0));
    differences.fold(0.0, f32::max)
}

fn distance(found: &[f32], exact: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>();
    let apart = squares(&mut found.iter().zip(exact).map(|(found, exact)| found - exact));
    (apart / squares(&mut exact.iter().copied())).sqrt()
}

/// The logits after each chunk, and the reference's, where chunks of all prompts are computed together.
fn ragged_rows(name: &str, model: &mut Model) -> Vec<(Vec<f32>, Vec<f32>)> {
    let (prompts, mut rows, mut done, mut logits) = (expected(name), Vec::new(), [0; 3], Vec::new());
    loop {
        let input = |lane: usize| {
            let (tokens, start) = (&prompts[lane].tokens, done[lane]);
            let end = tokens.len().min(start + [5, 1, 9][lane]);
            LaneInput { lane, start, tokens: &tokens[start..end], logits: 1 }
        };
        let inputs: Vec<_> = (0..3).map(input).filter(|input| !input.tokens.is_empty()).collect();
        if inputs.is_empty() {
            return rows;
        }
        model.step(&inputs, &mut logits).expect("the step succeeds");
        for (input, row) in inputs.iter().zip(logits.chunks_exact(model.vocabulary())) {
            done[input.lane] = input.start + input.tokens.len();
            rows.push((row.to_vec(), prompts[input.lane].rows[done[input.lane] - 1].clone()));
        }
    }
}

/// With the shapes of passes equal, a lane's logits are the same bits whatever stands beside it.
fn neighbours_change_nothing(device: DeviceChoice) {
    let mut model = family("qwen3", &on(device, Precision::Auto, 4)).model;
    let tokens = &expected("qwen3")[2].tokens;
    let mut beside = |first: &[u32], second: &[u32]| {
        let input = |lane, tokens| LaneInput { lane, start: 0, tokens, logits: 1 };
        all_rows(&mut model, &[input(2, &tokens[..7]), input(0, first), input(3, second)])[..7].to_vec()
    };
    let one = beside(&tokens[1..7], &tokens[2..4]);
    assert_eq!(beside(&tokens[5..9], &tokens[..8]), one);
    assert_ne!(one[5], one[6]);
}

#[test]
fn every_family_agrees_with_the_reference_in_f32() {
    agree_with_the_reference(DeviceChoice::CpuTensors);
}

#[test]
fn every_family_comes_near_the_reference_in_half_precision() {
    come_near_the_reference(DeviceChoice::CpuTensors, Precision::F16, F16_DISTANCE);
    come_near_the_reference(DeviceChoice::CpuTensors, Precision::Bf16, BF16_DISTANCE);
}

#[test]
fn lanes_are_padded_and_not_mixed() {
    neighbours_change_nothing(DeviceChoice::CpuTensors);
}

/// Blocks that lanes share, or copy the beginning of, hold what was written.
fn blocks_are_shared_and_copied(device: DeviceChoice, most: f32) {
    let mut model = family("llama2", &on(device, Precision::F32, 3)).model;
    let prompt = &expected("llama2")[2];
    let ask = |model: &mut Model, lane, start: usize, end: usize| {
        let input = LaneInput { lane, start, tokens: &prompt.tokens[start..end], logits: 1 };
        let mut row = Vec::new();
        model.step(&[input], &mut row).expect("the step succeeds");
        let apart = distance(&row, &prompt.rows[end - 1]);
        assert!(apart <= most, "lane {lane}, {start} to {end}: {apart}");
    };
    model.place(0, &[5, 1]);
    ask(&mut model, 0, 0, 39);
    model.place(1, &[5, 3]);
    model.copy(BlockCopy { from: 1, to: 3, positions: 4 });
    ask(&mut model, 1, 36, 38);
    model.place(2, &[0, 2]);
    model.copy(BlockCopy { from: 5, to: 0, positions: 20 });
    ask(&mut model, 2, 20, 37);
    ask(&mut model, 0, 39, 40);
}

#[test]
fn blocks_are_shared_and_copied_on_devices_too() {
    blocks_are_shared_and_copied(DeviceChoice::CpuTensors, TOLERANCE);
}

#[test]
fn tensors_have_numerics_and_sizes_of_their_own() {
    let of = |precision| {
        let loaded = family("llama3", &on(DeviceChoice::CpuTensors, precision, 2));
        (loaded.codec.info().numerics.clone(), loaded.model.weight_bytes(), loaded.model.cache_bytes())
    };
    let (f32, f16) = (of(Precision::F32), of(Precision::F16));
    assert_eq!((f32.0.as_str(), f16.0.as_str()), ("tensor-flex-f32-2", "tensor-flex-f16-2"));
    assert_eq!((f32.1, f32.2), (2 * f16.1, 2 * f16.2));
    let kernels = family("llama3", &on(DeviceChoice::Cpu, Precision::F32, 2));
    assert_eq!(kernels.codec.info().numerics, "f32-1");
}

/// A step after a failed one computes what it would have without it, or is refused.
fn what_a_failed_step_left(device: DeviceChoice) {
    let mut model = family("mistral", &on(device, Precision::Auto, 2)).model;
    let tokens = &expected("mistral")[2].tokens;
    let whole = LaneInput { lane: 0, start: 0, tokens, logits: 1 };
    let rows = all_rows(&mut model, &[whole]);
    let Model::Tensors(tensors) = &mut model else { panic!("another path") };
    tensors.spoil();
    assert_eq!(all_rows(&mut model, &[whole]), rows);
    let Model::Tensors(tensors) = &mut model else { panic!("another path") };
    tensors.spoil();
    let continued = LaneInput { lane: 0, start: 5, tokens: &tokens[5..], logits: 1 };
    let refused = model.step(&[continued], &mut Vec::new());
    assert!(refused.is_err(), "what was before position 5 is gone");
}

#[test]
fn what_a_failed_step_left_is_forgotten() {
    what_a_failed_step_left(DeviceChoice::CpuTensors);
}

#[test]
fn a_logit_that_is_not_a_number_is_an_error_here_too() {
    let shape = [super::HIDDEN as u64, (super::HEADS * super::HEAD) as u64];
    let broken = vec![f32::NAN; values(super::HIDDEN * super::HEADS * super::HEAD, 1).len()];
    let writer = tensors(metadata(), "attn_q").tensor("blk.0.attn_q.weight", &shape, &broken);
    let bytes = writer.tensor("blk.1.attn_q.weight", &shape, &broken).finish();
    match super::load_bytes(&bytes, &on(DeviceChoice::CpuTensors, Precision::Auto, 1)) {
        Err(ModelError::WarmUp(EngineError::ModelFailed(why))) => assert!(why.contains("not a finite number"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a model that computes nothing is accepted"),
    }
}

#[test]
fn devices_refuse_numbers_that_they_do_not_have() {
    let refusal = |device: DeviceChoice, precision| device.check(precision).err().map(|error| error.to_string());
    assert_eq!(refusal(DeviceChoice::Cpu, Precision::Auto), None);
    assert_eq!(refusal(DeviceChoice::CpuTensors, Precision::F16), None);
    let half = refusal(DeviceChoice::Cpu, Precision::F16).unwrap_or_default();
    assert!(half.contains("does not compute in f16; choose precision auto, f32, int8 or int4"), "{half}");
    let int8 = refusal(DeviceChoice::CpuTensors, Precision::Int8).unwrap_or_default();
    assert!(int8.contains("choose precision auto, f16, bf16 or f32"), "{int8}");
}

#[test]
fn devices_are_named_as_they_are_read() {
    for device in ["auto", "cpu", "cuda:0", "cuda:7", "wgpu"] {
        assert_eq!(device.parse().map(|device: DeviceChoice| device.to_string()), Ok(device.to_owned()));
    }
    assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
    for nonsense in ["", "gpu", "cuda:", "cuda:-1", "cuda:99999999999", "CPU", "cpu-tensors"] {
        assert!(nonsense.parse::<DeviceChoice>().is_err(), "{nonsense:?}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_get_it() {
    let refused = DeviceChoice::Cuda(0).check(Precision::Auto).err().map(|error| error.to_string());
    assert!(refused.is_some_and(|why| why.contains("this build is without CUDA; build it with `--features cuda`")));
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use super::*;

    #[test]
    fn every_family_agrees_with_the_reference_on_wgpu() {
        agree_with_the_reference(DeviceChoice::Wgpu);
    }

    #[test]
    fn lanes_are_padded_and_not_mixed_on_wgpu() {
        neighbours_change_nothing(DeviceChoice::Wgpu);
    }

    #[test]
    fn blocks_are_shared_and_copied_on_wgpu() {
        blocks_are_shared_and_copied(DeviceChoice::Wgpu, TOLERANCE);
    }

    #[test]
    fn what_a_failed_step_left_is_forgotten_on_wgpu() {
        what_a_failed_step_left(DeviceChoice::Wgpu);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;

    #[test]
    fn every_family_agrees_with_the_reference_on_cuda() {
        come_near_the_reference(DeviceChoice::Cuda(0), Precision::F32, TF32_DISTANCE);
        come_near_the_reference(DeviceChoice::Cuda(0), Precision::F16, F16_DISTANCE);
    }

    #[test]
    fn lanes_are_padded_and_not_mixed_on_cuda() {
        neighbours_change_nothing(DeviceChoice::Cuda(0));
    }

    #[test]
    fn blocks_are_shared_and_copied_on_cuda() {
        blocks_are_shared_and_copied(DeviceChoice::Cuda(0), TF32_DISTANCE);
    }

    #[test]
    fn what_a_failed_step_left_is_forgotten_on_cuda() {
        what_a_failed_step_left(DeviceChoice::Cuda(0));
    }
}
