//! Cached keys and values.
//!
//! A slot grows by chunks of [`CHUNK`] positions, which never move. Within a chunk, every key/value
//! head has its keys, then its values. Keys lie in blocks of 32 positions, `[head_dim][32]`: the form in which
//! the tile kernel takes `K^T`, both for one query and for many. Values are `[position][value_stride]`.
//!
//! A cache of [`KvDType::F16`] rounds to float16 what float16 can stand for. The keys (or values) of a head at a position
//! that it cannot ([`fits`]) stay as they are, and their chunk becomes one of float32, in which all others keep their rounded
//! values: what the cache holds of a position does not depend on its neighbours, nor on what was appended together.

use std::{
    mem::size_of,
    sync::atomic::{AtomicBool, Ordering},
};

use half::f16;

use super::{
    element::Element,
    shared::SharedMut,
    simd::{SimdLevel, multiversion},
    tile::NR,
};
use crate::{KvDType, KvLayout};

/// Positions of a chunk.
pub(crate) const CHUNK: usize = 128;
const _: () = assert!(CHUNK.is_multiple_of(NR));

/// Keys from here on stay float32: float16 numbers are half a unit apart, and the softmax turns an error of its scores,
/// however small beside them, into as large a relative error of the weights.
const LARGEST_KEY: f32 = 512.0;
/// The largest finite float16. Values are averaged, so that their relative error counts, which is the same for all sizes.
const LARGEST_VALUE: f32 = 65504.0;
/// The least float16 with all digits. A head whose largest component lies below it would lose some, or all.
const SMALLEST: f32 = 6.103_515_6e-5;

/// Keys and values of several sequences (slots), all layers.
#[derive(Debug)]
pub struct CpuKvCache {
    layout: KvLayout,
    slots: Vec<Option<Vec<LayerCache>>>,
}

/// One layer of one sequence.
#[derive(Debug, Default)]
pub(crate) struct LayerCache {
    len: usize,
    chunks: Vec<Chunk>,
}

/// Memory of [`CHUNK`] positions, all heads. In a cache of float16, a chunk of float32 is one that holds something that
/// does not fit.
#[derive(Debug)]
pub(crate) enum Chunk {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
}

/// Where things are in a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkLayout {
    /// Width of a head.
    pub head_dim: usize,
    /// Distance of two positions' values: `head_dim` rounded up to whole tiles (zeros beyond it).
    pub value_stride: usize,
    /// Values of a head.
    pub head_size: usize,
}

impl ChunkLayout {
    pub(crate) fn new(head_dim: usize) -> Self {
        let value_stride = head_dim.next_multiple_of(NR);
        Self { head_dim, value_stride, head_size: CHUNK * (head_dim + value_stride) }
    }

    /// Values of a head's keys.
    pub(crate) fn keys_size(&self) -> usize {
        CHUNK * self.head_dim
    }
}

impl CpuKvCache {
    pub(crate) fn new(layout: KvLayout) -> Self {
        Self { layout, slots: Vec::new() }
    }

