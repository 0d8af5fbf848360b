//! The real model: logits against transformers, ids against llama.cpp, and its chat template.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use qqq_backend::{BatchPlan, CpuBackend, KvDType};
use qqq_formats::Checkpoint;
use qqq_model::{ChatTemplate, Decoder, Message, Runner, Tokenizer};
use qqq_testing::{Suite, tests};
use safetensors::SafeTensors;

/// Largest error of a logit, relative to the largest.
const TOLERANCE: f32 = 1e-4;

fn main() -> ExitCode {
    Suite::new()
        .with(
            qqq_testing::smollm2,
            tests![
                logits_agree_with_transformers_for_smollm2,
                smollm2_ids_are_those_of_llama_cpp,
                smollm2_chat
            ],
        )
        .run()
}

fn data(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file)).unwrap()
}

fn logits_agree_with_transformers_for_smollm2(path: PathBuf) {
    let file = data("smollm2.safetensors");
    let vectors = SafeTensors::deserialize(&file).unwrap();
    let words = |name: &str| vectors.tensor(name).unwrap().data().as_chunks().0;
    let ints = |name: &str| words(name).iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<_>>();
    let floats = |name: &str| words(name).iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
    let (tokens, positions) = (ints("tokens"), ints("positions"));
    let (maxima, expected) = (floats("largest"), floats("every_16th"));

    let decoder = Decoder::load(CpuBackend::default(), &Checkpoint::open(&path).unwrap()).unwrap();
    let vocab = decoder.config.vocab_size;
    assert_eq!(expected.len(), positions.len() * vocab / 16);
    let mut runner = Runner::for_positions(&decoder, KvDType::F32, tokens.len()).unwrap();
    runner.step(&BatchPlan::sequences([tokens.as_slice()])).unwrap();
    let rows: Vec<usize> = (0..tokens.len()).collect();
    let logits = runner.logits(&rows).unwrap();
    for (i, (position, max)) in positions.iter().zip(&maxima).enumerate() {
        let row = &logits[*position as usize * vocab..][..vocab];
        let found_max = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!((found_max - max).abs() < TOLERANCE * max, "largest logit {found_max} vs {max}");
        for (found, expected) in row.iter().step_by(16).zip(&expected[i * vocab / 16..]) {
            let error = (found - expected).abs() / max;
            // Not even a NaN.
            assert!(error < TOLERANCE, "position {position}: {found}, not {expected}");
        }
    }
}

/// A text and its ids.
#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn smollm2_ids_are_those_of_llama_cpp(path: PathBuf) {
    let tokenizer = Tokenizer::load(&Checkpoint::open(&path).unwrap()).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&data("smollm2_ids.json")).unwrap();
    assert!(cases.len() > 30);
    for case in &cases {
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.text);
    }
    assert_eq!(tokenizer.len(), 49152);
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.eos(), [2, 0]);
    // add_bos_token is false.
    assert_eq!(tokenizer.encode("Hello", true).unwrap(), tokenizer.encode("Hello", false).unwrap());
}

fn smollm2_chat(path: PathBuf) {
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let template = ChatTemplate::load(&checkpoint, &tokenizer).unwrap().unwrap();
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let talk = [message("system", "Be kind."), message("user", "Hi!")];
    let text = template.render(&talk, true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = tokenizer.encode(&text, true).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 3);
    assert_eq!(ids.iter().filter(|id| **id == 2).count(), 2);
    assert!(template.render(&talk[1..], false).unwrap().starts_with("<|im_start|>system\nYou are a helpful"));
}
