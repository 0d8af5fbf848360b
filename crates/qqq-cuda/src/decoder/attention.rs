//! Attention over pages: instances of `attention.cuh`, and how a step's queries are cut into tiles.

use qqq_backend::{AttentionKind, BatchPlan, HeadLayout, PAGE, pages_for};

use crate::{Arch, CudaError, DType, KernelType, Result, Source};

/// Head sizes of common models, whose kernels are compiled ahead of time; others are compiled when they are needed.
pub const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];
/// Query rows of a tile of many tokens.
const LONG_ROWS: usize = 64;
/// The same where the products are wgmma's.
const WGMMA_ROWS: usize = 128;
/// Query rows of a tile of few.
const SHORT_ROWS: usize = 16;
/// Fewest keys of a part of a sequence that is cut.
const LEAST_KEYS: usize = PAGE;
/// Most parts of a sequence.
const MOST_PARTS: usize = 64;

/// Template arguments of `AttentionConfig` in `attention.cuh`, or of `WgmmaAttentionConfig` in `wgmma_attention.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionConfig {
    /// Width of a head: a multiple of 16 up to 256.
    pub head_dim: usize,
    /// Warps that share the rows of a tile, 16 each.
    pub warps_m: usize,
    /// Warps that share its keys.
    pub warps_n: usize,
    /// F16 or BF16.
    pub half: DType,
    /// Whether the products are wgmma's (sm_90a; heads of whole lines of 128 bytes).
    pub wgmma: bool,
}

/// What an attention kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKernel {
    /// Attention of tiles of queries over their sequences' pages.
    Tiles,
    /// Joins the parts of tiles that were cut along their keys.
    Join,
}

impl AttentionConfig {
    /// For tiles of many tokens, or of few.
    pub fn new(arch: Arch, head_dim: usize, long: bool, half: DType) -> Self {
        let wgmma = long && arch == Arch::Sm90a && [64, 128, 256].contains(&head_dim);
        let (warps_m, warps_n) = match long {
            true if wgmma => (WGMMA_ROWS / 16, 1),
            true => (LONG_ROWS / 16, 1),
            false => (SHORT_ROWS / 16, if head_dim <= 128 { 4 } else { 2 }),
        };
        Self { head_dim, warps_m, warps_n, half, wgmma }
    }

    /// Those compiled ahead of time.
    pub fn all(arch: Arch) -> Vec<Self> {
        let mut all = Vec::new();
        for head_dim in HEAD_DIMS {
            for half in crate::dtype::HALVES {
                all.extend([true, false].map(|long| Self::new(arch, head_dim, long, half)));
            }
        }
        all
    }

    /// Query rows of a tile.
    pub fn rows(&self) -> usize {
        16 * self.warps_m
    }

    /// Threads of a CTA.
    pub fn threads(&self) -> usize {
        32 * self.warps_m * self.warps_n
    }

    /// Shared memory of a CTA, in bytes.
    pub fn shared_bytes(&self) -> usize {
        let keys = if self.head_dim <= 128 || self.wgmma { 64 } else { 32 };
        (self.rows() + 4 * keys) * (2 * self.head_dim).next_multiple_of(128)
    }

    /// CTAs that an SM with so much shared memory for a CTA runs at once; more than four gain nothing.
    pub fn ctas_per_sm(&self, shared_bytes: usize) -> usize {
        (shared_bytes / self.shared_bytes()).clamp(1, 4)
    }

