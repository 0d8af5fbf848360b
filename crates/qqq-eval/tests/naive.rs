//! Perplexity, KL divergence and log-likelihoods of small random models against their definitions.

use std::{path::Path, sync::Arc};

use qqq_backend::{Backend, BatchPlan, CpuBackend, KvDType, Norm};
use qqq_eval::{
    EvalError, Scoring, WindowOptions, kl_divergence, perplexity,
    tasks::{Documents, Encoded, Request, Scorer, Task},
};
use qqq_formats::{LinearWeight, ModelConfig, WeightData};
use qqq_model::{Block, BlockNorms, BlockWeights, Decoder, LinearLayer, RopeChoice, Runner, Sites, rope};
use serde_json::json;

const VOCAB: usize = 80;
const HIDDEN: usize = 32;
const INNER: usize = 48;
const CONTEXT: usize = 300;

/// Uniform in [-1, 1), deterministic.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vec(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.next() * scale).collect()
    }
}

fn config(vocab: usize) -> ModelConfig {
    let value = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": vocab,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
    });
    ModelConfig::from_value(Path::new("config.json"), value).unwrap()
}

/// A random model; `head` scales its output head, so 0 makes it indifferent.
fn model(seed: u64, vocab: usize, head: f32) -> Decoder<CpuBackend> {
    let config = Arc::new(config(vocab));
    let b = CpuBackend::default();
    let mut r = Random(seed);
    let mut linear = |n: usize, k: usize, scale: f32| {
        let data = WeightData::F32(r.vec(n * k, scale));
        LinearLayer { weight: LinearWeight::Float { out_features: n, in_features: k, data }, bias: None }
    };
    let kv = HIDDEN / 2;
    let blocks = (0..2)
        .map(|i| {
            let weights = BlockWeights {
                norms: BlockNorms {
                    input: vec![1.0; HIDDEN],
                    post: vec![1.0; HIDDEN],
                    qk: None,
                    ..BlockNorms::default()
                },
                layers: Sites::new([
                    linear(HIDDEN + 2 * kv, HIDDEN, 0.4),
                    linear(HIDDEN, HIDDEN, 0.4),
                    linear(2 * INNER, HIDDEN, 0.4),
                    linear(HIDDEN, INNER, 0.4),
                ]),
            };
            Block::new(&b, &config, i, weights).unwrap()
        })
        .collect();
    let head = b.linear_weight(linear(vocab, HIDDEN, head).weight, None).unwrap();
    Decoder {
        embedding: b.embedding(vocab, HIDDEN, WeightData::F32(r.vec(vocab * HIDDEN, 1.0))).unwrap(),
        blocks,
        final_norm: Norm { weight: b.vector(vec![1.0; HIDDEN]).unwrap(), eps: config.rms_norm_eps },
        head,
        ropes: rope::embeddings(&b, &config, RopeChoice::Original, CONTEXT).unwrap(),
        config,
        backend: b,
        prefill: Default::default(),
    }
}

fn text(n: usize) -> Vec<u32> {
    let mut r = Random(99);
    (0..n).map(|_| ((r.next() + 1.0) * 0.5 * VOCAB as f32) as u32).collect()
}

/// ln softmax of the logits that follow `context`, each context run alone.
fn log_probabilities(decoder: &Decoder<CpuBackend>, context: &[u32]) -> Vec<f64> {
    let mut runner = Runner::for_positions(decoder, KvDType::F32, context.len()).unwrap();
    runner.step(&BatchPlan::sequences([context])).unwrap();
    let logits = runner.logits(&[context.len() - 1]).unwrap();
    let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    logits.iter().map(|l| l - sum.ln()).collect()
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1e-3), "{got} is not {want}");
}

#[test]
fn perplexity_is_what_the_definition_says() {
    let (decoder, tokens) = (model(1, VOCAB, 0.3), text(3 * 16 + 5));
    let mut nll = Vec::new();
    for window in tokens.chunks_exact(16) {
        nll.extend((1..16).map(|i| -log_probabilities(&decoder, &window[..i])[window[i] as usize]));
    }
    let want = (nll.iter().sum::<f64>() / nll.len() as f64).exp();
    let report = perplexity(&decoder, &tokens, &WindowOptions::new(16), &mut |_, _| true).unwrap();
    close(report.perplexity, want, 1e-5);
    assert_eq!((report.windows, report.tokens), (3, 45));
    // The spread of three windows.
    let means: Vec<f64> = nll.chunks(15).map(|w| w.iter().sum::<f64>() / 15.0).collect();
    let mean = means.iter().sum::<f64>() / 3.0;
    let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 2.0;
    close(report.standard_error.unwrap(), want * (variance / 3.0).sqrt(), 1e-4);
}

