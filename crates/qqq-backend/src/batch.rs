//! The rows of a step: whose tokens they are, where they stand, and which pages hold what came before.

use crate::{BackendError, Result};

/// Positions of a page of the KV cache.
pub const PAGE: usize = 128;

/// Pages that hold `positions` positions.
pub fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Position of the first new token; the sequence's pages hold those before it.
    pub start: usize,
    /// Number of new tokens, at least 1.
    pub len: usize,
    /// Index of the sequence's first page in [`BatchPlan::pages`]. Position `p` lies in the page
    /// `pages[first_page + p / PAGE]`.
    pub first_page: usize,
}

impl Span {
    /// Position behind the last new token.
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// Host data of one step, made by whoever schedules it: rows of the batch are the new tokens of all spans in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchPlan {
    /// Token ids of the rows; empty where the rows' states are given.
    pub tokens: Vec<u32>,
    /// The sequences in the order of their rows, which lie one after the other.
    pub spans: Vec<Span>,
    /// Page tables of the sequences, one after the other.
    pub pages: Vec<u32>,
}

impl BatchPlan {
    /// Adds a sequence with these new tokens from position `start` on, and its pages.
    pub fn push(&mut self, tokens: &[u32], start: usize, pages: &[u32]) {
        self.push_rows(tokens.len(), start, pages);
        self.tokens.extend_from_slice(tokens);
    }

    fn push_rows(&mut self, len: usize, start: usize, pages: &[u32]) {
        self.spans.push(Span { start, len, first_page: self.pages.len() });
        self.pages.extend_from_slice(pages);
    }

    /// One whole sequence of `len` rows whose states are given, in the first pages of a pool.
    pub fn whole(len: usize) -> Self {
        let mut plan = Self::default();
        let pages: Vec<u32> = (0..pages_for(len) as u32).collect();
        plan.push_rows(len, 0, &pages);
        plan
    }

    /// Whole sequences, in the first pages of a pool.
    pub fn sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut plan = Self::default();
        for tokens in sequences {
            let first = plan.pages.len() as u32;
            let pages: Vec<u32> = (first..first + pages_for(tokens.len()) as u32).collect();
            plan.push(tokens, 0, &pages);
        }
        plan
    }

    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.spans.iter().map(|s| s.len).sum()
    }

    /// Pages of a span's sequence.
    pub(crate) fn table(&self, span: &Span) -> &[u32] {
        &self.pages[span.first_page..span.first_page + pages_for(span.end())]
    }

    /// Checks that spans, tokens and page tables fit together.
    ///
    /// # Errors
    /// [`BackendError::Batch`]: an empty span, tokens that are not one a row, a table with too few pages, or two sequences that
    /// would write the same page.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(BackendError::Batch(what));
        if self.spans.is_empty() {
            return refuse("a batch without sequences".into());
        }
        if !self.tokens.is_empty() && self.tokens.len() != self.rows() {
            return refuse(format!("{} tokens for sequences that take {}", self.tokens.len(), self.rows()));
        }
        let mut written = Vec::new();
        for span in &self.spans {
            if span.len == 0 {
                return refuse("a sequence without new tokens".into());
            }
            let end = span.start.checked_add(span.len).map_or(usize::MAX, pages_for);
            if span.first_page.checked_add(end).is_none_or(|end| end > self.pages.len()) {
                return refuse(format!(
                    "a sequence of {} and {} more positions has too few pages",
                    span.start, span.len
                ));
            }
            written.extend_from_slice(&self.table(span)[span.start / PAGE..]);
        }
        written.sort_unstable();
        match written.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => refuse(format!("two sequences write page {}", pair[0])),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_have_pages_of_their_own() {
        let (a, b) = (vec![7; PAGE + 1], vec![8; 3]);
        let plan = BatchPlan::sequences([a.as_slice(), &b]);
        assert_eq!(plan.pages, [0, 1, 2]);
        assert_eq!(plan.table(&plan.spans[1]), [2]);
        assert_eq!(plan.rows(), PAGE + 4);
        plan.check().unwrap();
        BatchPlan::whole(2 * PAGE).check().unwrap();
    }

    #[test]
    fn contradictions_are_named() {
        let plan = |tokens: &[u32], start, pages: &[u32]| {
            let mut plan = BatchPlan::sequences([[1u32].as_slice()]);
            plan.push(tokens, start, pages);
            plan
        };
        assert!(plan(&[2, 3], PAGE - 1, &[1, 2]).check().is_ok());
        // A page that both only read may be shared.
        let mut shared = BatchPlan::default();
        shared.push(&[1], PAGE, &[4, 5]);
        shared.push(&[2], PAGE, &[4, 6]);
        shared.check().unwrap();
        for (bad, what) in [
            (BatchPlan::default(), "without sequences"),
            (plan(&[], 0, &[]), "without new tokens"),
            (plan(&[2, 3], PAGE - 1, &[1]), "too few pages"),
            (plan(&[2], usize::MAX, &[1]), "too few pages"),
            (plan(&[2], 0, &[0]), "write page 0"),
            (BatchPlan { tokens: vec![1, 2], ..BatchPlan::whole(3) }, "2 tokens"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
