//! Float and W4A8 side by side.

use std::path::Path;

use qqq_backend::KvDType;
use qqq_engine::{GenerateOptions, SamplingOptions};
use qqq_eval::{KldReport, WindowOptions, kl_divergence};
use qqq_model::{ChatTemplate, Message};
use qqq_quant::Report;
use serde::Serialize;

use crate::{
    commands::{
        bench::{self, Speed},
        eval::kld_rows,
        generate::{self, Answer},
        inspect,
    },
    console::Console,
    format,
    interrupt::Guard,
    model::{self, LoadedModel},
    progress::Progress,
    table::{pairs, table},
};

/// Held-out text for the comparison, written for this purpose.
const TEXT: &str = include_str!("text.txt");
/// Tokens of a window of it.
const WINDOW: usize = 256;
const QUESTION: &str = "Why is the sky blue?";
const ANSWER_TOKENS: usize = 80;
const PROMPT_TOKENS: usize = 512;
const NEW_TOKENS: usize = 64;
const REPEAT: usize = 3;

/// One of the two models.
#[derive(Serialize)]
pub struct Side {
    /// Bytes of the linear layers of the blocks; the float model's as 16-bit.
    pub linear_bytes: u64,
    /// Tokens a second of prefill and decoding.
    pub speed: Speed,
    /// What it answered to the demo's question.
    pub answer: Answer,
}

/// What was measured.
#[derive(Serialize)]
pub struct Comparison {
    /// Distance of the W4A8 model's predictions from the float model's.
    pub divergence: KldReport,
    /// The float model.
    pub float: Side,
    /// The quantized one.
    pub w4a8: Side,
}

/// Loads both and measures.
pub fn compare(
    float: &Path,
    quantized: &Path,
    console: &Console,
    guard: &Guard,
) -> anyhow::Result<Comparison> {
    console.note("Comparing with the float model ...");
    let (float, quantized) = (model::load_path(float)?, model::load_path(quantized)?);
    let tokens = float.tokenizer.encode(TEXT, true)?;
    let mut progress = Progress::new(console, "comparing");
    let divergence = kl_divergence(
        &float.decoder,
        &quantized.decoder,
        &tokens,
        &WindowOptions::new(WINDOW),
        &mut |done, total| {
            progress.update(done as f64, total as f64, "predictions");
            !guard.pressed()
        },
    )?;
    drop(progress);
    // What was scored until Ctrl-C is of no use here.
    guard.check()?;
    let quantized_bytes = linear(&quantized)?.1;
    Ok(Comparison {
        divergence,
        float: side(&float, linear(&float)?.0 * 2, console, guard)?,
        w4a8: side(&quantized, quantized_bytes, console, guard)?,
    })
}

/// Weights and bytes of the linear layers of the blocks.
fn linear(model: &LoadedModel) -> anyhow::Result<(u64, u64)> {
    let modules = inspect::modules(&model.checkpoint)?;
    Ok(modules.iter().filter(|m| m.block_linear).fold((0, 0), |(p, b), m| (p + m.parameters, b + m.bytes)))
}

fn side(model: &LoadedModel, linear_bytes: u64, console: &Console, guard: &Guard) -> anyhow::Result<Side> {
    let mut progress = Progress::new(console, "measuring speed");
    let load = bench::Load { batch: 1, prompt_tokens: PROMPT_TOKENS, new_tokens: NEW_TOKENS, repeat: REPEAT };
    let speed = bench::measure(
        &model.decoder,
        load,
        &mut |done, total| progress.update(done as f64, total as f64, ""),
        &mut || guard.check().map(|()| true),
    )?;
    drop(progress);
    let prompt = match ChatTemplate::load(&model.checkpoint, &model.tokenizer)? {
        Some(template) => {
            let messages = [Message { role: "user".into(), content: QUESTION.into() }];
            model.tokenizer.encode(&template.render(&messages, true)?, false)?
        }
        None => model.tokenizer.encode(QUESTION, true)?,
    };
    let options = GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens: ANSWER_TOKENS,
        eos: model.tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F16,
    };
    let answer =
        generate::answer(&model.decoder, &model.tokenizer, prompt, &options, &mut |_| guard.check())?;
    Ok(Side { linear_bytes, speed, answer })
}

/// The table and the answers.
pub fn text(c: &Comparison, report: &Report, console: &Console) -> String {
    let pair = |f: &dyn Fn(&Side) -> f64| [f(&c.float), f(&c.w4a8)];
    let row = |name: &str, [a, b]: [f64; 2], show: &dyn Fn(f64) -> String, ratio: f64| {
        vec![name.to_owned(), show(a), show(b), format!("{ratio:.2}x")]
    };
    let size = pair(&|s| s.linear_bytes as f64);
    let prefill = pair(&|s| s.speed.prefill_tokens_per_second.median);
    let decode = pair(&|s| s.speed.decode_tokens_per_second.median);
    let d = &c.divergence;
    let perplexity = [d.baseline_perplexity, d.perplexity];
    let bytes = |b: f64| format::bytes(b as u64);
    let rate = |r: f64| format!("{r:.0} tokens/s");
    let rows = [
        row("linear layers", size, &bytes, size[0] / size[1]),
        row(&format!("prefill, {PROMPT_TOKENS} tokens"), prefill, &rate, prefill[1] / prefill[0]),
        row(&format!("decode, {NEW_TOKENS} tokens"), decode, &rate, decode[1] / decode[0]),
        row(
            "perplexity (demo text)",
            perplexity,
            &|p| format::significant(p, 4),
            perplexity[1] / perplexity[0],
        ),
    ];
    let w4a8 = format!("W4A8 ({})", report.format);
    let mut text = table(console, &["", "float", &w4a8, "ratio"], 1, rows);
    text += "\n\nW4A8 against float:\n";
    text += &pairs(kld_rows(d));
    text += "(linear layers of the float model: counted in 16 bits; it computes in 32)\n";
    text += &format!("\n{QUESTION}\n");
    for (name, side) in [("float", &c.float), ("W4A8", &c.w4a8)] {
        text += &format!("\n[{name}] {}\n", side.answer.text.trim());
    }
    text
}
