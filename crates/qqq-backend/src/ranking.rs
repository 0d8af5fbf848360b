//! The largest of many values.

use std::cmp::Ordering;

/// Order of values with their indices: larger values first, then lower indices.
pub fn descending(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `count` largest values with their indices, in the order of [`descending`]; all, if there are fewer. NaN counts
/// as minus infinity.
pub fn largest(values: &[f32], count: usize) -> Vec<(f32, u32)> {
    let ranked = |value: f32| if value.is_nan() { f32::NEG_INFINITY } else { value };
    let mut all: Vec<(f32, u32)> = values.iter().map(|&v| ranked(v)).zip(0..).collect();
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
        let values = [1.0, f32::NAN, 3.0, 3.0, -0.0, 0.0, f32::NEG_INFINITY];
        assert_eq!(largest(&values, 1), [(3.0, 2)]);
        assert_eq!(largest(&values, 3), [(3.0, 2), (3.0, 3), (1.0, 0)]);
        let order: Vec<u32> = largest(&values, 100).iter().map(|(_, i)| *i).collect();
        assert_eq!(order, [2, 3, 0, 5, 4, 1, 6]);
        assert_eq!(largest(&values, 0), []);
        assert_eq!(largest(&[], 1), []);
    }
}
