//! Generation of texts: tokens decoded as they come, ended by stop strings, in batches that are refilled.

use qqq_backend::Backend;
use qqq_model::{Decoder, ModelError, Result, Tokenizer, tokenizer::TokenStream};

use crate::{
    GenerateOptions, Generation, SamplingOptions, StopStrings,
    batch::{self, Event, Next, Sequence},
    stop::Watch,
};

/// A prompt of a batch.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The prompt as tokens of the vocabulary.
    pub tokens: Vec<u32>,
    /// A seed of its own: its draws are then those of the only prompt of a batch with this seed. Without one they
    /// depend on the batch's seed and the prompt's index.
    pub seed: Option<u64>,
}

/// A finished text.
#[derive(Clone, Debug)]
pub struct TextGeneration {
    /// New text, without the stop string and what follows it.
    pub text: String,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
    /// Tokens, times, and why it ended.
    pub generation: Generation,
}

/// What happens while texts are made. Sequences are named by the index of their prompt.
#[derive(Debug)]
pub enum TextEvent<'a> {
    /// The decoder is about to run: `computed` of the `total` tokens of the prompts that have joined the batch until
    /// now are done.
    Pass {
        /// Tokens of prompts whose keys and values are there.
        computed: usize,
        /// Tokens of prompts.
        total: usize,
    },
    /// A new token. `piece` is the text that has become certain, which may be none.
    Text {
        /// Index of the prompt.
        sequence: usize,
        /// Text that no token to come can change; may be empty.
        piece: &'a str,
    },
    /// A text is complete, or was cancelled.
    End {
        /// Index of the prompt.
        sequence: usize,
        /// What came out.
        result: TextGeneration,
    },
}

/// What a batch of texts runs with.
pub struct TextRun<'a, B: Backend> {
    /// The model that continues the text.
    pub decoder: &'a Decoder<B>,
    /// The model's tokenizer, which cuts prompts and joins answers.
    pub tokenizer: &'a Tokenizer,
    /// What to generate.
    pub options: &'a GenerateOptions,
    /// What ends a text, beside end tokens.
    pub stop: &'a StopStrings,
    /// Sequences that run together at most: when one has ended, the next joins.
    pub together: usize,
}

impl<B: Backend> TextRun<'_, B> {
    /// Makes a text for each prompt. `on_event` is told what happens, and cancels all texts by returning `false`; every
    /// prompt that has joined the batch comes to an end, the others are not heard of then.
    ///
    /// # Errors
    /// As [`crate::generate()`], and tokens that the tokenizer cannot decode.
    pub fn run(&self, prompts: &[Prompt], on_event: &mut dyn FnMut(TextEvent<'_>) -> bool) -> Result<()> {
        let sequence = |(i, prompt): (usize, &Prompt)| {
            let tokens = prompt.tokens.clone();
            match prompt.seed {
                Some(seed) => {
                    let sampling = SamplingOptions { seed, ..self.options.sampling.clone() };
                    Sequence::new(tokens, &sampling, 0)
                }
                None => Sequence::new(tokens, &self.options.sampling, i),
            }
        };
        let mut sequences: Vec<Sequence> = prompts.iter().enumerate().map(sequence).collect();
        let mut monitor = Monitor::new(self.tokenizer, self.stop, prompts.len(), on_event);
        let (mut runner, mut pages) = batch::runner(self.decoder, &sequences, self.options, self.together)?;
        batch::run(&mut runner, &mut pages, &mut sequences, self.options, self.together, &mut |event| {
            monitor.event(event)
        })?;
        monitor.outcome()
    }
}

/// Turns what happens in a batch of tokens into what happens to texts.
pub(crate) struct Monitor<'a, 'b> {
    stop: &'a StopStrings,
    texts: Vec<Text<'a>>,
    on_event: &'b mut dyn FnMut(TextEvent<'_>) -> bool,
    error: Option<ModelError>,
}

/// A text that is being made.
struct Text<'a> {
    tokens: Option<TokenStream<'a>>,
    watch: Watch,
    text: String,
    found: Option<usize>,
}

impl<'a, 'b> Monitor<'a, 'b> {
    pub fn new(
        tokenizer: &'a Tokenizer,
        stop: &'a StopStrings,
        count: usize,
        on_event: &'b mut dyn FnMut(TextEvent<'_>) -> bool,
    ) -> Self {
        let text = |_| Text {
            tokens: Some(tokenizer.stream()),
            watch: Watch::default(),
            text: String::new(),
            found: None,
        };
        Self { stop, texts: (0..count).map(text).collect(), on_event, error: None }
    }

    pub fn event(&mut self, event: Event<'_>) -> Next {
        match event {
            Event::Pass { computed, total } => self.tell(TextEvent::Pass { computed, total }),
            Event::Token(sequence, id) => match self.texts[sequence].push(id, self.stop) {
                Err(error) => self.fail(error),
                Ok(piece) => {
                    let next = self.tell(TextEvent::Text { sequence, piece: &piece });
                    let stopped = self.texts[sequence].found.is_some();
                    if stopped && next == Next::Go { Next::Stop } else { next }
                }
            },
            Event::End(sequence, ended) => match self.texts[sequence].finish(self.stop) {
                Err(error) => self.fail(error),
                Ok(piece) => {
                    if !piece.is_empty() {
                        self.tell(TextEvent::Text { sequence, piece: &piece });
                    }
                    let Text { text, found, .. } = &mut self.texts[sequence];
                    let result = TextGeneration {
                        text: std::mem::take(text),
                        stop_string: found.map(|i| self.stop.strings()[i].clone()),
                        generation: ended.generation(),
                    };
                    self.tell(TextEvent::End { sequence, result })
                }
            },
        }
    }

    /// The error that ended the batch, if one did.
    pub fn outcome(self) -> Result<()> {
        self.error.map_or(Ok(()), Err)
    }

    fn tell(&mut self, event: TextEvent<'_>) -> Next {
        if (self.on_event)(event) { Next::Go } else { Next::CancelAll }
    }

    fn fail(&mut self, error: ModelError) -> Next {
        self.error.get_or_insert(error);
        Next::CancelAll
    }
}

impl Text<'_> {
    /// Adds a token; gives the text that has become certain.
    fn push(&mut self, id: u32, stop: &StopStrings) -> Result<String> {
        if let Some(found) = stop.special(id) {
            // The text ends here, so nothing of it is in doubt any more.
            let rest = self.finish(stop)?;
            self.found.get_or_insert(found);
            return Ok(rest);
        }
        match self.tokens.as_mut().map(|tokens| tokens.push(id)).transpose()?.flatten() {
            Some(piece) => Ok(self.add(&piece, stop)),
            None => Ok(String::new()),
        }
    }

    /// What is left at the end: an incomplete character, and what was held back.
    fn finish(&mut self, stop: &StopStrings) -> Result<String> {
        let Some(tokens) = self.tokens.take() else { return Ok(String::new()) };
        if self.found.is_some() {
            return Ok(String::new());
        }
        let mut rest = match tokens.finish()? {
            Some(piece) => self.add(&piece, stop),
            None => String::new(),
        };
        let held = self.watch.finish();
        self.text += &held;
        rest += &held;
        Ok(rest)
    }

    fn add(&mut self, piece: &str, stop: &StopStrings) -> String {
        let (certain, found) = self.watch.push(piece, stop.strings());
        self.text += &certain;
        self.found = self.found.or(found);
        certain
    }
}
