//! Gemma 3 as it is published: ids, logits, perplexity and greedy tokens of transformers, which reads the same GGUF file
//! (`scripts/make_gemma3_vectors.py`).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use qqq_backend::{BatchPlan, CpuBackend, KvDType, pages_for};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, Runner, Tokenizer};
use qqq_testing::{Suite, tests};
use serde_json::Value;

/// Largest error of a logit, relative to the largest.
const TOLERANCE: f32 = 1e-4;
/// Every so many logits of a row are recorded.
const EVERY: usize = 1021;

fn main() -> ExitCode {
    Suite::new().with(qqq_testing::gemma3, tests![gemma3_computes_what_transformers_does]).run()
}

fn list<T: serde::de::DeserializeOwned>(vectors: &Value, key: &str) -> T {
    serde_json::from_value(vectors[key].clone()).unwrap()
}

fn gemma3_computes_what_transformers_does(path: PathBuf) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let vectors: Value =
        serde_json::from_str(&std::fs::read_to_string(data.join("gemma3_270m.json")).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    // What stands for blanks in the vocabulary, where a text has it, is no blank to llama.cpp.
    let text = std::fs::read_to_string(data.join("corpus.txt")).unwrap();
    let text: String = text.split_inclusive('\n').filter(|line| !line.contains('\u{2581}')).collect();
    assert!(tokenizer.encode(&text, false).unwrap() == list::<Vec<u32>>(&vectors, "ids"));

    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let tokens: Vec<u32> = list(&vectors, "tokens");
    let window = decoder.config.graph.windows.iter().flatten().max().unwrap();
    assert!(tokens.len() > *window, "the windows slide");
    let mut runner = Runner::for_positions(&decoder, KvDType::F32, tokens.len()).unwrap();
    runner.step(&BatchPlan::sequences([tokens.as_slice()])).unwrap();
    let positions: Vec<usize> = list(&vectors, "positions");
    let largest: Vec<f32> = list(&vectors, "largest");
    let expected: Vec<Vec<f32>> = list(&vectors, "every_1021th");
    for ((&position, largest), expected) in positions.iter().zip(largest).zip(expected) {
        let row = runner.logits(&[position]).unwrap();
        let found = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!((found - largest).abs() < TOLERANCE * largest, "largest logit {found}, not {largest}");
        assert_eq!(expected.len(), row.len().div_ceil(EVERY));
        for (found, expected) in row.iter().step_by(EVERY).zip(expected) {
            // Not even a NaN.
            assert!(
                (found - expected).abs() / largest < TOLERANCE,
                "position {position}: {found}, not {expected}"
            );
        }
    }

    // In pieces of rows, so that not all logits are in memory.
    let vocab = decoder.config.vocab_size;
    let mut losses = Vec::new();
    let scored: Vec<usize> = (0..tokens.len() - 1).collect();
    for rows in scored.chunks(64) {
        let logits = runner.logits(rows).unwrap();
        losses.extend(rows.iter().zip(logits.chunks_exact(vocab)).map(|(&i, row)| {
            let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            sum.ln() - f64::from(row[tokens[i + 1] as usize] - max)
        }));
    }
    let perplexity = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
    let expected: f64 = list(&vectors, "perplexity");
    assert!((perplexity / expected - 1.0).abs() < 1e-4, "perplexity {perplexity}, not {expected}");

    let mut tokens: Vec<u32> = list(&vectors, "prompt");
    let greedy: Vec<u32> = list(&vectors, "greedy");
    let mut runner = Runner::for_positions(&decoder, KvDType::F16, tokens.len() + greedy.len()).unwrap();
    let pages: Vec<u32> = (0..pages_for(tokens.len() + greedy.len()) as u32).collect();
    let mut done = 0;
    for expected in greedy {
        let mut plan = BatchPlan::default();
        plan.push(&tokens[done..], done, &pages);
        runner.step(&plan).unwrap();
        let found = runner.top_logits(&[tokens.len() - done - 1], 1).unwrap()[0][0].1;
        done = tokens.len();
        assert_eq!(found, expected, "behind {tokens:?}");
        tokens.push(found);
    }
}
