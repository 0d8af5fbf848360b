//! The real model: its text makes sense, and a conversation is continued from the cache.

use std::{path::PathBuf, process::ExitCode};

use qqq_backend::{CpuBackend, KvDType};
use qqq_engine::{
    FinishReason, GenerateOptions, Prompt, SamplingOptions, Session, StopStrings, TextEvent, TextRun,
    generate,
};
use qqq_formats::Checkpoint;
use qqq_model::{ChatTemplate, Decoder, Message, Tokenizer};
use qqq_testing::{Suite, tests};

fn main() -> ExitCode {
    Suite::new().with(qqq_testing::smollm2, tests![text_makes_sense, texts_stop_and_can_be_cancelled]).run()
}

fn text_makes_sense(path: PathBuf) {
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let options = GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens: 12,
        eos: tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F32,
    };

    let prompts = ["The capital of France is", "1, 2, 3, 4, 5,", "Once upon a time"];
    let prompts = prompts.map(|p| tokenizer.encode(p, true).unwrap());
    let done = generate(&decoder, &prompts, &options, &mut |_, _| true).unwrap();
    let texts: Vec<String> = done.iter().map(|g| tokenizer.decode(&g.tokens, true).unwrap()).collect();
    println!("{texts:#?}");
    assert!(texts[0].starts_with(" Paris"), "{:?}", texts[0]);
    assert!(texts[1].starts_with(" 6, 7, 8"), "{:?}", texts[1]);

    let template = ChatTemplate::load(&checkpoint, &tokenizer).unwrap().unwrap();
    let mut session =
        Session::new(&decoder, GenerateOptions { max_new_tokens: 48, ..options.clone() }).unwrap();
    let mut messages = Vec::new();
    let mut cached = 0;
    for question in ["What is the capital of Italy? Answer in one short sentence.", "And of Spain?"] {
        messages.push(Message { role: "user".into(), content: question.into() });
        let prompt = tokenizer.encode(&template.render(&messages, true).unwrap(), false).unwrap();
        let answer = session.generate(&prompt, &mut |_| true).unwrap();
        let text = tokenizer.decode(&answer.tokens, true).unwrap();
        println!(
            "{question} -> {text:?} ({:?}, {} of {} tokens ran)",
            answer.finish,
            answer.prefill_tokens,
            prompt.len()
        );
        assert_eq!(answer.finish, FinishReason::Stop, "{text:?}");
        assert!(
            answer.prefill_tokens <= prompt.len() - cached,
            "{} of {}",
            answer.prefill_tokens,
            prompt.len()
        );
        // The answer's text may be cut into other tokens when it is part of a prompt; what came before may not.
        cached = prompt.len();
        messages.push(Message { role: "assistant".into(), content: text });
    }
    let answer = &messages[1].content;
    assert!(answer.contains("Rome"), "{answer:?}");
}

/// Stop strings across tokens of many letters, a batch that is refilled, and a long prompt that is given up.
fn texts_stop_and_can_be_cancelled(path: PathBuf) {
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let options = GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens: 24,
        eos: tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F32,
    };
    let prompt = |text: &str| Prompt { tokens: tokenizer.encode(text, true).unwrap(), seed: None };
    let prompts = ["1, 2, 3, 4, 5,", "The capital of France is", "Once upon a time"].map(prompt);
    let texts = |stops: &[&str], together: usize| {
        let stop = StopStrings::new(stops.iter().map(|s| (*s).into()).collect(), &tokenizer).unwrap();
        let run =
            TextRun { decoder: &decoder, tokenizer: &tokenizer, options: &options, stop: &stop, together };
        let mut shown = vec![String::new(); prompts.len()];
        let mut done = vec![None; prompts.len()];
        run.run(&prompts, &mut |event| {
            match event {
                TextEvent::Text { sequence, piece } => shown[sequence] += piece,
                TextEvent::End { sequence, result } => done[sequence] = Some(result),
                TextEvent::Pass { computed, total } => assert!(computed <= total),
            }
            true
        })
        .unwrap();
        let done: Vec<_> = done.into_iter().map(Option::unwrap).collect();
        assert!(done.iter().zip(&shown).all(|(d, shown)| d.text == *shown), "what is shown is the text");
        done
    };
    let free = texts(&[], 3);
    let stops = ["7, 8, 9", " Paris", "no such text"];
    for together in [1, 2, 3] {
        let stopped = texts(&stops, together);
        assert_eq!(stopped[0].text, " 6, ", "{together} together");
        assert_eq!(stopped[0].stop_string.as_deref(), Some("7, 8, 9"));
        assert_eq!((stopped[1].text.as_str(), stopped[1].generation.finish), ("", FinishReason::StopString));
        assert_eq!(stopped[2].text, free[2].text);
        assert_eq!(
            (&stopped[2].stop_string, stopped[2].generation.finish),
            (&None, free[2].generation.finish)
        );
    }
    assert!(StopStrings::new(vec![String::new()], &tokenizer).is_err());

    let long = prompt(&"word ".repeat(1200)).tokens;
    let mut session = Session::new(&decoder, options.clone()).unwrap();
    let stop = StopStrings::default();
    let mut passes = 0;
    let given_up = session
        .generate_text(&tokenizer, &long, &stop, &mut |_| {
            passes += 1;
            passes < 2
        })
        .unwrap();
    assert_eq!((given_up.generation.finish, given_up.text.as_str()), (FinishReason::Cancelled, ""));
    let computed = given_up.generation.prefill_tokens;
    assert!(0 < computed && computed < long.len(), "one pass of several: {computed}");
    // What was computed is not lost.
    let answered = session.generate_text(&tokenizer, &long, &stop, &mut |_| true).unwrap();
    assert_eq!(answered.generation.prefill_tokens, long.len() - computed);
}
