//! One sequence whose KV cache outlives a generation: the turns of a chat.

use qqq_backend::{Backend, pages_for};
use qqq_model::{Decoder, ModelError, Result, RopeChoice, Runner, Tokenizer};

use crate::{
    GenerateOptions, Generation, StopStrings,
    batch::{self, Event, Listener, Next, Sequence},
    pages::Pages,
    text::{Monitor, TextEvent, TextGeneration},
};

/// Tokens that the KV cache of a session has room for at first.
const FIRST_TOKENS: usize = 4096;

/// A conversation with a decoder. Each [`Session::generate`] takes the whole prompt and computes only what
/// the cache does not hold already.
pub struct Session<'a, B: Backend> {
    options: GenerateOptions,
    runner: Runner<'a, B>,
    pages: Pages,
    /// Pages of the conversation.
    table: Vec<u32>,
    /// Tokens whose keys and values the cache holds.
    cached: Vec<u32>,
    /// The rotary embedding by which they are turned.
    rope: RopeChoice,
    turn: usize,
}

impl<'a, B: Backend> Session<'a, B> {
    /// An empty session. Its KV cache grows with the conversation, up to the model's context.
    ///
    /// # Errors
    /// The backend has not the memory.
    pub fn new(decoder: &'a Decoder<B>, options: GenerateOptions) -> Result<Self> {
        Self::with_room(decoder, options, FIRST_TOKENS)
    }

    /// With room for so many tokens at first.
    fn with_room(decoder: &'a Decoder<B>, options: GenerateOptions, tokens: usize) -> Result<Self> {
        let most = pages_for(decoder.config.max_position_embeddings);
        let pages = Pages::growing(most.min(pages_for(tokens)), most);
        let rows = decoder.config.max_position_embeddings.min(B::STEP_TOKENS);
        let runner = Runner::new(decoder, options.kv_dtype, pages.total(), rows)?;
        Ok(Self {
            options,
            runner,
            pages,
            table: Vec::new(),
            cached: Vec::new(),
            rope: RopeChoice::Original,
            turn: 0,
        })
    }

    /// Tokens whose keys and values the cache holds.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// Forgets all tokens and gives their pages of the KV cache back.
    pub fn clear(&mut self) {
        self.pages.truncate(&mut self.table, 0);
        self.cached.clear();
    }

    /// Continues `prompt`, which is the whole conversation so far; the longest prefix that the cache holds is not
    /// computed again, unless the conversation has come to a length that has another rotary embedding. `on_token` is
    /// called for every new token and stops by returning `false`.
    ///
    /// # Errors
    /// As [`crate::generate()`]. The session can be used further.
    pub fn generate(&mut self, prompt: &[u32], on_token: &mut dyn FnMut(u32) -> bool) -> Result<Generation> {
        self.run(prompt, &mut |event| match event {
            Event::Token(_, id) if !on_token(id) => Next::Cancel,
            _ => Next::Go,
        })
    }

    /// As [`Session::generate`], with the new tokens as text that ends before a stop string. `on_event` is told what
    /// happens (of sequence 0), and stops by returning `false`.
    ///
    /// # Errors
    /// As [`crate::generate()`], and tokens that the tokenizer cannot decode.
    pub fn generate_text(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        stop: &StopStrings,
        on_event: &mut dyn FnMut(TextEvent<'_>) -> bool,
    ) -> Result<TextGeneration> {
        let mut last = None;
        let mut listener = |event: TextEvent<'_>| match event {
            TextEvent::End { result, .. } => {
                last = Some(result);
                true
            }
            event => on_event(event),
        };
        let mut monitor = Monitor::new(tokenizer, stop, 1, &mut listener);
        let generation = self.run(prompt, &mut |event| monitor.event(event))?;
        monitor.outcome()?;
        // Without new tokens there is no end either.
        Ok(last.unwrap_or(TextGeneration { text: String::new(), stop_string: None, generation }))
    }

    fn run(&mut self, prompt: &[u32], listener: &mut Listener) -> Result<Generation> {
        let config = &self.runner.decoder().config;
        let reach = batch::reach(prompt.len(), &self.options, config.max_position_embeddings);
        let rope = RopeChoice::new(config, reach);
        if rope != self.rope {
            self.clear();
            self.rope = rope;
        }
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token has to run in any case: its logits are needed.
        let common = common.min(prompt.len().saturating_sub(1));
        self.pages.truncate(&mut self.table, common);
        self.cached.truncate(common);
        let sequence = Sequence::new(prompt.to_vec(), &self.options.sampling, self.turn);
        let mut sequence = [sequence.with_pages(std::mem::take(&mut self.table), common)];
        self.turn += 1;
        let result = batch::run(&mut self.runner, &mut self.pages, &mut sequence, &self.options, 1, listener);
        let [sequence] = sequence;
        self.cached = sequence.cached_tokens().to_vec();
        let generation = sequence.generation();
        self.table = sequence.into_pages();
        if let Err(ModelError::NotFinite(_)) = result {
            // Keys and values of such a run are worth nothing.
            self.clear();
        }
        result.map(|()| generation)
    }
}

#[cfg(test)]
mod tests {
    use qqq_backend::{CpuBackend, KvDType, PAGE};
    use qqq_formats::Checkpoint;

    use super::*;
    use crate::SamplingOptions;

    #[test]
    fn a_cache_that_grows_changes_no_token() {
        let tiny = qqq_testing::TinyModel::new();
        let decoder = Decoder::load(CpuBackend::new(), &Checkpoint::open(&tiny.model()).unwrap()).unwrap();
        let context = decoder.config.max_position_embeddings;
        assert!(context > 2 * PAGE, "{context}");
        let options = GenerateOptions {
            sampling: SamplingOptions { temperature: 1.0, ..SamplingOptions::default() },
            max_new_tokens: usize::MAX,
            eos: Vec::new(),
            kv_dtype: KvDType::F16,
        };
        let talk = |room: usize| {
            let mut session = Session::with_room(&decoder, options.clone(), room).unwrap();
            let first = session.pages.total();
            let mut prompt: Vec<u32> = vec![1, 5, 9];
            for turn in 1..4 {
                let mut left = context * turn / 4 - prompt.len();
                let mut more = |_: u32| {
                    left -= 1;
                    left > 0
                };
                let answer = session.generate(&prompt, &mut more).unwrap();
                prompt.extend(answer.tokens);
            }
            (prompt, first, session.pages.total())
        };
        let (grown, first, last) = talk(1);
        let (whole, all, same) = talk(context);
        assert!(first == 1 && last > 1 && last <= all && all == same, "{first} {last} {all} {same}");
        assert_eq!(grown, whole);
    }
}
