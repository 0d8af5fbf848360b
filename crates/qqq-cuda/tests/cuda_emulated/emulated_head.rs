//! The largest outputs of an output head, and draws from them.

use std::ffi::{OsString, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::largest;
use qqq_backend::pool::parallel_for;
use qqq_cuda::decoder::head::{
    BLOCK_COLUMNS, CANDIDATES, CHUNK, DrawParameters, Drawn, HEAD_ROW_BYTES, HeadColumn, HeadCopyParameters,
    HeadKernel, HeadLogitsParameters, HeadParameters, TILE_ROWS, TILES, tiles,
};
use qqq_cuda::{DType, KernelType, Source};

use crate::emulator::{Emulator, Memory, Shape};
use crate::seed;
use crate::uniform::uniform;

type Check = Result<(), String>;

/// What the weights of a head are like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Random,
    /// Columns in pairs that differ less than the copy can hold, and some that are equal.
    NearTies,
    /// All columns alike.
    Flat,
    /// A weight of each column is larger than all the others.
    Outliers,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    half: DType,
    kind: Kind,
    m: usize,
    n: usize,
    k: usize,
    count: usize,
    /// Rows of the input that are not finite, or too large.
    spoilt: bool,
}

const fn case(half: DType, kind: Kind, (m, n, k): (usize, usize, usize), count: usize, spoilt: bool) -> Case {
    Case { half, kind, m, n, k, count, spoilt }
}

const CASES: [Case; 8] = [
    case(DType::BF16, Kind::Random, (3, 2000, 200), 1, true),
    case(DType::F16, Kind::Random, (9, 1000, 576), 5, true),
    case(DType::BF16, Kind::Random, (17, 4500, 64), 40, true),
    case(DType::F16, Kind::NearTies, (2, 700, 320), 1, false),
    case(DType::BF16, Kind::NearTies, (5, 701, 136), 34, false),
    case(DType::F16, Kind::Flat, (2, 4200, 16), 3, false),
    case(DType::BF16, Kind::Flat, (1, 1100, 16), 50, false),
    case(DType::F16, Kind::Outliers, (8, 900, 264), 2, false),
];

fn sources() -> Vec<Source> {
    HeadKernel::all().into_iter().map(HeadKernel::source).collect()
}

pub fn the_largest_outputs_are_found(compiler: OsString) {
    let emulator = Emulator::new(&compiler, sources());
    parallel_for(CASES.len(), |i| check(&emulator, CASES[i], i as u64 + seed()).unwrap());
    candidates(&emulator, seed()).unwrap();
}

fn launch<T>(
    emulator: &Emulator,
    kernel: HeadKernel,
    size: (usize, usize),
    parameters: &T,
    memory: &Memory,
    seed: u64,
) -> Check {
    let shape = Shape {
        blocks: kernel.ctas(size.0, size.1),
        threads: kernel.threads(),
        cluster: 1,
        shared_bytes: 0,
        together: false,
    };
    let raw: *const c_void = (&raw const *parameters).cast();
    emulator.launch(&kernel.source(), shape, (raw, size_of::<T>()), memory, &memory.regions(), seed)
}

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    (0..count).map(|i| uniform(seed, 2 * i) + uniform(seed, 2 * i + 1) - 1.0).collect()
}

/// The arithmetic that `head.cuh` states.
fn product(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (i, (w, x)) in w.iter().zip(x).enumerate() {
        let lane = &mut lanes[i / 8 % 32];
        *lane = w.mul_add(*x, *lane);
    }
    for mask in [16, 8, 4, 2, 1] {
        let before = lanes;
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum = before[lane] + before[lane ^ mask];
        }
    }
    lanes[0]
}

