//! The real model: its text makes sense, and a conversation is continued from the cache.

use std::{path::PathBuf, process::ExitCode};

use qqq_backend::{CpuBackend, KvDType};
use qqq_engine::{FinishReason, GenerateOptions, SamplingOptions, Session, generate};
use qqq_formats::Checkpoint;
use qqq_model::{ChatTemplate, Decoder, Message, Tokenizer};
use qqq_testing::{Suite, tests};

fn main() -> ExitCode {
    Suite::new().with(qqq_testing::smollm2, tests![text_makes_sense]).run()
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
    let mut session = Session::new(&decoder, GenerateOptions { max_new_tokens: 48, ..options.clone() });
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
