//! Log-likelihoods of many continuations, whose common beginnings are computed once.
//!
//! Requests of a batch are sorted, so that those that begin alike stand side by side, and made into walks: sequences with
//! pages of their own, in which one request after the other is written over the last one from where they differ. The first
//! requests of all walks run together, then the second ones, and so on. A row of logits scores every request of its walk that
//! begins alike up to there, so that answers of a single token take no row but their question's.
//!
//! What documents that follow each other begin with, examples before their questions say, is their trunk: full pages that all
//! walks read, and that stay from batch to batch.
//!
//! Nothing is padded: what a request gives does not depend on what runs beside it, but for the rounding of float products,
//! whose sums some backends order by the number of rows.

use std::collections::HashMap;

use qqq_backend::{Backend, BatchPlan, PAGE, pages_for};
use qqq_model::{Decoder, RopeChoice, Runner, scores::rows_at_a_time};

use super::requests::Request;
use crate::{
    Result,
    forward::{BATCH_TOKENS, losses},
};

/// Pages of the KV cache that a batch takes, if it is not a single document.
const PAGES: usize = 128;
/// Requests of a walk: with more, steps come to have few rows.
const ROUNDS: usize = 8;
/// A request goes on in a walk if at least one in so many of its rows is there.
const SHARED: usize = 8;

/// What was computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Work {
    /// Requests, those that were asked before included.
    pub requests: usize,
    /// Tokens of all requests.
    pub tokens: usize,
    /// Rows that went through the model for them.
    pub rows: usize,
    /// Steps that they took.
    pub steps: usize,
    /// The most pages of the KV cache that were in use.
    pub pages: usize,
}

/// What was found of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    pub loglikelihood: f64,
    /// Whether each token of the continuation is the likeliest one; where that was not asked for, `true`.
    pub greedy: bool,
}

/// Documents that run together.
struct Batch {
    /// Index behind its last document.
    end: usize,
    /// Different requests, by index.
    walks: Vec<Vec<usize>>,
    /// Tokens that all of them begin with, in full pages.
    trunk: usize,
    rope: RopeChoice,
}

/// Requests of documents, each different one once.
struct Requests<'r> {
    different: Vec<&'r Request>,
    /// Of each document, its requests' places in `different`.
    places: Vec<Vec<usize>>,
}

impl<'r> Requests<'r> {
    fn new(documents: &'r [Vec<Request>]) -> Self {
        let mut known = HashMap::new();
        let mut different = Vec::new();
        let mut place = |request: &'r Request| {
            *known.entry(request).or_insert_with(|| {
                different.push(request);
                different.len() - 1
            })
        };
        let places = documents.iter().map(|requests| requests.iter().map(&mut place).collect()).collect();
        Self { different, places }
    }
}

/// How many tokens two sequences have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The full pages that the requests of a document and of the next one begin with and of which none is scored, in tokens.
fn trunk(requests: &Requests<'_>, document: usize) -> usize {
    // The last one is like the one before it.
    let beside = requests.places.get(document + 1).or_else(|| requests.places.get(document.checked_sub(1)?));
    let Some(beside) = beside else { return 0 };
    let mut all = requests.places[document].iter().chain(beside).map(|&place| requests.different[place]);
    let Some(first) = all.next() else { return 0 };
    let length = all.fold(first.first_row(), |length, other| {
        length.min(other.first_row()).min(common(first.input(), other.input()))
    });
    length / PAGE * PAGE
}

/// Documents in their order, as many at a time as fill a step.
fn batches(requests: &Requests<'_>, rows: usize, config: &qqq_formats::ModelConfig) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut seen = 0;
    let mut open: Vec<usize> = Vec::new();
    let (mut taken, mut pages, mut rope) = (0, 0, RopeChoice::Original);
    // What the open documents begin with, and one of their requests that does.
    let mut shared: (usize, &[u32]) = (0, &[]);
    for (i, places) in requests.places.iter().enumerate() {
        // Requests were numbered as they came.
        let fresh: Vec<usize> = places.iter().copied().filter(|place| *place >= seen).collect();
        let longest = fresh.iter().map(|&place| requests.different[place].input().len()).max().unwrap_or(0);
        let choice = RopeChoice::new(config, longest);
        let begins_alike = fresh.iter().all(|&place| {
            let request = requests.different[place];
            request.first_row() >= shared.0 && request.input().starts_with(&shared.1[..shared.0])
        });
        let own = longest.saturating_sub(shared.0);
        let full = taken + own > rows || pages + pages_for(own) > PAGES || choice != rope || !begins_alike;
        if longest > 0 && full && !open.is_empty() {
            batches.push(Batch {
                end: i,
                walks: walks(&mut open, requests, shared.0),
                trunk: shared.0,
                rope,
            });
            (taken, pages) = (0, 0);
        }
        if longest > 0 && open.is_empty() {
            rope = choice;
            shared = (trunk(requests, i), requests.different[fresh[0]].input());
        }
        seen = seen.max(fresh.iter().map(|place| place + 1).max().unwrap_or(0));
        for place in fresh {
            if !open.contains(&place) {
                open.push(place);
            }
        }
        let own = longest.saturating_sub(shared.0);
        (taken, pages) = (taken + own, pages + pages_for(own));
    }
    let end = requests.places.len();
    batches.push(Batch { end, walks: walks(&mut open, requests, shared.0), trunk: shared.0, rope });
    batches
}

