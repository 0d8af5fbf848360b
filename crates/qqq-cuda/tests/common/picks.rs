//! What is picked of rows of logits on a GPU.

use qqq_backend::{
    AttentionKind, Backend, BackendError, BatchPlan, HeadLayout, InputKind, KvDType, KvLayout, Pick, largest,
};
use qqq_cuda::{CudaBackend, DType, KernelType};
use qqq_formats::{CodeBits, LinearWeight, QuantizedWeight, Scales, WeightData};
use qqq_testing::values;

type Input = <CudaBackend as Backend>::Input;
type Linear = <CudaBackend as Backend>::Linear;
type Tensor = <CudaBackend as Backend>::Tensor;

/// The largest outputs of each row.
pub fn largest_of(
    b: &CudaBackend,
    input: &Input,
    head: &Linear,
    count: usize,
    out: &mut Tensor,
) -> Vec<Vec<(f32, u32)>> {
    let mut picks = b.picks().unwrap();
    b.pick(input, head, Pick::largest(count), out, &mut picks).unwrap();
    b.read_picks(&picks).unwrap().into_iter().map(|picked| picked.largest).collect()
}

/// Wide enough for a copy of the weights.
const WIDE: (usize, usize) = (40_003, 2048);

fn half_data(b: &CudaBackend, values: &[f32]) -> WeightData {
    match b.half() {
        DType::F16 => WeightData::F16(values.iter().map(|v| half::f16::from_f32(*v)).collect()),
        _ => WeightData::BF16(values.iter().map(|v| half::bf16::from_f32(*v)).collect()),
    }
}

fn head(b: &CudaBackend, (n, k): (usize, usize), weights: &[f32]) -> Linear {
    let data = half_data(b, weights);
    b.head_weight(LinearWeight::Float { out_features: n, in_features: k, data }).unwrap()
}

fn rounded(b: &CudaBackend, values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| b.half().decode(b.half().encode(v))).collect()
}

fn fill(b: &CudaBackend, input: &mut Input, cols: usize, values: Vec<f32>) {
    let mut tensor = b.upload(values.len() / cols, cols, values).unwrap();
    b.to_input(&mut tensor, InputKind::Float, input).unwrap();
}

/// The arithmetic that `head.cuh` states.
fn product(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (w, x) in w.chunks(256).zip(x.chunks(256)) {
        for (lane, (w, x)) in w.chunks(8).zip(x.chunks(8)).enumerate() {
            for (w, x) in w.iter().zip(x) {
                // The product is exact.
                lanes[lane] += w * x;
            }
        }
    }
    for mask in [16, 8, 4, 2, 1] {
        lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ mask]);
    }
    lanes[0]
}

/// Bit for bit those of the stated arithmetic, whatever way a row takes through the copy; within the rounding of sums where more
/// are asked for than the copy serves.
pub fn the_largest_of_a_wide_head(b: CudaBackend) {
    let (n, k) = WIDE;
    let mut weights = rounded(&b, values(n * k, 1));
    // Columns that the copy cannot tell apart.
    weights.copy_within(5 * k..6 * k, 30_000 * k);
    weights[30_000 * k + 7] *= 1.5;
    let head = head(&b, WIDE, &weights);
    let (mut input, mut out) = (b.input(1, k).unwrap(), b.tensor(0, 0).unwrap());
    for m in [1, 3, 9, 32] {
        let mut x = rounded(&b, values(m * k, 2 + m as u64));
        if m > 1 {
            // All outputs are equal; a NaN spoils all of them.
            x[k..2 * k].fill(0.0);
            x[2 * k + 9] = f32::NAN;
        }
        fill(&b, &mut input, k, x.clone());
        let mut exact = vec![0.0f32; m * n];
        qqq_backend::pool::parallel_chunks_mut(&mut exact, n, |row, exact| {
            let x = &x[row * k..(row + 1) * k];
            exact.iter_mut().zip(weights.chunks(k)).for_each(|(out, w)| *out = product(w, x));
        });
        // The copy of a head so wide serves up to an eighth of its blocks of 32 columns.
        for count in [1, 40, n / 32 / 8, n / 32 / 8 + 1] {
            let is_exact = count <= n / 32 / 8;
            let got = largest_of(&b, &input, &head, count, &mut out);
            for (row, got) in got.iter().enumerate() {
                let want = largest(&exact[row * n..(row + 1) * n], count);
                if m > 1 && row == 2 {
                    assert!(got.len() == 1 && got[0].0.is_nan() && got[0].1 == 0, "{got:?}");
                } else if is_exact {
                    assert_eq!(*got, want, "row {row} of {m}, {count}");
                } else {
                    assert_eq!(got.len(), want.len(), "row {row} of {m}, {count}");
                    for ((got, _), (want, _)) in got.iter().zip(&want) {
                        assert!((got - want).abs() <= 1e-4 * want.abs(), "row {row} of {m}: {got}, {want}");
                    }
                }
            }
        }
    }
    // The other way agrees within the rounding of sums.
    let x = rounded(&b, values(40 * k, 77));
    fill(&b, &mut input, k, x.clone());
    let whole = largest_of(&b, &input, &head, 1, &mut out);
    fill(&b, &mut input, k, x[..k].to_vec());
    let few = largest_of(&b, &input, &head, 1, &mut out);
    let distance = (whole[0][0].0 - few[0][0].0).abs();
    assert!(distance <= 1e-4 * few[0][0].0.abs(), "{:?} and {:?}", whole[0], few[0]);
}

