//! Generation with a small random model.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use qqq_backend::{Backend, BatchPlan, CpuBackend, KvDType, Norm};
use qqq_engine::{FinishReason, GenerateOptions, SamplingOptions, Session, generate};
use qqq_formats::{LinearWeight, ModelConfig, WeightData};
use qqq_model::{Block, BlockNorms, BlockWeights, Decoder, LinearLayer, RopeChoice, Runner, Sites, rope};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB: usize = 96;
const CONTEXT: usize = 1200;

/// A Llama of two blocks whose weights are drawn at random.
fn model() -> Decoder<CpuBackend> {
    let value = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
    });
    let config = ModelConfig::from_value(Path::new("config.json"), value).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut draw = |n: usize, k: usize| -> Vec<f32> {
        (0..n * k).map(|_| (rng.random::<f32>() - 0.5) * 4.0 / (k as f32).sqrt()).collect()
    };
    let b = CpuBackend::default();
    let mut linear = |n: usize, k: usize| {
        let data = WeightData::F32(draw(n, k));
        LinearLayer { weight: LinearWeight::Float { out_features: n, in_features: k, data }, bias: None }
    };
    let blocks = (0..2)
        .map(|i| {
            let weights = BlockWeights {
                norms: BlockNorms {
                    input: vec![1.0; 32],
                    post: vec![1.0; 32],
                    qk: None,
                    ..BlockNorms::default()
                },
                layers: Sites::new([linear(64, 32), linear(32, 32), linear(128, 32), linear(32, 64)]),
            };
            Block::new(&b, &config, i, weights).unwrap()
        })
        .collect();
    let head = linear(VOCAB, 32).weight;
    let embedding = draw(VOCAB, 32);
    Decoder {
        embedding: b.embedding(VOCAB, 32, WeightData::F32(embedding)).unwrap(),
        blocks,
        final_norm: Norm { weight: b.vector(vec![1.0; 32]).unwrap(), eps: config.rms_norm_eps },
        head: b.linear_weight(head, None).unwrap(),
        ropes: rope::embeddings(&b, &config, RopeChoice::Original, CONTEXT).unwrap(),
        config: Arc::new(config),
        backend: b,
        prefill: Default::default(),
    }
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens,
        eos: vec![],
        kv_dtype: KvDType::F32,
    }
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 31 + seed * 17 + i * i) % VOCAB as u32).collect()
}

fn one(decoder: &Decoder<CpuBackend>, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    generate(decoder, &[prompt.to_vec()], options, &mut |_, _| true).unwrap().remove(0).tokens
}

#[test]
fn a_batch_gives_what_each_sequence_gives_alone() {
    let decoder = model();
    // 700 tokens take two prefill passes, and the second one is shared with the next prompt.
    let prompts = [prompt(1, 5), prompt(2, 700), prompt(3, 1), prompt(4, 40)];
    let sampled = SamplingOptions { temperature: 0.8, top_k: 20, seed: 5, ..SamplingOptions::default() };
    for sampling in [SamplingOptions::default(), sampled] {
        let options = GenerateOptions { sampling, ..options(24) };
        let mut seen = vec![Vec::new(); prompts.len()];
        let together = generate(&decoder, &prompts, &options, &mut |i, id| {
            seen[i].push(id);
            true
        })
        .unwrap();
        for (i, g) in together.iter().enumerate() {
            assert_eq!(g.tokens.len(), 24);
            assert_eq!(g.finish, FinishReason::Length);
            assert_eq!(g.prefill_tokens, prompts[i].len());
            assert_eq!(g.decode_steps, 23);
            assert_eq!(g.tokens, seen[i], "the callback sees every token");
        }
        // Draws depend on the place in the batch, so only the first compares when sampling.
        let compared = if options.sampling.temperature == 0.0 { prompts.len() } else { 1 };
        for i in 0..compared {
            assert_eq!(together[i].tokens, one(&decoder, &prompts[i], &options), "sequence {i}");
        }
        let again = generate(&decoder, &prompts, &options, &mut |_, _| true).unwrap();
        assert!(together.iter().zip(&again).all(|(a, b)| a.tokens == b.tokens), "deterministic");
    }
}

#[test]
fn greedy_equals_a_forward_pass_over_the_whole_text() {
    let decoder = model();
    let prompt = prompt(6, 9);
    let tokens = one(&decoder, &prompt, &options(12));
    let mut text = prompt.clone();
    for id in tokens {
        let mut runner = Runner::for_positions(&decoder, KvDType::F32, text.len()).unwrap();
        runner.step(&BatchPlan::sequences([text.as_slice()])).unwrap();
        let last = runner.logits(&[text.len() - 1]).unwrap();
        let best = (0..VOCAB).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(id as usize, best);
        text.push(id);
    }
}