    /// Shape and element type.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(crate) fn chunk_layout(&self) -> ChunkLayout {
        ChunkLayout::new(self.layout.head_dim)
    }

    pub(crate) fn add_slot(&mut self) -> usize {
        let layers = (0..self.layout.num_layers).map(|_| LayerCache::default()).collect();
        match self.slots.iter().position(Option::is_none) {
            Some(slot) => {
                self.slots[slot] = Some(layers);
                slot
            }
            None => {
                self.slots.push(Some(layers));
                self.slots.len() - 1
            }
        }
    }

    pub(crate) fn remove_slot(&mut self, slot: usize) {
        assert!(self.slots[slot].take().is_some(), "KV slot {slot} is not in use");
    }

    pub(crate) fn truncate(&mut self, slot: usize, len: usize) {
        for layer in self.slots[slot].as_mut().expect("a KV slot in use") {
            layer.len = layer.len.min(len);
            layer.chunks.truncate(layer.len.div_ceil(CHUNK));
        }
    }

    pub(crate) fn layer(&self, slot: usize, layer: usize) -> &LayerCache {
        &self.slots[slot].as_ref().expect("a KV slot in use")[layer]
    }

    /// Makes room for positions `start..start + len`, which the caller then writes; what the layer held
    /// from `start` on is gone.
    pub(crate) fn extend(&mut self, slot: usize, layer: usize, start: usize, len: usize) {
        let size = self.chunk_layout().head_size * self.layout.num_kv_heads;
        let dtype = self.layout.dtype;
        let cache = &mut self.slots[slot].as_mut().expect("a KV slot in use")[layer];
        assert!(start <= cache.len, "KV slot {slot} holds {} positions, not {start}", cache.len);
        cache.len = start + len;
        cache.chunks.resize_with(cache.len.div_ceil(CHUNK), || match dtype {
            KvDType::F32 => Chunk::F32(vec![0.0; size].into_boxed_slice()),
            KvDType::F16 => Chunk::F16(vec![f16::ZERO; size].into_boxed_slice()),
        });
    }

    /// Writable views of a layer's chunks.
    pub(crate) fn writers(&mut self, slot: usize, layer: usize) -> Vec<ChunkWriter<'_>> {
        let rounds = self.layout.dtype == KvDType::F16;
        let cache = &mut self.slots[slot].as_mut().expect("a KV slot in use")[layer];
        cache
            .chunks
            .iter_mut()
            .map(|chunk| match chunk {
                Chunk::F32(data) => {
                    let data = SharedMut::new(data);
                    if rounds { ChunkWriter::Mixed(data) } else { ChunkWriter::F32(data) }
                }
                Chunk::F16(data) => ChunkWriter::F16(SharedMut::new(data), AtomicBool::new(false)),
            })
            .collect()
    }

    /// Makes a chunk of float16 one of float32, of the same values.
    pub(crate) fn widen_chunk(&mut self, level: SimdLevel, slot: usize, layer: usize, chunk: usize) {
        let chunk = &mut self.slots[slot].as_mut().expect("a KV slot in use")[layer].chunks[chunk];
        if let Chunk::F16(data) = chunk {
            let mut wide = vec![0.0; data.len()].into_boxed_slice();
            f16::widen(level, data, &mut wide);
            *chunk = Chunk::F32(wide);
        }
    }

    /// Bytes that the cache holds.
    pub fn bytes(&self) -> usize {
        let chunks = self.slots.iter().flatten().flatten().flat_map(|layer| &layer.chunks);
        chunks
            .map(|chunk| match chunk {
                Chunk::F32(data) => data.len() * size_of::<f32>(),
                Chunk::F16(data) => data.len() * size_of::<f16>(),
            })
            .sum()
    }
}

impl LayerCache {
    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Keys and values of a head in chunk `index`, the first `positions` of them, as f32: in place, or
    /// widened into `scratch` (of `layout.head_size` values). Keys come in whole blocks of 32
    /// positions, of which those beyond `positions` are unspecified.
    pub(crate) fn head<'a>(
        &'a self,
        level: SimdLevel,
        layout: ChunkLayout,
        index: usize,
        head: usize,
        positions: usize,
        scratch: &'a mut [f32],
    ) -> (&'a [f32], &'a [f32]) {
        let range = head * layout.head_size..(head + 1) * layout.head_size;
        let keys = positions.next_multiple_of(NR) * layout.head_dim;
        let values = positions * layout.value_stride;
        match &self.chunks[index] {
            Chunk::F32(data) => {
                let (k, v) = data[range].split_at(layout.keys_size());
                (&k[..keys], &v[..values])
            }
            Chunk::F16(data) => {
                let (k, v) = data[range].split_at(layout.keys_size());
                let (wide_k, wide_v) = scratch.split_at_mut(layout.keys_size());
                f16::widen(level, &k[..keys], &mut wide_k[..keys]);
                f16::widen(level, &v[..values], &mut wide_v[..values]);
                (&wide_k[..keys], &wide_v[..values])
            }
        }
    }
}

multiversion! {
    /// Bits of the largest magnitude: they are in the order of the numbers, infinities and NaNs above all.
    fn largest_bits(x: &[f32]) -> u32 {
        x.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff))
    }
}

/// Whether float16 can stand for the keys or values of a head at a position: no component is beyond `largest` (or not
/// a number), and their largest is not below the numbers with all digits, unless all are 0.
fn fits(level: SimdLevel, head: &[f32], largest: f32) -> bool {
    let found = f32::from_bits(largest_bits(level, head));
    found == 0.0 || (SMALLEST..=largest).contains(&found)
}

