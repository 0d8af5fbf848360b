//! Pages of keys and values.
//!
//! A page holds [`PAGE`] positions of one sequence, in every layer. Within a layer's page, every key/value
//! head has its keys, then its values. Keys lie in blocks of 32 positions, `[head_dim][32]`: the form in which
//! the tile kernel takes `K^T`, both for one query and for many. Values are `[position][value_stride]`.
//! The memory of a layer's page is taken when it is first written.
//!
//! A pool of [`KvDType::F16`] rounds to float16 what float16 can stand for. The keys (or values) of a head at a position
//! that it cannot ([`fits`]) stay as they are, and their page becomes one of float32, in which all others keep their rounded
//! values: what the pool holds of a position does not depend on its neighbours, nor on what was appended together.

use std::{
    mem::size_of,
    sync::atomic::{AtomicBool, Ordering},
};

use half::f16;

use super::{element::Element, tile::NR};
use crate::{
    BackendError, KvDType, KvLayout, PAGE, Result,
    shared::SharedMut,
    simd::{SimdLevel, multiversion},
};

const _: () = assert!(PAGE.is_multiple_of(NR));

/// Keys from here on stay float32: float16 numbers are half a unit apart, and the softmax turns an error of its scores,
/// however small beside them, into as large a relative error of the weights.
const LARGEST_KEY: f32 = 512.0;
/// The largest finite float16. Values are averaged, so that their relative error counts, which is the same for all sizes.
const LARGEST_VALUE: f32 = 65504.0;
/// The least float16 with all digits. A head whose largest component lies below it would lose some, or all.
const SMALLEST: f32 = 6.103_515_6e-5;

/// Keys and values of all sequences, all layers.
#[derive(Debug)]
pub struct CpuKvPool {
    layout: KvLayout,
    /// By layer, then by page; `None` where nothing was written yet.
    layers: Vec<Vec<Option<Page>>>,
}

/// Memory of [`PAGE`] positions of a layer, all heads. In a pool of float16, a page of float32 is one that holds something
/// that does not fit.
#[derive(Debug)]
pub(crate) enum Page {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
}

/// A sequence's pages in a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerPages<'a> {
    pages: &'a [Option<Page>],
    table: &'a [u32],
}

/// Where things are in a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageLayout {
    /// Width of a head.
    pub head_dim: usize,
    /// Distance of two positions' values: `head_dim` rounded up to whole tiles (zeros beyond it).
    pub value_stride: usize,
    /// Values of a head.
    pub head_size: usize,
}

impl PageLayout {
    pub(crate) fn new(head_dim: usize) -> Self {
        let value_stride = head_dim.next_multiple_of(NR);
        Self { head_dim, value_stride, head_size: PAGE * (head_dim + value_stride) }
    }

    /// Values of a head's keys.
    pub(crate) fn keys_size(&self) -> usize {
        PAGE * self.head_dim
    }
}

impl CpuKvPool {
    pub(crate) fn new(layout: KvLayout, pages: usize) -> Self {
        let layer = || (0..pages).map(|_| None).collect();
        Self { layout, layers: (0..layout.num_layers).map(|_| layer()).collect() }
    }

    /// Room for as many pages; memory is taken when they are written.
    pub(crate) fn grow(&mut self, pages: usize) {
        for layer in self.layers.iter_mut().filter(|layer| layer.len() < pages) {
            layer.resize_with(pages, || None);
        }
    }

    /// Shape and element type.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(crate) fn page_layout(&self) -> PageLayout {
        PageLayout::new(self.layout.head_dim)
    }

    /// Checks that a layer and pages are there.
    ///
    /// # Errors
    /// The layer or a page is beyond the pool.
    pub(crate) fn check(&self, layer: usize, pages: &[u32]) -> Result<()> {
        let Some(all) = self.layers.get(layer) else {
            return Err(BackendError::Batch(format!("the KV pool has no layer {layer}")));
        };
        match pages.iter().find(|&&page| page as usize >= all.len()) {
            Some(page) => {
                Err(BackendError::Batch(format!("the KV pool has no page {page}, only {}", all.len())))
            }
            None => Ok(()),
        }
    }

    /// A sequence's pages.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); a page that was never written.
    pub(crate) fn pages<'a>(&'a self, layer: usize, table: &'a [u32]) -> Result<LayerPages<'a>> {
        self.check(layer, table)?;
        let pages = &self.layers[layer];
        match table.iter().find(|&&page| pages[page as usize].is_none()) {
            Some(page) => Err(BackendError::Batch(format!("page {page} of layer {layer} was never written"))),
            None => Ok(LayerPages { pages, table }),
        }
    }

    /// Takes pages out to be written; `from` is the position in the first of them at which writing begins. They must be put
    /// [back](Self::put_back). All must have been [checked](Self::check).
    pub(crate) fn take(&mut self, layer: usize, table: &[u32], from: usize) -> Vec<Page> {
        let size = self.page_layout().head_size * self.layout.num_kv_heads;
        let dtype = self.layout.dtype;
        let pages = &mut self.layers[layer];
        let take = |(i, &page): (usize, &u32)| match (pages[page as usize].take(), dtype) {
            // Written from its start, a page keeps nothing of what made it wide.
            (Some(Page::F32(_)), KvDType::F16) if i > 0 || from == 0 => Page::f16(size),
            (Some(page), _) => page,
            (None, KvDType::F32) => Page::F32(vec![0.0; size].into_boxed_slice()),
            (None, KvDType::F16) => Page::f16(size),
        };
        table.iter().enumerate().map(take).collect()
    }

    /// Puts pages back.
    pub(crate) fn put_back(&mut self, layer: usize, table: &[u32], pages: Vec<Page>) {
        for (&at, page) in table.iter().zip(pages) {
            self.layers[layer][at as usize] = Some(page);
        }
    }

    /// Bytes that the pool's pages take.
    pub fn bytes(&self) -> usize {
        let pages = self.layers.iter().flatten().flatten();
        pages
            .map(|page| match page {
                Page::F32(data) => data.len() * size_of::<f32>(),
                Page::F16(data) => data.len() * size_of::<f16>(),
            })
            .sum()
    }
}

