//! Who has which page of the KV cache. Host code alone: the backend knows pages by their numbers.

use qqq_backend::pages_for;
use qqq_model::{ModelError, Result};

/// The pages of a pool that nobody has.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The last one is given next.
    free: Vec<u32>,
    total: usize,
    /// What the pool may grow to.
    most: usize,
}

impl Pages {
    /// Of a pool of `total` pages.
    pub fn new(total: usize) -> Self {
        Self::growing(total, total)
    }

    /// Of a pool of `total` pages, which may come to have `most`.
    pub fn growing(total: usize, most: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total, most }
    }

    /// Pages of the pool.
    pub fn total(&self) -> usize {
        self.total
    }

    /// How many pages the pool must have before a step in which sequences with `has` pages come to `positions` positions; `None`
    /// if it has them, or may not grow so far. Twice what it has where that is more, so that it seldom grows.
    pub fn wanted(&self, sequences: impl Iterator<Item = (usize, usize)>) -> Option<Wanted> {
        let lacks: usize = sequences.map(|(has, positions)| pages_for(positions).saturating_sub(has)).sum();
        let least = self.total + lacks.saturating_sub(self.free.len());
        if least == self.total || least > self.most {
            return None;
        }
        Some(Wanted { least, better: least.max(2 * self.total).min(self.most) })
    }

    /// The pool has grown.
    pub fn grow(&mut self, total: usize) {
        // Given after those that were there.
        self.free.splice(0..0, (self.total as u32..total as u32).rev());
        self.total = self.total.max(total);
    }

    /// Gives a sequence the pages that it lacks for so many positions.
    ///
    /// # Errors
    /// Too few are free; it has got none then.
    pub fn extend(&mut self, table: &mut Vec<u32>, positions: usize) -> Result<()> {
        let lacks = pages_for(positions).saturating_sub(table.len());
        let Some(left) = self.free.len().checked_sub(lacks) else {
            return Err(ModelError::Request(format!(
                "the KV cache has {} of its {} pages left, and a sequence needs {lacks}",
                self.free.len(),
                self.total
            )));
        };
        table.extend(self.free.drain(left..).rev());
        Ok(())
    }

    /// Takes back what a sequence of so many positions has no use for.
    pub fn truncate(&mut self, table: &mut Vec<u32>, positions: usize) {
        let keeps = pages_for(positions).min(table.len());
        self.free.extend(table.drain(keeps..).rev());
    }
}

/// Pages that a pool is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Without which a step cannot be.
    pub least: usize,
    /// With which it need not grow soon.
    pub better: usize,
}

#[cfg(test)]
mod tests {
    use qqq_backend::PAGE;

    use super::*;

    #[test]
    fn no_page_is_had_twice_and_none_is_lost() {
        let mut pages = Pages::new(5);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        pages.extend(&mut a, PAGE).unwrap();
        pages.extend(&mut b, PAGE + 1).unwrap();
        pages.extend(&mut a, PAGE + 1).unwrap();
        pages.extend(&mut a, PAGE + 1).unwrap();
        assert_eq!((a.as_slice(), b.as_slice()), ([0, 3].as_slice(), [1, 2].as_slice()));
        let error = pages.extend(&mut b, 5 * PAGE).unwrap_err().to_string();
        assert!(error.contains("1 of its 5 pages") && b.len() == 2, "{error}");
        assert_eq!(pages.wanted([(2, 5 * PAGE)].into_iter()), None);
        pages.truncate(&mut a, PAGE);
        pages.truncate(&mut b, 0);
        assert_eq!((a.as_slice(), b.len(), pages.free.len()), ([0].as_slice(), 0, 4));
        pages.extend(&mut a, 5 * PAGE).unwrap();
        a.sort_unstable();
        assert_eq!(a, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_pool_grows_to_what_a_step_needs_and_no_further_than_it_may() {
        let mut pages = Pages::growing(2, 9);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        pages.extend(&mut a, PAGE + 1).unwrap();
        assert_eq!(pages.wanted([(2, 2 * PAGE)].into_iter()), None);
        let wanted = |pages: &Pages, a: usize, b: usize| pages.wanted([(2, a), (0, b)].into_iter());
        assert_eq!(wanted(&pages, 2 * PAGE + 1, 0), Some(Wanted { least: 3, better: 4 }));
        assert_eq!(wanted(&pages, 2 * PAGE + 1, 3 * PAGE), Some(Wanted { least: 6, better: 6 }));
        assert_eq!(wanted(&pages, 7 * PAGE, 3 * PAGE), None);
        pages.grow(5);
        pages.extend(&mut b, 2 * PAGE).unwrap();
        pages.extend(&mut a, 3 * PAGE).unwrap();
        assert_eq!((a.as_slice(), b.as_slice()), ([0, 1, 4].as_slice(), [2, 3].as_slice()));
        assert_eq!(pages.total(), 5);
        assert_eq!(pages.wanted([(3, 3 * PAGE + 1)].into_iter()), Some(Wanted { least: 6, better: 9 }));
        assert!(pages.extend(&mut a, 3 * PAGE + 1).is_err());
    }
}