fn dot(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn weights(case: Case, seed: u64) -> Vec<f32> {
    let Case { n, k, .. } = case;
    let mut weights = numbers(seed, n * k);
    match case.kind {
        Kind::Random => {}
        Kind::Flat => (1..n).for_each(|row| weights.copy_within(..k, row * k)),
        Kind::NearTies => {
            for row in (1..n).step_by(2) {
                weights.copy_within((row - 1) * k..row * k, row * k);
                if row % 3 > 0 {
                    weights[row * k + row % k] *= 1.02;
                }
            }
        }
        Kind::Outliers => (0..n).for_each(|row| weights[row * k + row * 7 % k] = 40.0 + row as f32 / 64.0),
    }
    weights
}

fn check(emulator: &Emulator, case: Case, seed: u64) -> Check {
    let Case { half, m, n, k, count, .. } = case;
    let (pitch, blocks, tiles) = (k.next_multiple_of(CHUNK), n.div_ceil(BLOCK_COLUMNS), tiles(m).unwrap());
    let padded = TILE_ROWS * tiles;
    let mut x = numbers(seed + 1, m * k);
    if case.spoilt {
        x[..k].fill(0.0);
        x[k + 3] = f32::NAN;
        // In bfloat16 so large that sums may overflow; in float16 infinite.
        x[2 * k..3 * k].iter_mut().for_each(|v| *v *= 3e37);
    }
    let encode = |values: &[f32]| -> (Vec<u16>, Vec<f32>) {
        let bits: Vec<u16> = values.iter().map(|v| half.encode(*v)).collect();
        let values = bits.iter().map(|b| half.decode(*b)).collect();
        (bits, values)
    };
    let ((w_bits, w), (x_bits, x)) = (encode(&weights(case, seed)), encode(&x));
    let mut memory = Memory::default();
    let (weights_at, codes) = (memory.upload(&w_bits), memory.upload(&vec![99i8; n * pitch]));
    let columns = memory.upload(&vec![f32::NAN; 4 * n]);
    let copy = HeadCopyParameters {
        weights: weights_at.address,
        codes: codes.address,
        columns: columns.address,
        n: n as i32,
        k: k as i32,
        pitch: pitch as i32,
    };
    launch(emulator, HeadKernel::Copy(half), (0, n), &copy, &memory, seed)?;
    let known: Vec<HeadColumn> = memory.download(columns);
    let largest_norm = known.iter().fold(0.0f32, |l, c| l.max(c.norm));
    let digits = memory.upload(&vec![99i8; 2 * padded * pitch]);
    let rows = memory.upload(&vec![f32::NAN; padded * HEAD_ROW_BYTES / 4]);
    let outputs = memory.upload(&vec![f32::NAN; m * n]);
    let bounds = memory.upload(&vec![f32::NAN; 2 * m * blocks]);
    let counts = memory.upload(&vec![0i32; m]);
    let words = memory.upload(&vec![0u64; m * count]);
    let parameters = HeadParameters {
        weights: weights_at.address,
        codes: codes.address,
        columns: columns.address,
        x: memory.upload(&x_bits).address,
        high: digits.address,
        low: digits.address + (padded * pitch) as u64,
        rows: rows.address,
        outputs: outputs.address,
        lows: bounds.address,
        highs: bounds.address + (m * blocks * 4) as u64,
        candidates: memory.upload(&vec![0i32; m * CANDIDATES]).address,
        counts: counts.address,
        out: words.address,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        pitch: pitch as i32,
        blocks: blocks as i32,
        count: count as i32,
        largest_norm,
    };
    let run = |kernel| launch(emulator, kernel, (m, n), &parameters, &memory, seed);
    run(HeadKernel::Input(half))?;
    run(HeadKernel::Bounds(tiles))?;
    let is_spoilt = |row: usize| case.spoilt && (row == 1 || row == 2);
    let upper: Vec<f32> = memory.download(outputs);
    let both: Vec<f32> = memory.download(bounds);
    let (codes, digits): (Vec<i8>, Vec<i8>) = (memory.download(codes), memory.download(digits));
    let row_scales: Vec<f32> = memory.download(rows);
    let exact: Vec<f32> =
        (0..m * n).map(|i| product(&w[i % n * k..(i % n + 1) * k], &x[i / n * k..(i / n + 1) * k])).collect();
    for row in (0..m).filter(|row| !is_spoilt(*row)) {
        let own = &x[row * k..(row + 1) * k];
        let t = f64::from(row_scales[row * HEAD_ROW_BYTES / 4]);
        let digit = |i: usize| {
            254.0 * f64::from(digits[row * pitch + i]) + f64::from(digits[(padded + row) * pitch + i])
        };
        let x_error = length((0..k).map(|i| f64::from(own[i]) - t * digit(i)));
        let x_norm = length(own.iter().map(|v| f64::from(*v)));
        if x_error > 1e-4 * x_norm {
            return Err(format!("{case:?}: the digits of row {row} are off by {x_error} of {x_norm}"));
        }
        let mut block_highs = vec![f64::NEG_INFINITY; blocks];
        let mut block_lows = block_highs.clone();
        // Each that decides, and some of the rest.
        for column in (0..n).filter(|c| n * m < 5000 || c % 5 == 0) {
            let s = f64::from(known[column].scale);
            let code = |i: usize| f64::from(codes[column * pitch + i]);
            let weight = |i: usize| f64::from(w[column * k + i]);
            let rest = length((0..k).map(|i| weight(i) - s * code(i)));
            let bound = rest * x_norm + s * length((0..k).map(code)) * x_error;
            let value = s * t * dot((0..k).map(code), (0..k).map(digit));
            let (got, sum) = (f64::from(upper[row * n + column]), f64::from(exact[row * n + column]));
            let slack = 1e-4 * x_norm * f64::from(known[column].norm) + 1e-30;
            if got < value + bound || got < sum || got > value + 1.01 * bound + slack {
                return Err(format!(
                    "{case:?}: row {row}, column {column}: at most {got}, not {value} + {bound} ({sum})"
                ));
            }
            let block = column / BLOCK_COLUMNS;
            block_highs[block] = block_highs[block].max(got);
            block_lows[block] = block_lows[block].max(value - 1.01 * bound - slack);
        }
        for block in 0..blocks {
            let of_block = &exact[row * n..][block * BLOCK_COLUMNS..n.min((block + 1) * BLOCK_COLUMNS)];
            let reached = of_block.iter().fold(f32::NEG_INFINITY, |l, v| l.max(*v));
            let (low, high) = (both[row * blocks + block], both[(m + row) * blocks + block]);
            if low > reached || f64::from(low) < block_lows[block] || f64::from(high) < block_highs[block] {
                return Err(format!("{case:?}: row {row}, block {block}: {low} to {high}, and {reached}"));
            }
        }
    }
    run(HeadKernel::Candidates)?;
    let found: Vec<i32> = memory.download(counts);
    for (row, found) in found.into_iter().enumerate() {
        let all =
            is_spoilt(row) || (n > CANDIDATES && (case.kind == Kind::Flat || (case.spoilt && row == 0)));
        let most = if case.kind == Kind::Random { n / 2 } else { n };
        let few = case.spoilt && row == 0 || (count as i32..=most as i32).contains(&found);
        if if all { found >= 0 } else { !few } {
            return Err(format!("{case:?}: row {row} has {found} candidates"));
        }
    }
    run(HeadKernel::Outputs(half))?;
    run(HeadKernel::Largest)?;
    for (row, words) in memory.download::<u64>(words).chunks(count).enumerate() {
        let got: Vec<(u32, u32)> = words.iter().map(|w| ((w >> 32) as u32, *w as u32)).collect();
        let want = largest(&exact[row * n..(row + 1) * n], count);
        // Of what is not finite the first is asked for, alone; which NaN it is does not matter.
        let alike = got.iter().zip(&want).all(|((bits, column), (value, of))| {
            (*bits == value.to_bits() || f32::from_bits(*bits).is_nan() && value.is_nan()) && column == of
        });
        if !alike {
            return Err(format!("{case:?}: row {row}: {got:?} instead of {want:?}"));
        }
    }
    Ok(())
}

/// Rows, columns and channels of int8 heads: one row, tiles that are not full, several of them, channels that are no whole
/// chunk, columns that are no multiple of anything.
const LOGITS: [(usize, usize, usize); 6] =
    [(1, 1000, 576), (3, 33, 16), (9, 701, 80), (17, 96, 64), (32, 257, 320), (70, 65, 144)];

pub fn logits_of_int8_weights_are_exact(compiler: OsString) {
    let emulator = Emulator::new(&compiler, sources());
    parallel_for(LOGITS.len(), |i| logits(&emulator, LOGITS[i], i as u64 + seed()).unwrap());
}

fn logits(emulator: &Emulator, (m, n, k): (usize, usize, usize), seed: u64) -> Check {
    let pitch = k.next_multiple_of(CHUNK);
    let bytes = |seed: u64, count: usize| -> Vec<i8> {
        numbers(seed, count).iter().map(|v| (v * 150.0).clamp(-128.0, 127.0) as i8).collect()
    };
    let (weights, x) = (bytes(seed, n * k), bytes(seed + 1, m * k));
    let mut codes = vec![0i8; n * pitch];
    codes.chunks_mut(pitch).zip(weights.chunks(k)).for_each(|(to, from)| to[..k].copy_from_slice(from));
    let scales: Vec<f32> = numbers(seed + 2, n).iter().map(|v| 0.01 * v.abs() + 1e-4).collect();
    let mut x_scales: Vec<f32> = numbers(seed + 3, m).iter().map(|v| v.abs() + 1e-3).collect();
    // A row whose input was not finite.
    x_scales[m - 1] = f32::NAN;
    let mut memory = Memory::default();
    let outputs = memory.upload(&vec![-7.5f32; m * n + BLOCK_COLUMNS]);
    let parameters = HeadLogitsParameters {
        codes: memory.upload(&codes).address,
        scales: memory.upload(&scales).address,
        x: memory.upload(&x).address,
        x_scales: memory.upload(&x_scales).address,
        outputs: outputs.address,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        pitch: pitch as i32,
    };
    let kernel = HeadKernel::Logits(tiles(m).unwrap_or(TILES[TILES.len() - 1]));
    launch(emulator, kernel, (m, n), &parameters, &memory, seed)?;
    let got: Vec<f32> = memory.download(outputs);
    if got[m * n..].iter().any(|v| *v != -7.5) {
        return Err(format!("{m} x {n} x {k}: something is written behind the outputs"));
    }
    for (i, got) in got[..m * n].iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let pairs = x[row * k..][..k].iter().zip(&weights[column * k..][..k]);
        let sum: i64 = pairs.map(|(a, w)| i64::from(*a) * i64::from(*w)).sum();
        let want = sum as f32 * scales[column] * x_scales[row];
        if got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan()) {
            return Err(format!("{m} x {n} x {k}: row {row}, column {column}: {got} instead of {want}"));
        }
    }
    Ok(())
}

