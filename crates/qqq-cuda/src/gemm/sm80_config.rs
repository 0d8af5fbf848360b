//! The instances of the kernel for every GPU since Ampere (`sm80_gemm.cuh`).

use super::{GemmTypes, SumOrder, Tile};
use crate::{Arch, DType, Source};

/// Template arguments of `Sm80Config` in `sm80_config.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sm80Config {
    /// What the operands are made of.
    pub types: GemmTypes,
    /// Tokens of a tile.
    pub tokens: usize,
    /// How the CTA is made up.
    pub shape: Sm80Shape,
}

/// What an instance's CTA is made of, beside its operands and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sm80Shape {
    /// Warpgroups side by side along the channels.
    pub warpgroups: usize,
    /// Blocks of 64 channels that a warpgroup has.
    pub row_blocks: usize,
    /// Warps of a warpgroup that divide the tokens; the others divide the channels.
    pub token_warps: usize,
    /// Split-K inside the CTA: groups of `warpgroups` that take the k-tiles in turn, each with a pipeline of its own.
    pub cta_split_k: usize,
    /// Stages of a pipeline, a k-tile each: 128 bytes of each token's row.
    pub stages: usize,
    /// CTAs on an SM.
    pub ctas_per_sm: usize,
}

/// One warpgroup with 128 channels.
const SINGLE: Sm80Shape =
    Sm80Shape { warpgroups: 1, row_blocks: 2, token_warps: 1, cta_split_k: 1, stages: 4, ctas_per_sm: 1 };
/// The same with split-K by two.
const SPLIT: Sm80Shape = Sm80Shape { cta_split_k: 2, ..SINGLE };
/// Two warpgroups with 256 channels.
const WIDE: Sm80Shape = Sm80Shape { warpgroups: 2, ..SINGLE };
/// Many tokens: their warps are two by two.
const SQUARE: Sm80Shape = Sm80Shape { token_warps: 2, stages: 3, ..SINGLE };

impl Sm80Config {
    /// Output channels of a CTA's tile.
    pub fn channels(&self) -> usize {
        64 * self.shape.row_blocks * self.shape.warpgroups
    }

    /// Threads of a CTA.
    pub fn threads(&self) -> usize {
        128 * self.shape.warpgroups * self.shape.cta_split_k
    }

    /// Dynamic shared memory of a CTA, in bytes.
    pub fn shared_bytes(&self) -> usize {
        let stage = self.tokens * 128
            + self.shape.warpgroups * self.shape.row_blocks * self.types.weight_tile_bytes();
        let team =
            (self.shape.stages * stage).next_multiple_of(if self.shape.cta_split_k > 1 { 1024 } else { 16 });
        let sums = (self.shape.cta_split_k - 1) * self.channels() * self.tokens * 4;
        self.shape.cta_split_k * team + sums + 16 * self.shape.warpgroups
    }

    /// The instance for a number of tokens on an architecture: the first whose CTAs fit an SM's shared memory together,
    /// of those that were fastest on an H100 (int8 activations), or that have as many bytes under way as these (16-bit
    /// ones), and do not spill.
    pub fn new(types: GemmTypes, tokens: usize, arch: Arch, order: SumOrder) -> Option<Self> {
        let grouped = types.weights().group_size().is_some();
        let int8 = types.activation() == DType::I8;
        let shapes = match order {
            _ if int8 => Self::shapes(tokens, grouped)?,
            SumOrder::Free => Self::shapes16(tokens)?,
            SumOrder::Fixed => Self::ordered_shapes16(tokens)?,
        };
        shapes.iter().map(|shape| Self { types, tokens, shape: *shape }).find(|c| c.fits(arch))
    }

