//! Groups that follow the order in which GPTQ has gone through the input channels (`desc_act`, `actorder: group`).
//!
//! `g_idx` names the group of every input channel. Where channels of a group are neighbours, groups are put in the order of
//! the channels, and nothing is left of it. Elsewhere columns are put in an order in which they are, and whoever makes the
//! layer's input must make its channels in that order.

use super::RawWeight;
use crate::{FormatError, Result, int4};

/// Puts the columns of `raw` in an order in which each group's are neighbours, and its groups in theirs. Returns the input
/// channel of every column, or `None` where it is the one that it was.
///
/// # Errors
/// Numbers of groups that do not exist, groups of another size.
pub(super) fn resolve(raw: &mut RawWeight, g_idx: &[i64], name: &str) -> Result<Option<Vec<usize>>> {
    let (n, k) = (raw.n, raw.k);
    let groups = int4::groups(k, raw.group_size);
    let width = k / groups.max(1);
    let fail = |reason: String| FormatError::Layout(format!("{name}: g_idx {reason}"));
    if g_idx.len() != k {
        return Err(fail(format!("has {} numbers for {k} input channels", g_idx.len())));
    }
    let mut members = vec![Vec::new(); groups];
    for (channel, group) in g_idx.iter().enumerate() {
        let members = usize::try_from(*group).ok().and_then(|g| members.get_mut(g));
        members.ok_or_else(|| fail(format!("names group {group} of {groups}")))?.push(channel);
    }
    if let Some((group, members)) = members.iter().enumerate().find(|(_, m)| m.len() != width) {
        return Err(fail(format!(
            "puts {} input channels in group {group}, not {width}: its groups are of different sizes, which no integer \
             kernel here takes",
            members.len()
        )));
    }
    // By their first channels, so that what is in order stays in it.
    let mut order: Vec<usize> = (0..groups).collect();
    order.sort_by_key(|g| members[*g].first().copied());
    let channels: Vec<usize> = order.iter().flat_map(|g| members[*g].iter().copied()).collect();
    if order.iter().enumerate().any(|(i, g)| i != *g) {
        let places = || (0..n).flat_map(|row| order.iter().map(move |g| row * groups + g));
        raw.zeros = places().map(|i| raw.zeros[i]).collect();
        raw.scales = int4::gathered(&raw.scales, places().map(|i| i..i + 1));
    }
    if channels.iter().enumerate().all(|(i, c)| i == *c) {
        return Ok(None);
    }
    let mut codes = Vec::with_capacity(n * k);
    for row in raw.codes.chunks_exact(k) {
        codes.extend(channels.iter().map(|c| row[*c]));
    }
    raw.codes = codes;
    Ok(Some(channels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightData;

    /// Two output channels, four groups of two.
    fn raw() -> RawWeight {
        RawWeight {
            n: 2,
            k: 8,
            group_size: Some(2),
            codes: (0..16).collect(),
            zeros: (0..8).collect(),
            scales: WeightData::F32((0..8).map(|i| 1.0 + i as f32).collect()),
        }
    }

    /// `(u - z) * s` of every input channel, as `g_idx` has it.
    fn float(raw: &RawWeight, g_idx: &[i64]) -> Vec<f32> {
        let scales = raw.scales.clone().into_f32();
        let place = |row: usize, c: usize| row * 4 + g_idx[c] as usize;
        (0..16)
            .map(|i| {
                let p = place(i / 8, i % 8);
                (f32::from(raw.codes[i]) - f32::from(raw.zeros[p])) * scales[p]
            })
            .collect()
    }

    #[test]
    fn weights_stay_at_their_channels() {
        let trivial = [0, 0, 1, 1, 2, 2, 3, 3];
        for (g_idx, moves) in [
            (trivial, false),
            // Neighbours under other numbers.
            ([2, 2, 0, 0, 3, 3, 1, 1], false),
            ([3, 0, 1, 2, 0, 1, 2, 3], true),
            ([0, 0, 1, 2, 1, 2, 3, 3], true),
        ] {
            let mut weight = raw();
            let expected = float(&weight, &g_idx);
            let order = resolve(&mut weight, &g_idx, "x").unwrap();
            assert_eq!(order.is_some(), moves, "{g_idx:?}");
            let order = order.unwrap_or_else(|| (0..8).collect());
            let now = float(&weight, &trivial);
            for row in 0..2 {
                for (column, channel) in order.iter().enumerate() {
                    assert_eq!(now[row * 8 + column], expected[row * 8 + channel], "{g_idx:?}");
                }
            }
        }
    }

    #[test]
    fn wrong_groups_are_refused() {
        for (g_idx, says) in [
            (vec![0, 0, 1, 1, 2, 2, 3], "7 numbers for 8"),
            (vec![0, 0, 1, 1, 2, 2, 3, 4], "group 4 of 4"),
            (vec![0, 0, 1, 1, 2, 2, 3, -1], "group -1 of 4"),
            (vec![0, 0, 0, 1, 2, 2, 3, 3], "3 input channels in group 0"),
        ] {
            let error = resolve(&mut raw(), &g_idx, "x").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
