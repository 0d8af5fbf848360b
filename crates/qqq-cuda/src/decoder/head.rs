//! The outputs of an output head, the largest of them, and draws: instances of `head.cuh`.

use crate::dtype::HALVES;
use crate::{DType, KernelType, Source};

/// A kernel of `head.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadKernel {
    /// The int8 copy of weights of this 16-bit type.
    Copy(DType),
    /// The digits of an input of this 16-bit type.
    Input(DType),
    /// Bounds of all outputs, of eight rows times this.
    Bounds(usize),
    /// Which outputs may be among the largest.
    Candidates,
    /// These outputs, of weights of this 16-bit type.
    Outputs(DType),
    /// The largest of them.
    Largest,
    /// All outputs of int8 weights, in tiles of eight rows times this.
    Logits(usize),
    /// A column, drawn.
    Draw,
}

/// Multiples of eight rows that there are products for.
pub const TILES: [usize; 3] = [1, 2, 4];
/// Rows of a tile.
pub const TILE_ROWS: usize = 8;
/// Channels come in multiples of this.
pub const CHUNK: usize = 64;
/// Columns whose bounds are looked at together.
pub const BLOCK_COLUMNS: usize = 32;
/// Candidates of a row; with more, all of its outputs are computed.
pub const CANDIDATES: usize = 4096;
/// Most columns of a row that is drawn from: 32 in a chunk for each of 1024 chunks, 32 times.
pub const MOST_DRAWN_COLUMNS: usize = 1 << 20;

/// Warps of a CTA that works on the head.
const WARPS: usize = 4;
/// Threads of a CTA that makes digits.
const INPUT_THREADS: usize = 256;
/// Threads of a CTA that looks for the largest of a row.
const ROW_THREADS: usize = 1024;
/// Threads of a CTA that draws from a row.
const DRAW_THREADS: usize = 512;
/// CTAs of [`HeadKernel::Outputs`], which share what there is.
const OUTPUT_CTAS: usize = 512;

impl HeadKernel {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = vec![HeadKernel::Candidates, HeadKernel::Largest, HeadKernel::Draw];
        all.extend(TILES.map(HeadKernel::Bounds));
        all.extend(TILES.map(HeadKernel::Logits));
        for half in HALVES {
            all.extend([HeadKernel::Copy(half), HeadKernel::Input(half), HeadKernel::Outputs(half)]);
        }
        all
    }

    /// The kernel's source.
    pub fn source(self) -> Source {
        let typed = |name: &str, half: DType| {
            (format!("{name}_{}", half.kernel_name()), format!("{name}<{}>", half == DType::BF16))
        };
        let plain = |name: &str| (name.to_owned(), name.to_owned());
        let (name, call) = match self {
            HeadKernel::Copy(half) => typed("copy_head", half),
            HeadKernel::Input(half) => typed("head_input", half),
            HeadKernel::Bounds(tiles) => {
                (format!("head_bounds_{}", TILE_ROWS * tiles), format!("head_bounds<{tiles}>"))
            }
            HeadKernel::Logits(tiles) => {
                (format!("head_logits_{}", TILE_ROWS * tiles), format!("head_logits<{tiles}>"))
            }
            HeadKernel::Candidates => plain("head_candidates"),
            HeadKernel::Outputs(half) => typed("head_outputs", half),
            HeadKernel::Largest => plain("head_largest"),
            HeadKernel::Draw => plain("draw"),
        };
        let parameters = match self {
            HeadKernel::Copy(_) => "HeadCopyParameters",
            HeadKernel::Logits(_) => "HeadLogitsParameters",
            HeadKernel::Draw => "DrawParameters",
            _ => "HeadParameters",
        };
        Source::new(name, |function| {
            format!(
                "#include \"head.cuh\"\n\
             // What the host believes.\n\
             static_assert(kHeadWarps == {WARPS} && kHeadColumns == {BLOCK_COLUMNS} && kHeadChunk == {CHUNK});\n\
             static_assert(kHeadCandidates == {CANDIDATES} && kHeadInputThreads == {INPUT_THREADS});\n\
             static_assert(kTopThreads == {ROW_THREADS} && kDrawThreads == {DRAW_THREADS});\n\
             static_assert(kDrawChunks * kDrawChunks == {MOST_DRAWN_COLUMNS});\n\
             static_assert(sizeof(HeadColumn) == {} && sizeof(HeadRow) == {} && sizeof(Drawn) == {});\n\
             // Without a number of CTAs ptxas spills some instances to fit one more.\n\
             extern \"C\" __global__ void __launch_bounds__({}, 1)\n\
             {function}(const __grid_constant__ {parameters} p) {{ overlap_launches(); {call}(p); }}\n",
                size_of::<HeadColumn>(),
                HEAD_ROW_BYTES,
                size_of::<Drawn>(),
                self.threads(),
            )
        })
    }

    /// Threads of a CTA.
    pub fn threads(self) -> usize {
        match self {
            HeadKernel::Copy(_) | HeadKernel::Bounds(_) | HeadKernel::Outputs(_) | HeadKernel::Logits(_) => {
                32 * WARPS
            }
            HeadKernel::Input(_) => INPUT_THREADS,
            HeadKernel::Candidates | HeadKernel::Largest => ROW_THREADS,
            HeadKernel::Draw => DRAW_THREADS,
        }
    }

    /// CTAs for `rows` of the input and `columns` of the head.
    pub fn ctas(self, rows: usize, columns: usize) -> usize {
        match self {
            HeadKernel::Copy(_) => columns.div_ceil(WARPS),
            HeadKernel::Bounds(_) => columns.div_ceil(BLOCK_COLUMNS),
            HeadKernel::Logits(tiles) => columns.div_ceil(BLOCK_COLUMNS) * rows.div_ceil(TILE_ROWS * tiles),
            HeadKernel::Outputs(_) => OUTPUT_CTAS,
            HeadKernel::Input(_) | HeadKernel::Candidates | HeadKernel::Largest | HeadKernel::Draw => rows,
        }
    }
}