/// A column is where the sum of probabilities passes the chance.
pub fn drawn_columns(b: CudaBackend) {
    let (n, k) = (33_333, 64);
    let weights = rounded(&b, values(n * k, 4).iter().map(|v| 3.0 * v).collect());
    let head = head(&b, (n, k), &weights);
    let (mut input, mut out, mut picks) =
        (b.input(1, k).unwrap(), b.tensor(0, 0).unwrap(), b.picks().unwrap());
    let m = 50;
    let mut x = rounded(&b, values(m * k, 5));
    x[7 * k] = f32::INFINITY;
    fill(&b, &mut input, k, x);
    let chances: Vec<f64> = (0..m).map(|i| (i as f64 + 0.5) / m as f64).collect();
    b.set_chances(&mut picks, &chances).unwrap();
    for temperature in [0.7f32, 1.0, 3.0] {
        let pick = Pick { largest: 3, temperature: Some(temperature) };
        b.pick(&input, &head, pick, &mut out, &mut picks).unwrap();
        let picked = b.read_picks(&picks).unwrap();
        let logits = b.read(&out).unwrap().into_owned();
        for (row, (picked, logits)) in picked.into_iter().zip(logits.chunks(n)).enumerate() {
            let drawn = picked.drawn.unwrap();
            if row == 7 {
                assert_eq!((drawn.column, picked.largest.len()), (None, 1));
                continue;
            }
            assert_eq!(picked.largest, largest(logits, 3), "row {row}");
            let top = f64::from(picked.largest[0].0);
            let weights: Vec<f64> =
                logits.iter().map(|y| ((f64::from(*y) - top) / f64::from(temperature)).exp()).collect();
            let total: f64 = weights.iter().sum();
            assert!((drawn.total - total).abs() < 1e-5 * total, "row {row}: {} and {total}", drawn.total);
            let column = drawn.column.unwrap() as usize;
            let (before, rest): (f64, f64) = (weights[..column].iter().sum(), chances[row] * total);
            let border = 1e-5 * total;
            assert!(
                rest > before - border && rest < before + weights[column] + border,
                "row {row}: {column}"
            );
        }
    }
    assert!(b.set_chances(&mut picks, &chances[1..]).is_ok());
    assert!(b.pick(&input, &head, Pick::draw(1.0), &mut out, &mut picks).is_err());
}

/// Quantized heads give float32 logits, of whatever number of tokens and rows.
pub fn picks_of_a_quantized_head(b: CudaBackend) {
    for (bits, n, k, m) in [
        (CodeBits::Four, 1040, 128, 4),
        (CodeBits::Eight, 1040, 128, 1),
        (CodeBits::Eight, 1037, 144, 33),
        (CodeBits::Eight, 49_152, 576, 4),
    ] {
        quantized_head(&b, bits, (n, k), m);
    }
}

