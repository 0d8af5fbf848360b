//! The largest of many values.

use std::cmp::Ordering;

use crate::first_not_finite;

/// Order of values with their indices: larger values first, then lower indices.
pub fn descending(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `count` largest values with their indices, in the order of [`descending`]; all, if there are fewer. Where values are
/// not finite there is no such order: the first of these is returned alone, whatever the count.
pub fn largest(values: &[f32], count: usize) -> Vec<(f32, u32)> {
    if let Some(bad) = first_not_finite(values) {
        return vec![(values[bad], bad as u32)];
    }
    let mut all: Vec<(f32, u32)> = values.iter().copied().zip(0..).collect();
    if count == 1 {
        return all.into_iter().min_by(descending).into_iter().collect();
    }
    if count < all.len() {
        all.select_nth_unstable_by(count, descending);
        all.truncate(count);
    }
    all.sort_unstable_by(descending);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_then_indices_decide() {
        let values = [1.0, f32::MIN, 3.0, 3.0, -0.0, 0.0, -7.0];
        assert_eq!(largest(&values, 1), [(3.0, 2)]);
        assert_eq!(largest(&values, 3), [(3.0, 2), (3.0, 3), (1.0, 0)]);
        let order: Vec<u32> = largest(&values, 100).iter().map(|(_, i)| *i).collect();
        assert_eq!(order, [2, 3, 0, 5, 4, 6, 1]);
        assert_eq!(largest(&values, 0), []);
        assert_eq!(largest(&[], 1), []);
    }

    #[test]
    fn what_is_not_finite_stands_alone() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for count in [0, 1, 2, 10] {
                let found = largest(&[5.0, 1.0, bad, 3.0, f32::NAN], count);
                assert_eq!((found.len(), found[0].0.to_bits(), found[0].1), (1, bad.to_bits(), 2));
            }
        }
    }
}