/// Candidates of given bounds: of few blocks, of more than there is room for, and of more blocks than there is room for.
fn candidates(emulator: &Emulator, seed: u64) -> Check {
    let (n, m, count) = (BLOCK_COLUMNS * (CANDIDATES + 3) - 5, 3, 2);
    let blocks = n.div_ceil(BLOCK_COLUMNS);
    let high = |row: usize, column: usize| match row {
        0 if column % 9_001 == 5 => 1.0f32,
        1 if column < CANDIDATES + 1 => 1.0,
        2 => 1.0,
        _ => -1.0,
    };
    let highs: Vec<f32> = (0..m * n).map(|i| high(i / n, i % n)).collect();
    let largest_of = |row: usize, block: usize| {
        let columns = block * BLOCK_COLUMNS..n.min((block + 1) * BLOCK_COLUMNS);
        columns.map(|column| high(row, column)).fold(f32::NEG_INFINITY, f32::max)
    };
    let of_blocks: Vec<f32> = (0..m * blocks).map(|i| largest_of(i / blocks, i % blocks)).collect();
    let mut memory = Memory::default();
    let (found, counts) = (memory.upload(&vec![-1i32; m * CANDIDATES]), memory.upload(&vec![0i32; m]));
    let parameters = HeadParameters {
        weights: 0,
        codes: 0,
        columns: 0,
        x: 0,
        high: 0,
        low: 0,
        rows: memory.upload(&vec![0u8; m * HEAD_ROW_BYTES]).address,
        outputs: memory.upload(&highs).address,
        lows: memory.upload(&of_blocks.iter().map(|v| v - 0.5).collect::<Vec<f32>>()).address,
        highs: memory.upload(&of_blocks).address,
        candidates: found.address,
        counts: counts.address,
        out: 0,
        m: m as i32,
        n: n as i32,
        k: 8,
        pitch: CHUNK as i32,
        blocks: blocks as i32,
        count,
        largest_norm: 1.0,
    };
    launch(emulator, HeadKernel::Candidates, (m, n), &parameters, &memory, seed)?;
    let want: Vec<i32> = (5..n as i32).step_by(9_001).collect();
    let mut got: Vec<i32> = memory.download::<i32>(found)[..want.len() + 1].to_vec();
    got.sort_unstable();
    let counts: Vec<i32> = memory.download(counts);
    if counts != [want.len() as i32, -1, -1] || got[1..] != want {
        return Err(format!("{counts:?} candidates, {got:?} instead of {want:?}"));
    }
    Ok(())
}