fn quantized_head(b: &CudaBackend, bits: CodeBits, (n, k): (usize, usize), m: usize) {
    let most = usize::from(bits.largest() as u8);
    let codes: Vec<i8> = (0..n * k)
        .map(|i| ((i * 7 + i / k * 5) % (2 * most + 1)) as i16 - most as i16)
        .map(|c| c as i8)
        .collect();
    let scales: Vec<f32> = (0..n).map(|i| 0.01 + (i % 1000) as f32 * 1e-5).collect();
    let weight = QuantizedWeight {
        bits,
        out_features: n,
        in_features: k,
        codes: codes.clone(),
        scales: Scales::PerChannel(scales.clone()),
    };
    let head = b.head_weight(LinearWeight::Quantized(weight)).unwrap();
    assert_eq!(b.input_kind(&head), InputKind::Int8);
    let mut tensor = b.upload(m, k, rounded(b, values(m * k, 3))).unwrap();
    let mut half = b.input(m, k).unwrap();
    b.to_input(&mut tensor, InputKind::Float, &mut half).unwrap();
    let (mut input, mut out, mut picks) =
        (b.input(m, k).unwrap(), b.tensor(0, 0).unwrap(), b.picks().unwrap());
    b.to_input(&mut tensor, InputKind::Int8, &mut input).unwrap();
    let x = b.read_input(&input).unwrap().into_owned();
    b.linear(&input, &head, &mut out).unwrap();
    let logits = b.read(&out).unwrap().into_owned();
    for (i, logit) in logits.iter().enumerate().filter(|(i, _)| n < 2000 || i % 97 == 0) {
        let (row, column) = (i / n, i % n);
        let pairs = x[row * k..][..k].iter().zip(&codes[column * k..][..k]);
        let terms: Vec<f64> = pairs.map(|(x, c)| f64::from(*x) * f64::from(*c)).collect();
        let scale = f64::from(scales[column]);
        let (want, size) =
            (scale * terms.iter().sum::<f64>(), scale * terms.iter().map(|t| t.abs()).sum::<f64>());
        // 16 bits would be off by a thousandth and more.
        assert!(
            (f64::from(*logit) - want).abs() < 1e-6 * size + 1e-6 * want.abs(),
            "{n} {m}: {logit} {want}"
        );
    }
    b.set_chances(&mut picks, &vec![0.0; m]).unwrap();
    for temperature in [None, Some(1.0)] {
        b.pick(&input, &head, Pick { largest: 40, temperature }, &mut out, &mut picks).unwrap();
        let picked = b.read_picks(&picks).unwrap();
        let logits = b.read(&out).unwrap().into_owned();
        for (picked, logits) in picked.iter().zip(logits.chunks(n)) {
            assert_eq!(picked.largest, largest(logits, 40));
            // The first column at a chance of 0.
            assert_eq!(picked.drawn.map(|drawn| drawn.column), temperature.map(|_| Some(0)));
        }
    }
}

/// Has a batch of two sequences run once: of one that never ran it is not known whether the next is alike.
fn attend(b: &CudaBackend, batch: &<CudaBackend as Backend>::Batch) {
    let heads = HeadLayout { num_heads: 2, num_kv_heads: 1, head_dim: 64 };
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 64, dtype: KvDType::F16 };
    let mut kv = b.kv_pool(layout, 2).unwrap();
    let mut qkv = b.upload(2, heads.qkv_width(), values(2 * heads.qkv_width(), 1)).unwrap();
    b.to_input(&mut qkv, InputKind::Float, &mut b.input(2, heads.qkv_width()).unwrap()).unwrap();
    b.rope_append(&mut qkv, heads, None, None, &mut kv, 0, batch).unwrap();
    let kind = AttentionKind::causal(heads, None);
    b.attention(&qkv, &kind, &kv, 0, batch, &mut b.tensor(0, 0).unwrap()).unwrap();
}

/// What is recorded picks of what its memory holds when it is replayed.
pub fn recorded_picks(b: CudaBackend) {
    let (n, k) = WIDE;
    let head = head(&b, WIDE, &rounded(&b, values(n * k, 1)));
    let plan = BatchPlan::sequences([[1u32].as_slice(), &[2]]);
    let mut batch = b.batch(&plan).unwrap();
    attend(&b, &batch);
    let mut input = b.input(2, k).unwrap();
    // Later they are but copied to the input: what is allocated makes recorded steps useless.
    let mut rows: Vec<Tensor> = (0..8)
        .map(|i| {
            let mut tensor = b.upload(2, k, rounded(&b, values(2 * k, 100 + i))).unwrap();
            b.to_input(&mut tensor, InputKind::Float, &mut input).unwrap();
            tensor
        })
        .collect();
    let (mut out, mut other) = (b.tensor(2, n).unwrap(), b.tensor(2, n).unwrap());
    for pick in [Pick::largest(1), Pick::largest(50), Pick { largest: 1, temperature: Some(0.8) }] {
        let (mut picks, mut fresh) = (b.picks().unwrap(), b.picks().unwrap());
        let (mut graph, mut replayed) = (None, 0);
        // Other tests may allocate at the same time.
        for step in 0..400 {
            b.to_input(&mut rows[step % 8], InputKind::Float, &mut input).unwrap();
            let chances = [step as f64 / 401.0, 1.0 - (step + 1) as f64 / 401.0];
            for picks in [&mut picks, &mut fresh] {
                b.set_chances(picks, &chances).unwrap();
            }
            b.refill(&mut batch, &plan).unwrap();
            if matches!(&graph, Some(graph) if b.replay(graph, &batch).unwrap()) {
                replayed += 1;
            } else {
                b.pick(&input, &head, pick, &mut out, &mut picks).unwrap();
                graph = b
                    .record::<BackendError>(&batch, &mut || b.pick(&input, &head, pick, &mut out, &mut picks))
                    .unwrap();
            }
            b.pick(&input, &head, pick, &mut other, &mut fresh).unwrap();
            let (got, want) = (b.read_picks(&picks).unwrap(), b.read_picks(&fresh).unwrap());
            assert_eq!(got, want, "{pick:?}: step {step}, {replayed} replayed");
        }
        assert!(replayed > 20, "{pick:?}: {replayed}");
    }
}