impl Page {
    fn f16(size: usize) -> Self {
        Self::F16(vec![f16::ZERO; size].into_boxed_slice())
    }

    /// Writes to it. `rounds`: whether it belongs to a pool of float16.
    pub(crate) fn writer(&mut self, rounds: bool) -> PageWriter<'_> {
        match self {
            Page::F32(data) => {
                let data = SharedMut::new(data);
                if rounds { PageWriter::Mixed(data) } else { PageWriter::F32(data) }
            }
            Page::F16(data) => PageWriter::F16(SharedMut::new(data), AtomicBool::new(false)),
        }
    }

    /// Makes a page of float16 one of float32, of the same values.
    pub(crate) fn widen(&mut self, level: SimdLevel) {
        if let Page::F16(data) = self {
            let mut wide = vec![0.0; data.len()].into_boxed_slice();
            f16::widen(level, data, &mut wide);
            *self = Page::F32(wide);
        }
    }
}

impl LayerPages<'_> {
    /// Keys and values of a head in the sequence's page `index`, the first `positions` of them, as f32: in place, or
    /// widened into `scratch` (of `layout.head_size` values). Keys come in whole blocks of 32
    /// positions, of which those beyond `positions` are unspecified.
    pub(crate) fn head<'a>(
        &'a self,
        level: SimdLevel,
        layout: PageLayout,
        index: usize,
        head: usize,
        positions: usize,
        scratch: &'a mut [f32],
    ) -> (&'a [f32], &'a [f32]) {
        let range = head * layout.head_size..(head + 1) * layout.head_size;
        let keys = positions.next_multiple_of(NR) * layout.head_dim;
        let values = positions * layout.value_stride;
        match self.pages[self.table[index] as usize].as_ref().expect("a page that was written") {
            Page::F32(data) => {
                let (k, v) = data[range].split_at(layout.keys_size());
                (&k[..keys], &v[..values])
            }
            Page::F16(data) => {
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

/// A page that several jobs write, each its own positions.
pub(crate) enum PageWriter<'a> {
    /// Of a pool of float32.
    F32(SharedMut<'a, f32>),
    /// Of float16. The flag is set when something does not fit: widen the page and write the positions again.
    F16(SharedMut<'a, f16>, AtomicBool),
    /// Of a pool of float16, widened.
    Mixed(SharedMut<'a, f32>),
}

/// Keys and values of a head at consecutive positions.
#[derive(Clone, Copy)]
pub(crate) struct NewPositions<'a> {
    pub head: usize,
    /// First position, counted in the page.
    pub first: usize,
    /// Number of positions, all within one block of 32.
    pub count: usize,
    /// Keys: those of the first position, `stride` values further those of the next.
    pub keys: &'a [f32],
    /// Values, with the same stride as the keys.
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

impl PageWriter<'_> {
    /// Writes positions.
    ///
    /// # Safety
    /// No other job may use these positions of the head.
    pub(crate) unsafe fn write(&self, level: SimdLevel, layout: PageLayout, new: NewPositions) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                PageWriter::F32(data) => write(data, [|_, v| v; 2], layout, new),
                PageWriter::F16(data, overflow) => {
                    let fit = new.fit(level, layout.head_dim);
                    if fit.iter().any(|fit| !fit[..new.count].iter().all(|fit| *fit)) {
                        overflow.store(true, Ordering::Relaxed);
                    }
                    write(data, [|_, v| f16::from_f32(v); 2], layout, new);
                }
                PageWriter::Mixed(data) => {
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
        matches!(self, PageWriter::F16(_, overflow) if overflow.load(Ordering::Relaxed))
    }
}

/// Writes positions: `narrow`, of keys and of values, makes of a position (counted from the first) and a component what is
/// stored.
unsafe fn write<T>(
    data: &SharedMut<T>,
    narrow: [impl Fn(usize, f32) -> T; 2],
    layout: PageLayout,
    new: NewPositions,
) {
    let [narrow_key, narrow_value] = narrow;
    let (block, lane) = (new.first / NR, new.first % NR);
    assert!(lane + new.count <= NR && new.first + new.count <= PAGE);
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