/// Columns of rows that are drawn from, and temperatures.
const DRAWS: [(usize, f32); 5] = [(1, 1.0), (31, 0.5), (1000, 1.0), (33_000, 1.5), (70_000, 0.8)];

pub fn columns_are_drawn_by_their_probabilities(compiler: OsString) {
    let emulator = Emulator::new(&compiler, vec![HeadKernel::Draw.source()]);
    parallel_for(DRAWS.len(), |i| draw(&emulator, DRAWS[i], i as u64 + seed()).unwrap());
}

fn draw(emulator: &Emulator, (columns, temperature): (usize, f32), seed: u64) -> Check {
    let rows = 9;
    let mut logits: Vec<f32> = numbers(seed, rows * columns).iter().map(|v| 9.0 * v).collect();
    // Equal ones, one that is certain; what is not finite.
    logits[..columns].fill(-2.5);
    logits[columns + columns / 2] = 300.0;
    logits[8 * columns + columns - 1] = f32::NEG_INFINITY;
    let chances = [0.0, 0.999_999, 0.25, 0.5, 0.75, 1.0 - 1e-16, 1e-9, 0.1, 0.5];
    let mut memory = Memory::default();
    let out = memory.upload(&vec![0u64; 2 * rows]);
    let parameters = DrawParameters {
        logits: memory.upload(&logits).address,
        chances: memory.upload(&chances).address,
        out: out.address,
        rows: rows as i32,
        columns: columns as i32,
        temperature,
    };
    launch(emulator, HeadKernel::Draw, (rows, columns), &parameters, &memory, seed)?;
    let drawn: Vec<Drawn> = memory.download(out);
    for (row, drawn) in drawn.into_iter().enumerate() {
        let what = format!("row {row} of {columns} at temperature {temperature}: {drawn:?}");
        if row == 8 {
            if drawn.column != -1 {
                return Err(what);
            }
            continue;
        }
        let row_logits = &logits[row * columns..(row + 1) * columns];
        let top = row_logits.iter().fold(f32::NEG_INFINITY, |l, v| l.max(*v));
        let weights: Vec<f64> =
            row_logits.iter().map(|v| (f64::from(v - top) / f64::from(temperature)).exp()).collect();
        let total: f64 = weights.iter().sum();
        if drawn.largest != top || (drawn.total - total).abs() > 1e-5 * total {
            return Err(format!("{what}: a sum of {total}, at most {top}"));
        }
        let Some(column) = usize::try_from(drawn.column).ok().filter(|c| *c < columns) else {
            return Err(what);
        };
        // At the border of two columns rounding decides.
        let before: f64 = weights[..column].iter().sum();
        let (rest, border) = (chances[row] * total, 1e-5 * total);
        if rest < before - border || rest > before + weights[column] + border || weights[column] == 0.0 {
            return Err(format!("{what}: {rest} is not in {before} + {}", weights[column]));
        }
    }
    Ok(())
}

