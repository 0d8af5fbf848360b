//! Where a GPU's greedy tokens part from the CPU's, and whether that is rounding:
//! `cargo run --release --example greedy -- MODEL NEW_TOKENS PROMPT...`
//!
//! For each prompt both generate. Along the tokens that they share, the noise is the standard deviation of the difference of
//! their logits, less its mean. Where they part, each says by how much it prefers its own token; a difference of two logits
//! has the noise of both.

use std::{error::Error, path::Path};

use qqq_backend::{Backend, CpuBackend, KvDType, PAGE, pages_for};
use qqq_cuda::{CudaBackend, DType, Device};
use qqq_engine::{GenerateOptions, SamplingOptions, generate};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, Runner, Tokenizer, names};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, new_tokens, prompts @ ..] = args.as_slice() else {
        return Err("usage: greedy MODEL NEW_TOKENS PROMPT...".into());
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let stored = checkpoint.tensors.info(names::EMBEDDING).map(|info| info.dtype);
    let half = if stored == Some(DType::F16) { DType::F16 } else { DType::BF16 };
    let gpu = Decoder::load(CudaBackend::new(&Device::new(0)?, half)?, &checkpoint)?;
    let cpu = Decoder::load(CpuBackend::default(), &checkpoint)?;
    let prompts = prompts.iter().map(|p| tokenizer.encode(p, true)).collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens: new_tokens.parse()?,
        eos: tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F16,
    };
    let ours = generate(&gpu, &prompts, &options, &mut |_, _| true)?;
    let theirs = generate(&cpu, &prompts, &options, &mut |_, _| true)?;
    for ((prompt, ours), theirs) in prompts.iter().zip(&ours).zip(&theirs) {
        let alike = ours.tokens.iter().zip(&theirs.tokens).take_while(|(a, b)| a == b).count();
        let shared: Vec<u32> = prompt.iter().chain(&ours.tokens[..alike]).copied().collect();
        let (a, b) = (logits(&gpu, &shared, prompt.len())?, logits(&cpu, &shared, prompt.len())?);
        let vocab = gpu.config.vocab_size;
        let mut squares = 0.0;
        for (a, b) in a.chunks(vocab).zip(b.chunks(vocab)) {
            let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect();
            let mean = differences.iter().sum::<f64>() / vocab as f64;
            squares += differences.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>();
        }
        let noise = (squares / a.len() as f64).sqrt();
        print!("{alike} of {} tokens are alike; noise of a logit {noise:.3}", ours.tokens.len());
        match (ours.tokens.get(alike), theirs.tokens.get(alike)) {
            (Some(x), Some(y)) => {
                let margin = |logits: &[f32], own: u32, other: u32| {
                    let last = &logits[logits.len() - vocab..];
                    last[own as usize] - last[other as usize]
                };
                println!(
                    "; parted: the GPU by {:.3}, the CPU by {:.3}",
                    margin(&a, *x, *y),
                    margin(&b, *y, *x)
                );
            }
            _ => println!(),
        }
    }
    Ok(())
}

/// Logits behind the tokens from the last one of the prompt on.
fn logits<B: Backend>(decoder: &Decoder<B>, tokens: &[u32], prompt: usize) -> Outcome<Vec<f32>> {
    let pages: Vec<u32> = (0..pages_for(tokens.len().max(PAGE)) as u32).collect();
    let mut plan = qqq_backend::BatchPlan::default();
    plan.push(tokens, 0, &pages);
    let mut runner = Runner::for_positions(decoder, KvDType::F16, tokens.len())?;
    runner.step(&plan)?;
    let rows: Vec<usize> = (prompt - 1..tokens.len()).collect();
    Ok(runner.logits(&rows)?.into_owned())
}