/// The multiple of eight rows whose product takes so many rows; `None` beyond the largest.
pub fn tiles(rows: usize) -> Option<usize> {
    TILES.into_iter().find(|tiles| rows <= TILE_ROWS * tiles)
}

/// Bytes of `HeadRow` of `head.cuh`.
pub const HEAD_ROW_BYTES: usize = 16;

/// `HeadColumn` of `head.cuh`: what is known of a column of the head.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HeadColumn {
    /// Of its codes.
    pub scale: f32,
    /// An output's error is at most this times the norm of the input, and [`length`](Self::length) times that of the error of
    /// the input.
    pub radius: f32,
    /// Norm of the scaled codes.
    pub length: f32,
    /// Norm of the weights.
    pub norm: f32,
}

/// `Drawn` of `draws.cuh`: what was drawn of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Drawn {
    /// The sum of `exp((y - largest) / temperature)`.
    pub total: f64,
    /// The largest element.
    pub largest: f32,
    /// Its number; -1 where an element is not finite.
    pub column: i32,
}

/// `HeadCopyParameters` of `head.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeadCopyParameters {
    /// `n x k` of the 16-bit type.
    pub weights: u64,
    /// Output, `n x pitch` int8.
    pub codes: u64,
    /// Output, `n` [`HeadColumn`].
    pub columns: u64,
    /// Columns of the head.
    pub n: i32,
    /// Channels.
    pub k: i32,
    /// Codes of a column, a multiple of [`CHUNK`].
    pub pitch: i32,
}

/// `HeadParameters` of `head.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeadParameters {
    /// `n x k` of the 16-bit type.
    pub weights: u64,
    /// `n x pitch` int8.
    pub codes: u64,
    /// `n` [`HeadColumn`].
    pub columns: u64,
    /// `m x k` of the 16-bit type.
    pub x: u64,
    /// High digits, with room for as many rows as the tiles have, `pitch` int8 each.
    pub high: u64,
    /// Low digits alike.
    pub low: u64,
    /// `m` times [`HEAD_ROW_BYTES`].
    pub rows: u64,
    /// `m x n` float32.
    pub outputs: u64,
    /// `m x blocks` float32.
    pub lows: u64,
    /// `m x blocks` float32.
    pub highs: u64,
    /// `m x` [`CANDIDATES`] int32.
    pub candidates: u64,
    /// `m` int32.
    pub counts: u64,
    /// Output, `m x count`: a column in the low half of a word, the element's bits in the high one.
    pub out: u64,
    /// Rows.
    pub m: i32,
    /// Columns of the head.
    pub n: i32,
    /// Channels.
    pub k: i32,
    /// Digits of a row, a multiple of [`CHUNK`].
    pub pitch: i32,
    /// Blocks of [`BLOCK_COLUMNS`] columns.
    pub blocks: i32,
    /// How many of the largest.
    pub count: i32,
    /// Largest norm of a column.
    pub largest_norm: f32,
}

/// `HeadLogitsParameters` of `head.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeadLogitsParameters {
    /// `n x pitch` int8.
    pub codes: u64,
    /// `n` float32.
    pub scales: u64,
    /// `m x k` int8.
    pub x: u64,
    /// `m` float32.
    pub x_scales: u64,
    /// Output, `m x n` float32.
    pub outputs: u64,
    /// Rows.
    pub m: i32,
    /// Columns of the head.
    pub n: i32,
    /// Channels, a multiple of 16.
    pub k: i32,
    /// Codes of a column, a multiple of [`CHUNK`].
    pub pitch: i32,
}

/// `DrawParameters` of `draws.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DrawParameters {
    /// `rows x columns` float32.
    pub logits: u64,
    /// `rows` float64 in [0, 1).
    pub chances: u64,
    /// Output, `rows` [`Drawn`].
    pub out: u64,
    /// Rows.
    pub rows: i32,
    /// Elements of a row.
    pub columns: i32,
    /// Above 0.
    pub temperature: f32,
}
