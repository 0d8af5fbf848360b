//! How a budget is spent: by what is saved for each byte.

use qqq_formats::CodeBits;

use super::SiteChoice;

/// Gives 8 bits to sites, those first that save most for each byte, while `room` bytes are left; what does not fit is passed
/// over, and smaller ones may still fit. With more room no less is spent: the first site of the order that only the larger
/// one takes is by itself more than all that the smaller one can hold.
pub(super) fn spend(sites: &mut [SiteChoice], mut room: u64) {
    let extra = |site: &SiteChoice| site.bytes_8.saturating_sub(site.bytes_4);
    let worth = |site: &SiteChoice| site.gain() / extra(site).max(1) as f64;
    let mut order: Vec<usize> = (0..sites.len()).collect();
    // Stable: of equals the first in the order of computation.
    order.sort_by(|&a, &b| worth(&sites[b]).total_cmp(&worth(&sites[a])));
    for at in order {
        let site = &mut sites[at];
        site.bits = CodeBits::Four;
        if let Some(left) = room.checked_sub(extra(site)) {
            site.bits = CodeBits::Eight;
            room = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(extra: u64, four: Option<f64>, eight: Option<f64>) -> SiteChoice {
        SiteChoice {
            name: String::new(),
            weights: 0,
            bytes_4: 10,
            bytes_8: 10 + extra,
            kl_divergence_4: four,
            kl_divergence_8: eight,
            bits: CodeBits::Four,
        }
    }

    fn spent(sites: &[SiteChoice], room: u64) -> (Vec<usize>, u64) {
        let mut sites = sites.to_vec();
        spend(&mut sites, room);
        let eight: Vec<usize> = (0..sites.len()).filter(|&i| sites[i].bits == CodeBits::Eight).collect();
        let sum = eight.iter().map(|&i| sites[i].bytes_8 - sites[i].bytes_4).sum();
        (eight, sum)
    }

    #[test]
    fn what_saves_most_for_its_bytes_comes_first() {
        // Worth 0.05, 0.06, 0.1 and, being broken in 4 bits, more than anything.
        let sites = [
            site(20, Some(1.1), Some(0.1)),
            site(10, Some(0.6), Some(0.0)),
            site(1, Some(0.1), Some(0.0)),
            site(5, None, Some(0.0)),
        ];
        assert_eq!(spent(&sites, 0), (vec![], 0));
        assert_eq!(spent(&sites, 5), (vec![3], 5));
        assert_eq!(spent(&sites, 16), (vec![1, 2, 3], 16));
        // The third does not fit, a worse one does.
        assert_eq!(spent(&sites, 9), (vec![2, 3], 6));
        assert_eq!(spent(&sites, 36), (vec![0, 1, 2, 3], 36));
        assert_eq!(spent(&sites, 35), (vec![1, 2, 3], 16));
    }

    #[test]
    fn more_room_never_spends_less() {
        let extras = [7, 3, 11, 2, 5, 13, 1, 6, 4, 9];
        let sites: Vec<SiteChoice> = extras
            .iter()
            .enumerate()
            .map(|(i, &extra)| site(extra, Some((i * 7919 % 13) as f64), Some(0.0)))
            .collect();
        let sums: Vec<u64> = (0..=61).map(|room| spent(&sites, room).1).collect();
        assert!(sums.is_sorted() && sums[61] == 61, "{sums:?}");
    }

    #[test]
    fn of_equals_the_first_is_taken() {
        let sites = [site(3, Some(1.0), Some(0.5)), site(3, Some(1.0), Some(0.5))];
        assert_eq!(spent(&sites, 5), (vec![0], 3));
    }
}