    /// A kernel's source. Tiles of wgmma are never joined.
    pub fn source(&self, kernel: AttentionKernel) -> Source {
        let Self { head_dim, warps_m, warps_n, half, wgmma } = *self;
        let (short, function_of) = match kernel {
            AttentionKernel::Tiles if wgmma => ("attention", "wgmma_attention"),
            AttentionKernel::Tiles => ("attention", "attention"),
            AttentionKernel::Join => ("attention_join", "join_parts"),
        };
        let (header, config, ctas) = match wgmma {
            true => ("wgmma_attention.cuh", format!("WgmmaAttentionConfig<{head_dim}, "), ", C::kCtas"),
            false => ("attention.cuh", format!("AttentionConfig<{head_dim}, {warps_m}, {warps_n}, "), ""),
        };
        let kind = if wgmma { String::from("wgmma") } else { format!("{warps_m}x{warps_n}") };
        let name = format!("{short}_{}_{head_dim}_{kind}", half.kernel_name());
        Source::new(name, |function| {
            format!(
                "#include \"{header}\"\n\
             using C = {config}{}>;\n\
             // What the host believes.\n\
             static_assert(C::kThreads == {} && C::kRows == {} && C::kSharedBytes == {} && kPage == {PAGE});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads{ctas})\n\
             {function}(const __grid_constant__ AttentionParameters p) {{ overlap_launches(); {function_of}<C>(p); }}\n",
                half == DType::BF16,
                self.threads(),
                self.rows(),
                self.shared_bytes(),
            )
        })
    }

    /// The kernels there are, with the shared memory that a CTA of each has.
    pub fn kernels(&self) -> Vec<(AttentionKernel, usize)> {
        let mut all = vec![(AttentionKernel::Tiles, self.shared_bytes())];
        if !self.wgmma {
            all.push((AttentionKernel::Join, 0));
        }
        all
    }

    /// That there are kernels for these heads.
    ///
    /// # Errors
    /// [`CudaError::Shape`].
    pub fn check(heads: &HeadLayout) -> Result<()> {
        let group = heads.num_heads / heads.num_kv_heads.max(1);
        let divides = heads.num_kv_heads > 0 && heads.num_heads.is_multiple_of(heads.num_kv_heads);
        if !divides || group > LONG_ROWS {
            return Err(CudaError::Shape(format!(
                "{} query heads for {} key heads: attention on the GPU takes up to {LONG_ROWS} query heads for each",
                heads.num_heads, heads.num_kv_heads
            )));
        }
        if heads.head_dim == 0 || !heads.head_dim.is_multiple_of(16) || heads.head_dim > 256 {
            return Err(CudaError::Shape(format!(
                "heads that are {} wide: attention on the GPU takes multiples of 16 up to 256; use the CPU",
                heads.head_dim
            )));
        }
        Ok(())
    }
}

/// `AttentionTile` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttentionTile {
    /// Row of the batch of the first token.
    pub first_row: i32,
    /// Position in its sequence of the first token.
    pub position: i32,
    /// Tokens of the tile.
    pub tokens: i32,
    /// Where the sequence's page table begins.
    pub first_page: i32,
    /// First key, a multiple of [`PAGE`].
    pub first_key: i32,
    /// Behind the last key.
    pub end_key: i32,
    /// Number of the part, or [`WHOLE`].
    pub part: i32,
}

/// A tile's result is no part of another.
pub const WHOLE: i32 = -1;

/// `JoinedTile` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct JoinedTile {
    /// Row of the batch of the first token.
    pub first_row: i32,
    /// Tokens of the tile.
    pub tokens: i32,
    /// Number of the first part.
    pub first_part: i32,
    /// Parts that the tile was cut into.
    pub parts: i32,
}

/// The queries of a step that one kind of tile takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles {
    /// Those with most keys first.
    pub tiles: Vec<AttentionTile>,
    /// Those that are parts of another.
    pub joined: Vec<JoinedTile>,
    /// Number of parts.
    pub parts: usize,
}

/// Parts into which `seen` keys of each of `units` CTAs are cut, so that SMs are busy to the end: as many as give the
/// shortest sequence of rounds, counting a little for each part, which has to be joined. Many rounds even out by themselves.
fn parts(units: usize, seen: usize, ctas: usize) -> usize {
    const JOINING: f64 = 0.007;
    let most = (seen / LEAST_KEYS).min(MOST_PARTS);
    if most < 2 || units >= 4 * ctas {
        return 1;
    }
    let cost = |p: usize| (units * p).div_ceil(ctas) as f64 / p as f64 + JOINING * p as f64;
    (1..=most).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1)
}