/// Sorts requests, which have a trunk in common, into walks; none are left.
fn walks(open: &mut Vec<usize>, requests: &Requests<'_>, trunk: usize) -> Vec<Vec<usize>> {
    open.sort_by_key(|&place| requests.different[place].input());
    let mut walks: Vec<Vec<usize>> = Vec::new();
    for place in open.drain(..) {
        let input = requests.different[place].input();
        match walks.last_mut() {
            Some(walk)
                if walk.len() < ROUNDS
                    && walk.last().is_some_and(|&last| {
                        let shared = common(requests.different[last].input(), input) - trunk;
                        shared * SHARED >= input.len() - trunk
                    }) =>
            {
                walk.push(place);
            }
            _ => walks.push(vec![place]),
        }
    }
    walks
}

/// A request that is run from `start` on, in walk `walk`.
struct Job {
    walk: usize,
    round: usize,
    start: usize,
}

/// Log-likelihoods of requests, each different one once.
pub(super) struct Walker<'d, B: Backend> {
    decoder: &'d Decoder<B>,
    runner: Runner<'d, B>,
    /// Rows of a step.
    rows: usize,
    /// What the first pages hold: the trunk of the last batch, and the rotary embedding that it was made with.
    trunk: (Vec<u32>, RopeChoice),
}