#[test]
fn second_halves_and_strides() {
    let (decoder, tokens) = (model(1, VOCAB, 0.3), text(40));
    let options =
        WindowOptions { scoring: Scoring::SecondHalf, first_token: Some(3), ..WindowOptions::new(20) };
    let nll = |context: &[u32], target: u32| -log_probabilities(&decoder, context)[target as usize];
    let mut sum = 0.0;
    for window in tokens.chunks_exact(20) {
        let mut window = window.to_vec();
        window[0] = 3;
        sum += (11..20).map(|i| nll(&window[..i], window[i])).sum::<f64>();
    }
    let report = perplexity(&decoder, &tokens, &options, &mut |_, _| true).unwrap();
    close(report.perplexity, (sum / 18.0).exp(), 1e-5);
    assert_eq!((report.tokens, report.second_half_perplexity), (18, None));

    // A run over whole windows tells the same, up to the float32 rounding of a product with more rows.
    let options = WindowOptions { scoring: Scoring::All, ..options };
    let whole = perplexity(&decoder, &tokens, &options, &mut |_, _| true).unwrap();
    close(whole.second_half_perplexity.unwrap(), report.perplexity, 1e-6);
    assert_eq!(whole.tokens, 38);

    let options = WindowOptions { stride: 8, ..WindowOptions::new(16) };
    let mut sum: f64 = (1..16).map(|i| nll(&tokens[..i], tokens[i])).sum();
    for start in [8, 16, 24] {
        sum += (start + 8..start + 16).map(|i| nll(&tokens[start..i], tokens[i])).sum::<f64>();
    }
    let report = perplexity(&decoder, &tokens, &options, &mut |_, _| true).unwrap();
    close(report.perplexity, (sum / 39.0).exp(), 1e-5);
    assert_eq!(report.second_half_perplexity, None);
}

#[test]
fn an_indifferent_model_has_the_perplexity_of_its_vocabulary() {
    let report =
        perplexity(&model(2, VOCAB, 0.0), &text(100), &WindowOptions::new(32), &mut |_, _| true).unwrap();
    close(report.perplexity, VOCAB as f64, 1e-9);
    assert!(report.standard_error.unwrap() < 1e-6);
}

#[test]
fn divergence_is_what_the_definition_says() {
    let (p, q, tokens) = (model(1, VOCAB, 0.3), model(5, VOCAB, 0.3), text(3 * 16));
    let (mut kl, mut agree, mut ratio) = (0.0, 0.0, 0.0);
    for window in tokens.chunks_exact(16) {
        for i in 1..16 {
            let (a, b) = (log_probabilities(&p, &window[..i]), log_probabilities(&q, &window[..i]));
            kl += a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
            let top = |x: &[f64]| (0..x.len()).max_by(|&i, &j| x[i].total_cmp(&x[j])).unwrap();
            agree += f64::from(u8::from(top(&a) == top(&b)));
            ratio += a[window[i] as usize] - b[window[i] as usize];
        }
    }
    let report = kl_divergence(&p, &q, &tokens, &WindowOptions::new(16), &mut |_, _| true).unwrap();
    assert!(kl / 45.0 > 0.05, "the models are too much alike for this test: {}", kl / 45.0);
    close(report.kl_divergence.mean, kl / 45.0, 1e-5);
    close(report.top1_agreement.mean, agree / 45.0, 1e-9);
    close(report.perplexity_ratio.mean, (ratio / 45.0).exp(), 1e-5);
    let alone = |m| perplexity(m, &tokens, &WindowOptions::new(16), &mut |_, _| true).unwrap().perplexity;
    close(report.baseline_perplexity, alone(&p), 1e-6);
    close(report.perplexity, alone(&q), 1e-6);
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let (p, tokens) = (model(1, VOCAB, 0.5), text(200));
    let report = kl_divergence(&p, &p, &tokens, &WindowOptions::new(64), &mut |_, _| true).unwrap();
    assert_eq!(report.kl_divergence.mean, 0.0);
    assert_eq!(report.top1_agreement.mean, 1.0);
    assert_eq!(report.perplexity_ratio.mean, 1.0);
}