/// Cuts a step's queries into tiles: of many tokens, `long_rows` rows each, and of few, of which `ctas` run at once on the
/// device.
///
/// Where each sequence has one token, the number of tiles depends on the number of sequences and on the next power of two
/// above the longest alone, so that the same launches serve many steps.
pub fn cut(plan: &BatchPlan, kind: &AttentionKind, long_rows: usize, ctas: usize) -> [Tiles; 2] {
    let heads = &kind.heads;
    let group = heads.num_heads / heads.num_kv_heads;
    let mut cut = [Tiles::default(), Tiles::default()];
    let short = plan.spans.iter().filter(|s| s.len * group <= SHORT_ROWS).count();
    let longest = plan.spans.iter().map(|s| s.end()).max().unwrap_or(0).next_power_of_two();
    let decoding = plan.spans.iter().all(|s| s.len == 1);
    let mut first_row = 0;
    for span in &plan.spans {
        let is_short = span.len * group <= SHORT_ROWS;
        let most = if is_short { SHORT_ROWS } else { long_rows } / group;
        let tiles = &mut cut[usize::from(is_short)];
        for first in (0..span.len).step_by(most) {
            let tokens = most.min(span.len - first);
            let position = span.start + first;
            let end = position + tokens;
            let first_key =
                kind.window.map_or(0, |window| (position + 1).saturating_sub(window)) / PAGE * PAGE;
            let seen = if decoding { longest.min(kind.window.unwrap_or(longest)) } else { end - first_key };
            let parts = if is_short { parts(short * heads.num_kv_heads, seen, ctas) } else { 1 };
            let keys = pages_for((end - first_key).div_ceil(parts)) * PAGE;
            let part = |part: usize| {
                let (begin, end) =
                    ((first_key + part * keys).min(end), (first_key + (part + 1) * keys).min(end));
                // One without keys is at the beginning, where there is a page.
                let (begin, end) = if begin < end { (begin, end) } else { (0, 0) };
                AttentionTile {
                    first_row: (first_row + first) as i32,
                    position: position as i32,
                    tokens: tokens as i32,
                    first_page: span.first_page as i32,
                    first_key: begin as i32,
                    end_key: end as i32,
                    part: if parts == 1 { WHOLE } else { (tiles.parts + part) as i32 },
                }
            };
            let all: Vec<_> = (0..parts).map(part).collect();
            if parts > 1 {
                tiles.joined.push(JoinedTile {
                    first_row: all[0].first_row,
                    tokens: tokens as i32,
                    first_part: tiles.parts as i32,
                    parts: parts as i32,
                });
                tiles.parts += parts;
            }
            tiles.tiles.extend(all);
        }
        first_row += span.len;
    }
    for tiles in &mut cut {
        tiles.tiles.sort_by_key(|t| std::cmp::Reverse(t.end_key - t.first_key));
    }
    cut
}

