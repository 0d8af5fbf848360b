//! The float micro-kernel: a tile of `C = A B` (or `C += A B`) in registers. The float GEMM and
//! attention are loops over it.

#[cfg(target_arch = "x86_64")]
use crate::simd::FloatIsa;
use crate::simd::SimdLevel;

/// Columns of a tile.
pub(crate) const NR: usize = 32;
/// Most rows of a tile: with AVX-512, 14 x 2 accumulators, two vectors of B and one of A fill the
/// 32 registers.
pub(crate) const MR: usize = 14;

/// Operands of a tile product: `C[r][j] = sum_i A[r][i] B[i][j]`, `r < rows`, `i < depth`, `j < 32`.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Rows, 1 to [`MR`].
    pub rows: usize,
    /// Length of the sums.
    pub depth: usize,
    /// `A[r][i]` is at `a + r * A_ROW + i * a_step`.
    pub a: *const f32,
    /// Elements from one column of A to the next.
    pub a_step: usize,
    /// `B[i][j]` is at `b + i * b_step + j`.
    pub b: *const f32,
    /// Elements from one row of B to the next.
    pub b_step: usize,
    /// `C[r][j]` is at `c + r * c_row + j`.
    pub c: *mut f32,
    /// Elements from one row of C to the next.
    pub c_row: usize,
    /// Whether to add to C rather than to overwrite it.
    pub add: bool,
}

impl Tile {
    /// Computes the tile. `A_ROW`, the distance of A's rows, is a constant so that it goes into the
    /// instructions' displacements.
    ///
    /// # Safety
    /// `rows` is at most [`MR`], and all elements named above must be valid (those of A and B to read, those of C to
    /// write, and to read if `add`); C must not overlap A or B.
    #[inline]
    pub(crate) unsafe fn run<const A_ROW: usize>(self, level: SimdLevel) {
        debug_assert!((1..=MR).contains(&self.rows));
        // SAFETY: the caller's promise; the pieces lie within the tile.
        unsafe {
            match level.isa() {
                #[cfg(target_arch = "x86_64")]
                FloatIsa::Avx512 => self.avx512::<A_ROW>(),
                #[cfg(target_arch = "x86_64")]
                FloatIsa::Avx2 => self.in_pieces::<A_ROW>(|tile| match tile.rows {
                    1 => avx2::<1, A_ROW>(tile),
                    2 => avx2::<2, A_ROW>(tile),
                    _ => avx2::<3, A_ROW>(tile),
                }),
                _ => self.in_pieces::<A_ROW>(|tile| match tile.rows {
                    1 => portable::<1, A_ROW>(tile),
                    2 => portable::<2, A_ROW>(tile),
                    _ => portable::<3, A_ROW>(tile),
                }),
            }
        }
    }

    /// Runs pieces of at most 3 rows: 3 x 32 accumulators are what 16 registers of 8 (and 32 of 4)
    /// can hold.
    #[inline]
    fn in_pieces<const A_ROW: usize>(self, run: impl Fn(Tile)) {
        for start in (0..self.rows).step_by(3) {
            run(Tile {
                rows: (self.rows - start).min(3),
                a: self.a.wrapping_add(start * A_ROW),
                c: self.c.wrapping_add(start * self.c_row),
                ..self
            });
        }
    }

    /// # Safety
    /// As for [`run`](Self::run), on a machine with AVX-512F.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    unsafe fn avx512<const A_ROW: usize>(self) {
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match self.rows {
                    $($rows => avx512::<$rows, A_ROW>(self),)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe { by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
    }
}

/// A tile of `ROWS` rows.
///
/// # Safety
/// As for [`Tile::run`], on a machine with AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize, const A_ROW: usize>(t: Tile) {
    use std::arch::x86_64::*;
    // SAFETY: all pointers stay within the elements that the caller has promised.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        // Fetched while the sums are made: the rows of a wide C lie in different pages.
        for r in 0..ROWS {
            _mm_prefetch::<_MM_HINT_T0>(t.c.add(r * t.c_row).cast());
            _mm_prefetch::<_MM_HINT_T0>(t.c.add(r * t.c_row + 16).cast());
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.depth {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * A_ROW));
                *acc = [_mm512_fmadd_ps(x, b0, acc[0]), _mm512_fmadd_ps(x, b1, acc[1])];
            }
            a = a.wrapping_add(t.a_step);
            b = b.wrapping_add(t.b_step);
        }
        for (r, [acc0, acc1]) in acc.iter_mut().enumerate() {
            let (c0, c1) = (t.c.add(r * t.c_row), t.c.add(r * t.c_row + 16));
            if t.add {
                *acc0 = _mm512_add_ps(_mm512_loadu_ps(c0), *acc0);
                *acc1 = _mm512_add_ps(_mm512_loadu_ps(c1), *acc1);
            }
            _mm512_storeu_ps(c0, *acc0);
            _mm512_storeu_ps(c1, *acc1);
        }
    }
}

/// A tile of `ROWS` rows.
///
/// # Safety
/// As for [`Tile::run`], on a machine with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const ROWS: usize, const A_ROW: usize>(t: Tile) {
    use std::arch::x86_64::*;
    // SAFETY: all pointers stay within the elements that the caller has promised.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 4]; ROWS];
        if t.add {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(t.c.add(r * t.c_row + 8 * j));
                }
            }
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.depth {
            let mut x = [_mm256_setzero_ps(); ROWS];
            for (r, x) in x.iter_mut().enumerate() {
                *x = _mm256_set1_ps(*a.add(r * A_ROW));
            }
            for j in 0..4 {
                let y = _mm256_loadu_ps(b.add(8 * j));
                for (acc, x) in acc.iter_mut().zip(x) {
                    acc[j] = _mm256_fmadd_ps(x, y, acc[j]);
                }
            }
            a = a.wrapping_add(t.a_step);
            b = b.wrapping_add(t.b_step);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(t.c.add(r * t.c_row + 8 * j), *acc);
            }
        }
    }
}

/// A tile of `ROWS` rows.
///
/// # Safety
/// As for [`Tile::run`].
unsafe fn portable<const ROWS: usize, const A_ROW: usize>(t: Tile) {
    use crate::simd::fma;
    // SAFETY: all pointers stay within the elements that the caller has promised.
    unsafe {
        let mut acc = [[0.0f32; NR]; ROWS];
        if t.add {
            for (r, acc) in acc.iter_mut().enumerate() {
                acc.copy_from_slice(std::slice::from_raw_parts(t.c.add(r * t.c_row), NR));
            }
        }
        for i in 0..t.depth {
            let b = &*t.b.add(i * t.b_step).cast::<[f32; NR]>();
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = *t.a.add(r * A_ROW + i * t.a_step);
                for (acc, &y) in acc.iter_mut().zip(b) {
                    *acc = fma::<{ cfg!(target_arch = "aarch64") }>(x, y, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            t.c.add(r * t.c_row).cast::<[f32; NR]>().write_unaligned(*acc);
        }
    }
}