#[test]
fn refusals() {
    let (p, tokens) = (model(1, VOCAB, 0.3), text(CONTEXT + 1));
    let go =
        |tokens: &[u32], window: usize| perplexity(&p, tokens, &WindowOptions::new(window), &mut |_, _| true);
    assert!(matches!(go(&tokens, CONTEXT + 1), Err(EvalError::Model(_))), "a window beyond the context");
    assert!(matches!(go(&tokens[..10], 11), Err(EvalError::Windows(_))));
    assert!(matches!(go(&[1, 2, VOCAB as u32, 4], 2), Err(EvalError::Mismatch(_))));
    let other = model(1, VOCAB - 16, 0.3);
    let error = kl_divergence(&p, &other, &tokens, &WindowOptions::new(16), &mut |_, _| true).unwrap_err();
    assert!(error.to_string().contains("80") && error.to_string().contains("64"), "{error}");

    let mut calls = 0;
    let stopped = perplexity(&p, &text(10_000), &WindowOptions::new(64), &mut |_, _| {
        calls += 1;
        calls < 3
    });
    // Stopped after two batches of 32 windows: what was scored until then, and marked.
    let stopped = stopped.unwrap();
    assert_eq!((calls, stopped.windows, stopped.planned_windows, stopped.partial), (3, 64, 156, true));
    let limited = WindowOptions { limit: Some(64), ..WindowOptions::new(64) };
    let whole = perplexity(&p, &text(10_000), &limited, &mut |_, _| true).unwrap();
    assert_eq!((whole.perplexity, whole.tokens, whole.partial), (stopped.perplexity, stopped.tokens, false));
    let nothing = kl_divergence(&p, &p, &tokens, &WindowOptions::new(16), &mut |_, _| false);
    assert!(matches!(nothing, Err(EvalError::Interrupted)));
    let overflow = perplexity(&model(1, VOCAB, f32::MAX), &tokens, &WindowOptions::new(16), &mut |_, _| true);
    assert!(matches!(overflow, Err(EvalError::NotFinite { .. })), "{overflow:?}");
}

#[test]
fn numbers_that_are_not_finite_say_whose_and_where() {
    let (p, tokens) = (model(1, VOCAB, 0.3), text(100));
    let (mut bad, options) = (model(1, VOCAB, 0.3), WindowOptions::new(16));
    let at = tokens.iter().position(|t| *t == tokens[5]).expect("it is there");
    let mut embedding = Random(3).vec(VOCAB * HIDDEN, 1.0);
    embedding[tokens[5] as usize * HIDDEN] = f32::INFINITY;
    bad.embedding = bad.backend.embedding(VOCAB, HIDDEN, WeightData::F32(embedding)).unwrap();

    let alone = perplexity(&bad, &tokens, &options, &mut |_, _| true).unwrap_err();
    let as_model = kl_divergence(&p, &bad, &tokens, &options, &mut |_, _| true).unwrap_err();
    let as_baseline = kl_divergence(&bad, &p, &tokens, &options, &mut |_, _| true).unwrap_err();
    for (error, whose) in [(alone, "model"), (as_model, "model"), (as_baseline, "baseline")] {
        let EvalError::NotFinite { model, place, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*model, place.position), (whose, at));
        assert_eq!(place.module, "model.embed_tokens.weight");
        assert!(error.to_string().contains(whose), "{error}");
    }
    // Logits that are finite, but so large that the perplexity is not.
    let certain = perplexity(&model(1, VOCAB, 1e4), &tokens, &options, &mut |_, _| true);
    assert!(matches!(certain, Err(EvalError::Overflow { .. })), "{certain:?}");
}

/// Questions with these requests.
fn questions(requests: Vec<Vec<Request>>) -> Encoded {
    let document = |(i, requests): (usize, &Vec<Request>)| {
        let choices: Vec<String> = (1..=requests.len()).map(|length| "x".repeat(length)).collect();
        let answer = &choices[i % requests.len()];
        let labelled = json!({ "text": choices, "label": choices });
        json!({ "question": "", "choices": labelled, "answerKey": answer }).to_string() + "\n"
    };
    let lines: String = requests.iter().enumerate().map(document).collect();
    let task = Task::named("arc_easy").unwrap();
    let documents = Documents::parse(task, Path::new("made up.jsonl"), &lines, usize::MAX).unwrap();
    Encoded { documents, requests }
}

