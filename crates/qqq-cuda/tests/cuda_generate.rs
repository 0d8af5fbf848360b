//! Generation on a GPU: steps and output head recorded, tokens chosen there. Needs a GPU that there are kernels for: the
//! tests are reported as ignored without one.

#[path = "common/backend.rs"]
mod backend;

use std::process::ExitCode;

use qqq_backend::{BatchPlan, KvDType};
use qqq_cuda::{CudaBackend, DType, KernelType};
use qqq_engine::{GenerateOptions, Sampler, SamplingOptions, Session, generate};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, Runner};
use qqq_testing::{Suite, TinyModel, tests};

use backend::backend;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for half in [DType::BF16, DType::F16] {
        suite = suite.on(
            half.kernel_name(),
            move || backend(half),
            tests![tokens_are_those_that_logits_give, turns_go_on_where_they_ended],
        );
    }
    // Tests share a stream, on which some of them record.
    suite.run_in_turn()
}

fn options(sampling: SamplingOptions, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { sampling, max_new_tokens, eos: Vec::new(), kv_dtype: KvDType::F16 }
}

fn decoder(b: CudaBackend) -> Decoder<CudaBackend> {
    let tiny = TinyModel::new();
    Decoder::load(b, &Checkpoint::open(&tiny.model()).unwrap()).unwrap()
}

/// How many of a text's tokens from `start` on are those that the host's sampler chooses, given the logits of a pass over the
/// whole text: rounding of another batch decides some.
fn agreeing(
    decoder: &Decoder<CudaBackend>,
    sampling: &SamplingOptions,
    sequence: usize,
    text: &[u32],
    start: usize,
) -> usize {
    let mut runner = Runner::for_positions(decoder, KvDType::F16, text.len()).unwrap();
    runner.step(&BatchPlan::sequences([text])).unwrap();
    let rows: Vec<usize> = (start - 1..text.len() - 1).collect();
    let logits = runner.logits(&rows).unwrap();
    let mut sampler = Sampler::for_sequence(sampling.clone(), sequence);
    let rows = rows.iter().zip(logits.chunks(decoder.config.vocab_size));
    rows.filter(|(row, logits)| sampler.sample(logits, &text[..=**row]) == Ok(text[**row + 1])).count()
}

fn tokens_are_those_that_logits_give(b: CudaBackend) {
    let decoder = decoder(b);
    let vocab = decoder.config.vocab_size as u32;
    let prompts: Vec<Vec<u32>> =
        (1..6u32).map(|i| (0..7 * i).map(|j| (i * j * 31 + 5 * i + j) % vocab).collect()).collect();
    let default = SamplingOptions::default();
    let warm = SamplingOptions { temperature: 0.9, seed: 11, ..default.clone() };
    for sampling in [
        default,
        warm.clone(),
        SamplingOptions { top_k: 40, ..warm.clone() },
        SamplingOptions { top_p: 0.9, ..warm.clone() },
        SamplingOptions { min_p: 0.05, ..warm.clone() },
        SamplingOptions { repetition_penalty: 1.1, ..warm },
    ] {
        let options = options(sampling.clone(), 150);
        let written = generate(&decoder, &prompts, &options, &mut |_, _| true).unwrap();
        let again = generate(&decoder, &prompts, &options, &mut |_, _| true).unwrap();
        let mut same = 0;
        for (i, (prompt, written)) in prompts.iter().zip(&written).enumerate() {
            assert_eq!(written.tokens, again[i].tokens, "{sampling:?}, sequence {i}");
            let text = [prompt.as_slice(), &written.tokens].concat();
            same += agreeing(&decoder, &sampling, i, &text, prompt.len());
        }
        let all = 150 * prompts.len();
        // Top-k draws along the order of the logits, where rounding swaps neighbours. Chance gives a few percent.
        assert!(same * 4 >= all * 3, "{sampling:?}: {same} of {all} tokens");
    }
}

fn turns_go_on_where_they_ended(b: CudaBackend) {
    let decoder = decoder(b);
    let sampling = SamplingOptions::default();
    let mut session = Session::new(&decoder, options(sampling.clone(), 90)).unwrap();
    let mut text = vec![3u32, 1, 4];
    for turn in 0..3 {
        let start = text.len();
        text.extend(session.generate(&text, &mut |_| true).unwrap().tokens);
        let same = agreeing(&decoder, &sampling, turn, &text, start);
        assert!(same >= 81, "turn {turn}: {same} of 90 tokens");
        text.push(7);
    }
}