#[test]
fn end_tokens_callbacks_and_the_context_end_a_sequence() {
    let decoder = model();
    let prompt = prompt(1, 5);
    let free = one(&decoder, &prompt, &options(16));
    let end = free[7];
    let first = free.iter().position(|id| *id == end).unwrap();

    let stopping = GenerateOptions { eos: vec![end], ..options(16) };
    let g = generate(&decoder, std::slice::from_ref(&prompt), &stopping, &mut |_, _| true).unwrap().remove(0);
    assert_eq!((g.finish, g.tokens.as_slice()), (FinishReason::Stop, &free[..first]));

    let mut left = 3;
    let g = generate(&decoder, std::slice::from_ref(&prompt), &options(16), &mut |_, _| {
        left -= 1;
        left > 0
    })
    .unwrap()
    .remove(0);
    assert_eq!((g.finish, g.tokens.as_slice()), (FinishReason::Cancelled, &free[..3]));

    let long = self::prompt(2, CONTEXT - 3);
    let g = generate(&decoder, &[long], &options(16), &mut |_, _| true).unwrap().remove(0);
    assert_eq!((g.finish, g.tokens.len()), (FinishReason::Length, 3));

    let g = generate(&decoder, &[prompt], &options(0), &mut |_, _| true).unwrap().remove(0);
    assert_eq!((g.finish, g.tokens.len()), (FinishReason::Length, 0));
    assert!(generate(&decoder, &[], &options(4), &mut |_, _| true).unwrap().is_empty());
}

#[test]
fn what_cannot_be_served_is_an_error() {
    let decoder = model();
    let message = |prompt: Vec<u32>, options: GenerateOptions| {
        generate(&decoder, &[prompt], &options, &mut |_, _| true).unwrap_err().to_string()
    };
    assert!(message(vec![], options(4)).contains("no tokens"));
    assert!(message(prompt(1, CONTEXT), options(4)).contains("context of 1200"));
    assert!(message(vec![1, 96], options(4)).contains("token 96"));
    let sampling = SamplingOptions { top_p: 2.0, ..SamplingOptions::default() };
    assert!(message(vec![1], GenerateOptions { sampling, ..options(4) }).contains("top-p"));
}

#[test]
fn a_session_reuses_the_common_prefix_and_gives_the_same_tokens() {
    let decoder = model();
    let mut session = Session::new(&decoder, options(10)).unwrap();
    let mut conversation = prompt(1, 20);
    let first = session.generate(&conversation, &mut |_| true).unwrap();
    assert_eq!(first.prefill_tokens, 20);
    assert_eq!(first.tokens, one(&decoder, &conversation, &options(10)));
    // The last new token has not run yet.
    assert_eq!(session.cached().len(), 29);

    conversation.extend(&first.tokens);
    conversation.extend(prompt(2, 6));
    let second = session.generate(&conversation, &mut |_| true).unwrap();
    assert_eq!(second.prefill_tokens, 7);
    assert_eq!(second.tokens, one(&decoder, &conversation, &options(10)));

    // A conversation that parts from the cached one in its middle, and one that the cache holds wholly.
    let mut edited = conversation[..12].to_vec();
    edited.extend(prompt(9, 5));
    let third = session.generate(&edited, &mut |_| true).unwrap();
    assert!(third.prefill_tokens <= 6, "{}", third.prefill_tokens);
    assert_eq!(third.tokens, one(&decoder, &edited, &options(10)));
    let fourth = session.generate(&edited, &mut |_| true).unwrap();
    assert_eq!((fourth.prefill_tokens, &fourth.tokens), (1, &third.tokens));

    // An error leaves a session that works.
    assert!(session.generate(&[1, 2, 500], &mut |_| true).is_err());
    assert_eq!(session.generate(&edited, &mut |_| true).unwrap().tokens, third.tokens);
    session.clear();
    assert!(session.cached().is_empty());
    assert_eq!(session.generate(&edited, &mut |_| true).unwrap().tokens, third.tokens);
}

#[test]
fn the_prompt_is_watched_and_the_answer_is_not() {
    let told: Arc<Mutex<Vec<(f64, f64)>>> = Arc::default();
    let mut decoder = model();
    let layers = decoder.blocks.len();
    let sink = Arc::clone(&told);
    decoder.watch_prefill(Box::new(move |done, total| sink.lock().unwrap().push((done, total))));
    // Two passes of the longer one, of which the second has the other one as well.
    generate(&decoder, &[prompt(1, 700), prompt(2, 100)], &options(5), &mut |_, _| true).unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 2 * layers, "{told:?}");
    assert!(told.is_sorted_by(|a, b| a.0 < b.0), "{told:?}");
    assert!(told.iter().all(|(_, total)| *total == 800.0), "{told:?}");
    assert_eq!((told[layers - 1].0, told.last().unwrap().0), (512.0, 800.0));
}
