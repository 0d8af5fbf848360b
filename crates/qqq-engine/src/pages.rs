//! Who has which page of the KV cache. Host code alone: the backend knows pages by their numbers.

use qqq_backend::pages_for;
use qqq_model::{ModelError, Result};

/// The pages of a pool that nobody has.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The last one is given next.
    free: Vec<u32>,
    total: usize,
}

impl Pages {
    /// Of a pool of `total` pages.
    pub fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total }
    }

    /// Pages of the pool.
    pub fn total(&self) -> usize {
        self.total
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
        pages.truncate(&mut a, PAGE);
        pages.truncate(&mut b, 0);
        assert_eq!((a.as_slice(), b.len(), pages.free.len()), ([0].as_slice(), 0, 4));
        pages.extend(&mut a, 5 * PAGE).unwrap();
        a.sort_unstable();
        assert_eq!(a, [0, 1, 2, 3, 4]);
    }
}