/// A chunk that several jobs write, each its own positions.
pub(crate) enum ChunkWriter<'a> {
    /// Of a cache of float32.
    F32(SharedMut<'a, f32>),
    /// Of float16. The flag is set when something does not fit: widen the chunk and write the positions again.
    F16(SharedMut<'a, f16>, AtomicBool),
    /// Of a cache of float16, widened.
    Mixed(SharedMut<'a, f32>),
}

/// Keys and values of a head at consecutive positions.
#[derive(Clone, Copy)]
pub(crate) struct NewPositions<'a> {
    pub head: usize,
    /// First position, counted in the chunk.
    pub first: usize,
    /// Number of positions, all within one block of 32.
    pub count: usize,
    /// Keys: those of the first position, `stride` values further those of the next.
    pub keys: &'a [f32],
    /// Values, likewise.
    pub values: &'a [f32],
    pub stride: usize,
}

impl NewPositions<'_> {
    /// Whether the keys of each position fit float16, and the values.
    fn fit(&self, level: SimdLevel, head_dim: usize) -> [[bool; NR]; 2] {
        let mut fit = [[false; NR]; 2];
        let parts = [(self.keys, LARGEST_KEY.next_down()), (self.values, LARGEST_VALUE)];
        for (fit, (data, largest)) in fit.iter_mut().zip(parts) {
            for (fit, row) in fit.iter_mut().zip(data.chunks(self.stride)).take(self.count) {
                *fit = fits(level, &row[..head_dim], largest);
            }
        }
        fit
    }
}

impl ChunkWriter<'_> {
    /// Writes positions.
    ///
    /// # Safety
    /// No other job may use these positions of the head.
    pub(crate) unsafe fn write(&self, level: SimdLevel, layout: ChunkLayout, new: NewPositions) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                ChunkWriter::F32(data) => write(data, [|_, v| v; 2], layout, new),
                ChunkWriter::F16(data, overflow) => {
                    let fit = new.fit(level, layout.head_dim);
                    if fit.iter().any(|fit| !fit[..new.count].iter().all(|fit| *fit)) {
                        overflow.store(true, Ordering::Relaxed);
                    }
                    write(data, [|_, v| f16::from_f32(v); 2], layout, new);
                }
                ChunkWriter::Mixed(data) => {
                    let fit = new.fit(level, layout.head_dim);
                    let stored = |fit: [bool; NR]| {
                        move |i: usize, v: f32| if fit[i] { f16::from_f32(v).to_f32() } else { v }
                    };
                    write(data, fit.map(stored), layout, new);
                }
            }
        }
    }

    /// Whether something that was written did not fit.
    pub(crate) fn overflowed(&self) -> bool {
        matches!(self, ChunkWriter::F16(_, overflow) if overflow.load(Ordering::Relaxed))
    }
}

/// Writes positions: `narrow`, of keys and of values, makes of a position (counted from the first) and a component what is
/// stored.
unsafe fn write<T>(
    data: &SharedMut<T>,
    narrow: [impl Fn(usize, f32) -> T; 2],
    layout: ChunkLayout,
    new: NewPositions,
) {
    let [narrow_key, narrow_value] = narrow;
    let (block, lane) = (new.first / NR, new.first % NR);
    assert!(lane + new.count <= NR && new.first + new.count <= CHUNK);
    let start = new.head * layout.head_size;
    for d in 0..layout.head_dim {
        // One component of all positions: their part of a line of the block.
        let at = start + (block * layout.head_dim + d) * NR + lane;
        // SAFETY: the caller's promise.
        let lanes = unsafe { data.slice(at..at + new.count) };
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = narrow_key(i, new.keys[i * new.stride + d]);
        }
    }
    for i in 0..new.count {
        let at = start + layout.keys_size() + (new.first + i) * layout.value_stride;
        // SAFETY: the caller's promise.
        let row = unsafe { data.slice(at..at + layout.head_dim) };
        for (v, &x) in row.iter_mut().zip(&new.values[i * new.stride..]) {
            *v = narrow_value(i, x);
        }
    }
}
