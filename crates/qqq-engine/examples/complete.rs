//! Continues a text greedily, and says how fast:
//! `cargo run --release -p qqq-engine --example complete -- MODEL "The capital of France is" 32`

use std::{error::Error, path::Path, time::Instant};

use qqq_backend::{CpuBackend, KvDType};
use qqq_engine::{GenerateOptions, SamplingOptions, generate};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, HubOptions, Tokenizer, hub};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, rest @ ..] = args.as_slice() else {
        return Err("usage: complete MODEL PROMPT [NEW_TOKENS]".into());
    };
    let max_new_tokens = rest.first().map_or(Ok(32), |n| n.parse())?;

    let start = Instant::now();
    let path = hub::resolve(model, &HubOptions::default())?;
    let checkpoint = Checkpoint::open(Path::new(&path))?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint)?;
    println!("loaded in {:.2} s", start.elapsed().as_secs_f64());

    let options = GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens,
        eos: tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F32,
    };
    let prompt_ids = tokenizer.encode(prompt, true)?;
    let done = generate(&decoder, &[prompt_ids], &options, &mut |_, _| true)?.remove(0);
    println!("{prompt}{}", tokenizer.decode(&done.tokens, true)?);
    let speed = |tokens: usize, seconds: f64| match tokens {
        0 => "no tokens".to_owned(),
        n => format!("{n} tokens, {:.1} tokens/s", n as f64 / seconds),
    };
    println!(
        "prefill: {}; decode: {}; ended by {:?}",
        speed(done.prefill_tokens, done.prefill_seconds),
        speed(done.decode_steps, done.decode_seconds),
        done.finish
    );
    Ok(())
}