/// `AttentionParameters` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionParameters {
    /// Queries: rows of q, k and v heads.
    pub qkv: u64,
    /// Output: rows of query heads.
    pub out: u64,
    /// The layer's keys.
    pub keys: u64,
    /// The layer's values, in pages like the keys.
    pub values: u64,
    /// Page tables of all sequences, int32.
    pub pages: u64,
    /// The [`AttentionTile`]s: each is worked on by one CTA a key head.
    pub tiles: u64,
    /// Tiles that are joined.
    pub joined: u64,
    /// Parts of results.
    pub sums: u64,
    /// Their largest scores and sums of probabilities.
    pub stats: u64,
    /// Query heads of a token.
    pub num_heads: i32,
    /// Key heads of a token, a divisor of the query heads.
    pub num_kv_heads: i32,
    /// Positions that a query sees; 0: all.
    pub window: i32,
    /// Factor of scores, times `log2(e)`.
    pub scale: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(heads: usize, kv: usize, window: Option<usize>) -> AttentionKind {
        AttentionKind::causal(HeadLayout { num_heads: heads, num_kv_heads: kv, head_dim: 64 }, window)
    }

    /// Every query meets every key that it sees, once.
    #[test]
    fn tiles_cover_what_is_seen() {
        for (group, window, long_rows) in [
            (1, None, LONG_ROWS),
            (3, None, WGMMA_ROWS),
            (4, Some(100), WGMMA_ROWS),
            (8, Some(PAGE), LONG_ROWS),
            (40, None, LONG_ROWS),
        ] {
            let kind = kind(2 * group, 2, window);
            let mut plan = BatchPlan::default();
            for (len, start) in [(1, 0), (1, 5000), (2, 700), (700, 0), (65, 130)] {
                let first = plan.pages.len() as u32;
                let pages: Vec<u32> = (first..first + pages_for(start + len) as u32).collect();
                plan.push(&vec![0; len], start, &pages);
            }
            let [long, short] = cut(&plan, &kind, long_rows, 264);
            let mut seen = vec![Vec::new(); plan.rows()];
            for t in long.tiles.iter().chain(&short.tiles) {
                assert_eq!(t.first_key as usize % PAGE, 0);
                for i in 0..t.tokens {
                    seen[(t.first_row + i) as usize].push((t.position + i, t.first_key, t.end_key));
                }
            }
            for rows in seen {
                let position = rows[0].0;
                let mut ranges: Vec<_> = rows.iter().map(|r| (r.1, r.2)).filter(|r| r.0 < r.1).collect();
                ranges.sort_unstable();
                assert!(ranges.windows(2).all(|w| w[0].1 == w[1].0), "{ranges:?}");
                let first = window.map_or(0, |w| (position + 1).saturating_sub(w as i32).max(0));
                assert!(
                    ranges[0].0 <= first && ranges.last().unwrap().1 > position,
                    "{position}: {ranges:?}"
                );
            }
            let parts: i32 = short.joined.iter().map(|j| j.parts).sum();
            assert_eq!(parts as usize, short.parts);
            // Few positions in a window are one part, and so are the rows of many heads.
            assert!(window.is_some() || group > SHORT_ROWS || short.parts > 0);
        }
    }

    #[test]
    fn keys_are_shared_out_as_far_as_it_helps() {
        // A sequence of 32 heads, 16, 64; few keys; more CTAs than there is room for.
        assert_eq!(parts(32, 2048, 396), 12);
        assert_eq!(parts(512, 2048, 396), 3);
        assert_eq!(parts(2048, 2048, 396), 1);
        assert_eq!(parts(32, 255, 396), 1);
        for units in 1..2000 {
            let p = parts(units, 8192, 396);
            assert!(
                (units * p).div_ceil(396) as f64 / p as f64 <= units.div_ceil(396) as f64,
                "{units}: {p}"
            );
        }
    }

    /// While sequences grow by a token each, launches stay the same.
    #[test]
    fn decoding_is_the_same_launch() {
        let kind = kind(4, 2, Some(1000));
        let shape = |lens: [usize; 2]| {
            let mut plan = BatchPlan::default();
            for len in lens {
                let first = plan.pages.len() as u32;
                plan.push(&[0], len - 1, &(first..first + pages_for(len) as u32).collect::<Vec<_>>());
            }
            let [long, short] = cut(&plan, &kind, LONG_ROWS, 264);
            assert!(long.tiles.is_empty());
            (short.tiles.len(), short.joined.len(), short.parts)
        };
        for len in 2050..4096 {
            assert_eq!(shape([len, len / 3]), shape([4096, 1]), "{len}");
        }
        assert_ne!(shape([257, 1]), shape([513, 1]));
    }

    #[test]
    fn every_architecture_has_the_shared_memory() {
        for head_dim in (16..=256).step_by(16) {
            for long in [false, true] {
                for arch in Arch::ALL {
                    let config = AttentionConfig::new(arch, head_dim, long, DType::F16);
                    assert!(config.shared_bytes() <= arch.shared_bytes(), "{arch}: {config:?}");
                }
            }
        }
    }
}