impl<'d, B: Backend> Walker<'d, B> {
    /// With memory for the usual steps; it grows for longer sequences.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn new(decoder: &'d Decoder<B>) -> Result<Self> {
        // Later rounds of a walk have fewer rows than the first one.
        let rows = BATCH_TOKENS.max(2 * B::STEP_TOKENS);
        let runner = Runner::new(decoder, decoder.backend.finest_kv(), 1, rows)?;
        Ok(Self { decoder, runner, rows, trunk: (Vec::new(), RopeChoice::Original) })
    }

    /// Log-likelihoods of the requests of each document, of the first ones where `progress` stopped it; with `greedy` also
    /// whether each token is the likeliest. `progress` is told after each batch how many documents and how many tokens of
    /// requests are done.
    ///
    /// # Errors
    /// Those of the backend. A log-likelihood that is not finite is none: the caller looks at it.
    pub fn run(
        &mut self,
        documents: &[Vec<Request>],
        greedy: bool,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(Vec<Vec<Found>>, Work)> {
        let requests = Requests::new(documents);
        let mut found = vec![Found { loglikelihood: 0.0, greedy: true }; requests.different.len()];
        let mut work = Work::default();
        let mut done = Vec::with_capacity(documents.len());
        for batch in batches(&requests, self.rows, &self.decoder.config) {
            let first = done.len();
            self.run_batch(&batch, &requests, greedy, &mut found, &mut work)?;
            done.extend(
                requests.places[first..batch.end]
                    .iter()
                    .map(|places| places.iter().map(|&place| found[place]).collect::<Vec<Found>>()),
            );
            let ended = documents[first..batch.end].iter().flatten();
            work.tokens += ended.clone().map(|request| request.tokens.len()).sum::<usize>();
            work.requests += ended.count();
            if !progress(batch.end, work.tokens) {
                break;
            }
        }
        Ok((done, work))
    }

    fn run_batch(
        &mut self,
        batch: &Batch,
        requests: &Requests<'_>,
        greedy: bool,
        found: &mut [Found],
        work: &mut Work,
    ) -> Result<()> {
        let input = |place: usize| requests.different[place].input();
        let trunk_pages = (batch.trunk / PAGE) as u32;
        let mut next_page = trunk_pages;
        let tables: Vec<Vec<u32>> = batch
            .walks
            .iter()
            .map(|walk| {
                let longest = walk.iter().map(|&place| input(place).len()).max().unwrap_or(0);
                let own = pages_for(longest) as u32 - trunk_pages;
                next_page += own;
                (0..trunk_pages).chain(next_page - own..next_page).collect()
            })
            .collect();
        work.pages = work.pages.max(next_page as usize);
        self.runner.grow(next_page as usize)?;
        self.runner.choose_rope(batch.rope)?;
        if let Some(&place) = batch.walks.first().and_then(|walk| walk.first()) {
            self.run_trunk(&input(place)[..batch.trunk], batch.rope, work)?;
        }
        // The next row of each request that is to be scored, in the order of the walks.
        let mut next: Vec<Vec<usize>> = batch
            .walks
            .iter()
            .map(|walk| walk.iter().map(|&place| requests.different[place].first_row()).collect())
            .collect();
        // What each walk's pages hold.
        let mut held: Vec<&[u32]> = batch.walks.iter().map(|walk| &input(walk[0])[..batch.trunk]).collect();
        for round in 0..ROUNDS {
            let mut jobs = Vec::new();
            for (walk, places) in batch.walks.iter().enumerate() {
                let Some(&place) = places.get(round) else { continue };
                let start = common(held[walk], input(place));
                // Whatever it asks may have been answered on the way.
                if next[walk][round] < input(place).len() {
                    jobs.push(Job { walk, round, start });
                    held[walk] = input(place);
                }
            }
            let mut jobs = jobs.as_slice();
            while !jobs.is_empty() {
                let mut plan = BatchPlan::default();
                let mut pairs: Vec<(usize, u32, usize)> = Vec::new();
                let mut taken = 0;
                for job in jobs {
                    let new = &input(batch.walks[job.walk][job.round])[job.start..];
                    if taken > 0 && plan.rows() + new.len() > self.rows {
                        break;
                    }
                    score_rows(batch, job, plan.rows(), requests, &mut next, &mut pairs);
                    plan.push(new, job.start, &tables[job.walk]);
                    taken += 1;
                }
                jobs = &jobs[taken..];
                self.runner.step(&plan)?;
                (work.rows, work.steps) = (work.rows + plan.rows(), work.steps + 1);
                self.add_losses(&mut pairs, greedy, found)?;
            }
        }
        Ok(())
    }

    /// Has the first pages hold a trunk; of what they hold, as much stays as it begins with.
    fn run_trunk(&mut self, trunk: &[u32], rope: RopeChoice, work: &mut Work) -> Result<()> {
        let (held, made_with) = &mut self.trunk;
        let kept = if *made_with == rope { common(held, trunk) / PAGE * PAGE } else { 0 };
        // Pages behind it are overwritten by walks.
        held.truncate(kept);
        *made_with = rope;
        let table: Vec<u32> = (0..(trunk.len() / PAGE) as u32).collect();
        for piece in trunk[kept..].chunks(self.rows) {
            let mut plan = BatchPlan::default();
            plan.push(piece, self.trunk.0.len(), &table);
            self.runner.step(&plan)?;
            (work.rows, work.steps) = (work.rows + plan.rows(), work.steps + 1);
            self.trunk.0.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Subtracts what rows of the last step lose from log-likelihoods.
    fn add_losses(
        &mut self,
        pairs: &mut [(usize, u32, usize)],
        greedy: bool,
        found: &mut [Found],
    ) -> Result<()> {
        let vocab = self.decoder.config.vocab_size;
        // Several requests may ask the same row.
        pairs.sort_by_key(|(row, ..)| *row);
        for pairs in pairs.chunks(rows_at_a_time(vocab)) {
            let mut rows: Vec<usize> = pairs.iter().map(|(row, ..)| *row).collect();
            let targets: Vec<u32> = pairs.iter().map(|(_, target, _)| *target).collect();
            let lost = losses(&mut self.runner, &rows, &targets, vocab)?;
            for ((_, _, place), lost) in pairs.iter().zip(lost) {
                found[*place].loglikelihood -= lost;
            }
            if greedy {
                rows.dedup();
                let top = self.runner.top_logits(&rows, 1)?;
                for (row, target, place) in pairs {
                    // The rows are those of the pairs.
                    let likeliest = rows.binary_search(row).ok().and_then(|at| top[at].first());
                    found[*place].greedy &= likeliest.is_some_and(|(_, token)| token == target);
                }
            }
        }
        Ok(())
    }
}

/// The rows of a job, whose first one will be row `first` of the step, that score requests of its walk: row, token, request.
fn score_rows(
    batch: &Batch,
    job: &Job,
    first: usize,
    requests: &Requests<'_>,
    next: &mut [Vec<usize>],
    pairs: &mut Vec<(usize, u32, usize)>,
) {
    let places = &batch.walks[job.walk];
    let own = requests.different[places[job.round]].input();
    for (i, &place) in places.iter().enumerate().skip(job.round) {
        let request = requests.different[place];
        let next = &mut next[job.walk][i];
        // What comes before `start` was computed for an earlier request of the walk, and scored then.
        let end = common(own, request.input());
        debug_assert!(end <= job.start || *next >= job.start);
        for row in *next..end {
            pairs.push((first + row - job.start, request.tokens[row + 1], place));
        }
        *next = (*next).max(end);
    }
}