    /// Best first, for int8 activations.
    fn shapes(tokens: usize, grouped: bool) -> Option<&'static [Sm80Shape]> {
        Some(match tokens {
            8 | 16 => &[Sm80Shape { ctas_per_sm: 2, ..SPLIT }, SPLIT, SINGLE],
            32 => &[
                Sm80Shape { stages: 3, ctas_per_sm: 2, ..SPLIT },
                Sm80Shape { stages: 3, ..SPLIT },
                Sm80Shape { stages: 2, ..SPLIT },
            ],
            64 => &[SPLIT, Sm80Shape { stages: 3, ..WIDE }, Sm80Shape { stages: 3, ..SINGLE }],
            128 if grouped => &[Sm80Shape { ctas_per_sm: 2, ..SQUARE }, SQUARE],
            128 => &[Sm80Shape { warpgroups: 2, ..SQUARE }, SQUARE],
            _ => return None,
        })
    }

    /// The same for 16-bit activations, whose weight tiles are half as large.
    fn shapes16(tokens: usize) -> Option<&'static [Sm80Shape]> {
        Some(match tokens {
            8 | 16 => &[Sm80Shape { stages: 5, ctas_per_sm: 2, ..SPLIT }, Sm80Shape { stages: 6, ..SPLIT }],
            32 => &[Sm80Shape { stages: 3, ctas_per_sm: 2, ..SPLIT }, SPLIT],
            64 => &[SPLIT, WIDE],
            _ => return Self::ordered_shapes16(tokens),
        })
    }

    /// Those without split-K, which add the columns in one order. Few tokens get small tiles: a tile is not shared.
    fn ordered_shapes16(tokens: usize) -> Option<&'static [Sm80Shape]> {
        Some(match tokens {
            8 | 16 => &[Sm80Shape { row_blocks: 1, stages: 8, ctas_per_sm: 2, ..SINGLE }],
            32 => &[Sm80Shape { ctas_per_sm: 2, ..SINGLE }],
            64 => &[WIDE],
            128 => &[Sm80Shape { ctas_per_sm: 2, ..SQUARE }, Sm80Shape { warpgroups: 2, ..SQUARE }],
            _ => return None,
        })
    }

    /// Whether an SM holds all the CTAs that it should; each takes 1 KiB more than it asks for.
    fn fits(&self, arch: Arch) -> bool {
        self.shape.ctas_per_sm * (self.shared_bytes() + 1024) <= arch.shared_bytes() + 1024
    }

    /// What the schedule and the launch need to know of it.
    pub fn tile(&self) -> Tile {
        Tile {
            types: self.types,
            tokens: self.tokens,
            channels: self.channels(),
            warpgroups: self.shape.warpgroups,
            cta_split_k: self.shape.cta_split_k,
            multicast: 1,
            cluster_split_k: 1,
            threads: self.threads(),
            shared_bytes: self.shared_bytes(),
            ctas_per_sm: self.shape.ctas_per_sm,
            fits_twice: false,
        }
    }

    /// The kernel's source.
    pub fn source(&self) -> Source {
        let arguments = format!(
            "{}, {}, {}, {}, {}, {}, {}, {}, {}",
            self.types.template_arguments(),
            self.tokens,
            self.shape.warpgroups,
            self.shape.row_blocks,
            self.shape.token_warps,
            self.shape.cta_split_k,
            self.shape.stages,
            self.shape.ctas_per_sm,
            self.types.bfloat(),
        );
        let (operands, output) = self.types.short_names();
        let name = format!(
            "sm80_gemm_{operands}_{}x{}x{}x{}x{}_{}stages_{}_{output}",
            self.tokens,
            self.shape.warpgroups,
            self.shape.row_blocks,
            self.shape.token_warps,
            self.shape.cta_split_k,
            self.shape.stages,
            self.shape.ctas_per_sm,
        );
        Source::new(name, |function| {
            format!(
                "#include \"sm80_gemm.cuh\"\n\
             using C = Sm80Config<{arguments}>;\n\
             // What the host believes.\n\
             static_assert(C::kSharedBytes == {} && C::kThreads == {});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, C::kCtasPerSm)\n\
             {function}(const __grid_constant__ Sm80Parameters p) {{ sm80_gemm<C>(p); }}\n",
                self.shared_bytes(),
                self.threads(),
            )
        })
    }
}
