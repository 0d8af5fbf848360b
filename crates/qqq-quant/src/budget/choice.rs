//! How a budget is spent: by what is saved for each byte.

use super::{Candidate, SiteChoice};

/// Nats per token of a candidate that leaves no numbers: more than any that leaves some.
const BROKEN: f64 = 1e6;

/// A step from one candidate of a site to a larger one that loses less.
struct Step {
    site: usize,
    /// Index of the larger candidate.
    to: usize,
    bytes: u64,
    /// Nats per token that it saves for each byte.
    worth: f64,
}

/// Chooses a candidate for every site, so that all take no more than `room` bytes beyond the first ones.
///
/// Of the candidates of a site those count that are on the lower convex hull of loss over bytes: between two of these, some
/// steps of other sites save more for their bytes. Steps along the hulls are then taken in the order of what they save for each
/// byte, which loses least in all for every sum that they reach, where losses of sites add up (a linear relaxation of the
/// multiple-choice knapsack problem). A step that does not fit ends its site's; smaller ones of other sites may still fit.
///
/// With more room no less is spent: the first step of the order that only the larger one takes is by itself more than all that
/// the smaller one can still hold.
pub(super) fn spend(sites: &mut [SiteChoice], mut room: u64) {
    let mut steps = Vec::new();
    for (at, site) in sites.iter_mut().enumerate() {
        site.chosen = site.candidates[0].precision;
        let hull = hull(&site.candidates);
        for pair in hull.windows(2) {
            let [from, to] = [pair[0], pair[1]].map(|i| &site.candidates[i]);
            let bytes = to.bytes - from.bytes;
            steps.push(Step { site: at, to: pair[1], bytes, worth: slope(from, to) });
        }
    }
    // Stable: of equals the first in the order of computation; along a hull, worth falls.
    steps.sort_by(|a, b| b.worth.total_cmp(&a.worth));
    let mut ended = vec![false; sites.len()];
    for Step { site, to, bytes, .. } in steps {
        match room.checked_sub(bytes) {
            Some(left) if !ended[site] => {
                room = left;
                sites[site].chosen = sites[site].candidates[to].precision;
            }
            _ => ended[site] = true,
        }
    }
}

fn loss(candidate: &Candidate) -> f64 {
    candidate.kl_divergence.unwrap_or(BROKEN)
}

/// What is saved for each byte on the way from one to a larger one.
fn slope(from: &Candidate, to: &Candidate) -> f64 {
    (loss(from) - loss(to)) / (to.bytes - from.bytes) as f64
}

/// Indices of the candidates on the lower convex hull, from the first on: each is larger than the one before and loses less.
fn hull(candidates: &[Candidate]) -> Vec<usize> {
    let mut hull = vec![0];
    while let Some(&last) = hull.last() {
        let from = &candidates[last];
        let better = (last + 1..candidates.len())
            .filter(|&i| candidates[i].bytes > from.bytes && loss(&candidates[i]) < loss(from));
        // Of equals the smallest.
        let next = better
            .reduce(|a, b| if slope(from, &candidates[b]) > slope(from, &candidates[a]) { b } else { a });
        match next {
            Some(next) => hull.push(next),
            None => break,
        }
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Precision, precision::Groups};

    const PRECISIONS: [Precision; 3] =
        [Precision::Int4(Groups::Of(64)), Precision::Int4(Groups::Of(32)), Precision::Int8];

    /// Of bytes and losses.
    fn site(of: &[(u64, Option<f64>)]) -> SiteChoice {
        let candidate = |(&precision, &(bytes, kl_divergence))| Candidate { precision, bytes, kl_divergence };
        SiteChoice {
            name: String::new(),
            weights: 0,
            candidates: PRECISIONS.iter().zip(of).map(candidate).collect(),
            chosen: PRECISIONS[0],
        }
    }

    /// What every site gets, and what all take.
    fn spent(sites: &[SiteChoice], room: u64) -> (Vec<usize>, u64) {
        let mut sites = sites.to_vec();
        spend(&mut sites, room);
        let place = |site: &SiteChoice| PRECISIONS.iter().position(|p| *p == site.chosen).unwrap();
        let bytes = |site: &SiteChoice| site.candidates[place(site)].bytes - site.candidates[0].bytes;
        (sites.iter().map(place).collect(), sites.iter().map(bytes).sum())
    }

    #[test]
    fn what_saves_most_for_its_bytes_comes_first() {
        // Worth 0.05, 0.06, 0.1 and, being broken in 4 bits, more than anything.
        let sites = [
            site(&[(10, Some(1.1)), (30, Some(0.1))]),
            site(&[(10, Some(0.6)), (20, Some(0.0))]),
            site(&[(10, Some(0.1)), (11, Some(0.0))]),
            site(&[(10, None), (15, Some(0.0))]),
        ];
        assert_eq!(spent(&sites, 0), (vec![0, 0, 0, 0], 0));
        assert_eq!(spent(&sites, 5), (vec![0, 0, 0, 1], 5));
        assert_eq!(spent(&sites, 16), (vec![0, 1, 1, 1], 16));
        // The third does not fit, a worse one does.
        assert_eq!(spent(&sites, 9), (vec![0, 0, 1, 1], 6));
        assert_eq!(spent(&sites, 36), (vec![1, 1, 1, 1], 36));
        assert_eq!(spent(&sites, 35), (vec![0, 1, 1, 1], 16));
    }

    #[test]
    fn a_site_goes_along_its_hull() {
        // The first step of the first site saves most for a byte, its second less than the only one of the second, in whose
        // candidates the middle one is above the line between the others. The third gets worse.
        let sites = [
            site(&[(10, Some(1.0)), (12, Some(0.6)), (20, Some(0.4))]),
            site(&[(10, Some(1.0)), (12, Some(0.99)), (20, Some(0.5))]),
            site(&[(10, Some(0.1)), (12, Some(0.1)), (20, Some(0.2))]),
        ];
        assert_eq!(spent(&sites, 2), (vec![1, 0, 0], 2));
        assert_eq!(spent(&sites, 9), (vec![1, 0, 0], 2));
        // The step that saves more does not fit, a worse one does.
        assert_eq!(spent(&sites, 11), (vec![2, 0, 0], 10));
        assert_eq!(spent(&sites, 12), (vec![1, 2, 0], 12));
        assert_eq!(spent(&sites, 100), (vec![2, 2, 0], 20));
    }

    #[test]
    fn more_room_never_spends_less_and_never_loses_more() {
        let sites: Vec<SiteChoice> = [7, 3, 11, 2, 5, 13, 1, 6, 4, 9]
            .iter()
            .enumerate()
            .map(|(i, &extra)| {
                let loss = (i * 7919 % 13) as f64;
                site(&[(10, Some(loss)), (10 + extra, Some(loss / 3.0)), (10 + 4 * extra, Some(0.0))])
            })
            .collect();
        let sums: Vec<u64> = (0..=244).map(|room| spent(&sites, room).1).collect();
        // The eighth site loses nothing from the beginning.
        assert!(sums.is_sorted() && sums[244] == 4 * (61 - 7), "{sums:?}");
        assert!(sums.iter().enumerate().all(|(room, sum)| *sum <= room as u64), "{sums:?}");
    }

    #[test]
    fn of_equals_the_first_is_taken() {
        let sites = [site(&[(10, Some(1.0)), (13, Some(0.5))]), site(&[(10, Some(1.0)), (13, Some(0.5))])];
        assert_eq!(spent(&sites, 5), (vec![1, 0], 3));
    }
}