/// Mistakes that must be found: the file, text of it, and what is there instead.
const MISTAKES: [(&str, &str, &str); 21] = [
    ("head.cuh", "not_below(sqrt(of_rest) + unit", "not_below(unit"),
    ("head.cuh", "(w.radius * x.norm + w.length * x.error)", "(w.radius * x.norm)"),
    ("head.cuh", "blockIdx.x] = below,", "blockIdx.x] = above,"),
    ("head.cuh", "bottom.z, top.w, bottom.w, b.z, b.w", "bottom.z, top.w, bottom.w, b.w, b.z"),
    ("head.cuh", "if (at + u >= chunks) break;", "if (at + u >= chunks - 1) break;"),
    ("head.cuh", "(float)kHeadDigit, (float)high, (float)low", "(float)kHeadDigit, (float)high, 0.0f"),
    ("head.cuh", "lane / 8 % 2 * 2 + row % 2", "lane / 8 % 2 + row % 2 * 2"),
    ("head.cuh", "(int)blockIdx.x % groups * (8 * Tiles)", "0"),
    (
        "head.cuh",
        "__fmul_rn((float)sum, scale), p.x_scales[first_row + row]",
        "__fmul_rn((float)sum, scale), p.x_scales[row]",
    ),
    (
        "head.cuh",
        "if (column < p.n) p.outputs[(long long)(first_row + row)",
        "p.outputs[(long long)(first_row + row)",
    ),
    ("head.cuh", "all = all || count < 0;", "all = count < 0;"),
    ("head.cuh", "if (p.counts[row] < 0) compute(row, column);", "compute(row + 0 * column, 0);"),
    ("head.cuh", "if (i < p.k) unpack_vector<Bfloat>(ptx", "unpack_vector<Bfloat>(ptx"),
    ("head.cuh", "count <= kHeadCandidates && found", "found"),
    ("head.cuh", "first = count > 0 ? i - count : first;", "first = count > 0 ? i - count + 1 : first;"),
    ("decoder_steps.cuh", "turns[bit % 2]", "turns[0]"),
    ("decoder_steps.cuh", "if (rank < count) out[rank]", "if (rank <= count) out[rank]"),
    ("decoder_steps.cuh", "kept[j] > kept[i]", "kept[j] >= kept[i]"),
    ("draws.cuh", "(chunk + 1) * width", "chunk * width + 32"),
    ("draws.cuh", "descend(sums + group * 32, 32, rest)", "descend(sums, 32, rest)"),
    ("draws.cuh", "        rest -= number;\n", ""),
];

pub fn mistakes_in_the_head_are_found(compiler: OsString) {
    let missed = Mutex::new(Vec::new());
    parallel_for(MISTAKES.len(), |i| {
        let (file, text, replacement) = MISTAKES[i];
        let found = AtomicUsize::new(0);
        let emulator = Emulator::with_headers(&compiler, sources(), |name, header| {
            if name != file {
                return header.to_owned();
            }
            found.fetch_add(header.matches(text).count(), Ordering::Relaxed);
            header.replace(text, replacement)
        });
        assert_eq!(found.into_inner(), 1, "how often {file} has {text:?}");
        let is_found = (0..CASES.len()).any(|i| check(&emulator, CASES[i], i as u64).is_err())
            || candidates(&emulator, 1).is_err()
            || (0..LOGITS.len()).any(|i| logits(&emulator, LOGITS[i], i as u64).is_err())
            || (0..DRAWS.len()).any(|i| draw(&emulator, DRAWS[i], i as u64).is_err());
        if !is_found {
            missed.lock().unwrap().push(text);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