fn request(parts: &[&[u32]], scored: usize) -> Request {
    Request { tokens: parts.concat(), scored }
}

/// Beginnings shared by answers, by questions and by nothing; beyond pages of the cache; answers of one token; one answer that
/// is another one's beginning; the same question again; an answer without a question's token but the first.
fn many_questions() -> Vec<Vec<Request>> {
    let t = text(3000);
    let mut requests = Vec::new();
    for i in 0..40 {
        let (context, len) = (&t[50 * i..], 3 + (i * 37) % 45);
        let answers = [&t[7 * i..7 * i + 5], &t[7 * i..7 * i + 2], &t[9 * i + 1..9 * i + 12]];
        requests.push(answers.map(|a| request(&[&context[..len], a], a.len())).to_vec());
    }
    let long = &t[..200];
    for end in [[5, 6].as_slice(), &[5, 7], &[8, 1, 2]] {
        // Behind the first page; and one whose last tokens are given, which another one scores.
        requests.push(vec![request(&[long, end], 2), request(&[long, &[9], end], end.len())]);
    }
    requests.push((10..14).map(|token| request(&[&t[300..420], &[token]], 1)).collect());
    requests.push(requests[3].clone());
    requests.push(vec![request(&[&[1], &t[5..9]], 4), request(&[&t[..297], &[2]], 1)]);
    requests
}

#[test]
fn log_likelihoods_are_what_the_definition_says() {
    let decoder = model(8, VOCAB, 0.4);
    let encoded = questions(many_questions());
    let found = Scorer::new(&decoder).unwrap().score(&encoded, &mut |_, _| true).unwrap();
    assert_eq!(found.examples.len(), encoded.requests.len());
    let mut right = 0;
    for (example, requests) in found.examples.iter().zip(&encoded.requests) {
        assert_eq!(example.loglikelihoods.len(), requests.len());
        for (got, request) in example.loglikelihoods.iter().zip(requests) {
            let tokens = &request.tokens;
            let of = |i: usize| log_probabilities(&decoder, &tokens[..i])[tokens[i] as usize];
            close(*got, (tokens.len() - request.scored..tokens.len()).map(of).sum(), 2e-5);
        }
        let largest = example.loglikelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(example.loglikelihoods[example.choice.unwrap()], largest);
        right += usize::from(example.right);
    }
    let (n, report) = (found.examples.len() as f64, found.report);
    let share = right as f64 / n;
    close(report.acc.mean, share, 1e-12);
    close(report.acc.standard_error.unwrap(), (share * (1.0 - share) / (n - 1.0)).sqrt(), 1e-9);
    // Without shared beginnings it would be a row for each token.
    assert!(report.work.rows * 2 < report.work.tokens, "{:?}", report.work);
}

#[test]
fn what_was_stopped_has_the_first_questions() {
    let decoder = model(8, VOCAB, 0.4);
    let requests = (0..20).flat_map(|_| many_questions()).enumerate().map(|(i, mut question)| {
        // None is like another one.
        question.iter_mut().for_each(|request| request.tokens[0] = (i % VOCAB) as u32);
        question
    });
    let encoded = questions(requests.collect());
    let mut scorer = Scorer::new(&decoder).unwrap();
    let whole = scorer.score(&encoded, &mut |_, _| true).unwrap();
    let part = scorer.score(&encoded, &mut |done, _| done == 0).unwrap();
    assert!(part.report.partial && part.report.planned_documents == encoded.requests.len());
    assert!(!part.examples.is_empty() && part.examples.len() < whole.examples.len());
    assert_eq!(part.examples, whole.examples[..part.examples.len()]);
    assert!(matches!(scorer.score(&encoded, &mut |_, _| false), Err(EvalError::Interrupted)));
}

#[test]
fn answers_that_are_not_finite_are_named() {
    let mut decoder = model(8, VOCAB, 0.4);
    let norm = decoder.backend.vector(vec![f32::NAN; HIDDEN]).unwrap();
    decoder.final_norm.weight = norm;
    let error =
        Scorer::new(&decoder).unwrap().score(&questions(many_questions()), &mut |_, _| true).unwrap_err();
    assert!(error.to_string().contains("arc_easy, line 1, are not finite"), "{error}");
}
