//! Attention over pages.

use std::ffi::OsString;
use std::sync::Mutex;

use qqq_backend::PAGE;
use qqq_backend::pool::parallel_for;
use qqq_cuda::decoder::attention::{self, AttentionConfig, AttentionKernel, AttentionParameters, Tiles};
use qqq_cuda::{DType, KernelType, Source};

use crate::attending::Attending;
use crate::emulator::{Emulator, Memory, Shape};
use crate::everything;

/// A NaN in either type.
const POISON: u16 = 0x7FAB;
/// CTAs that run at once: long sequences of few queries are cut.
const CTAS: usize = 64;

fn sources(head_dim: usize, half: DType) -> Vec<Source> {
    [true, false]
        .into_iter()
        .flat_map(|long| {
            let config = AttentionConfig::new(head_dim, long, half);
            [AttentionKernel::Tiles, AttentionKernel::Join].map(|k| config.source(k))
        })
        .collect()
}

/// Launches what attention takes; gives the output.
fn attend(emulator: &Emulator, case: &Attending, seed: u64) -> Result<Vec<f32>, String> {
    let heads = case.kind.heads;
    let plan = case.plan(|len, start| start..start + len);
    let encode = |rows: &mut dyn Iterator<Item = Vec<f32>>| -> Vec<u16> {
        rows.flatten().map(|v| case.half.encode(v)).collect()
    };
    let new = case
        .spans
        .iter()
        .enumerate()
        .flat_map(|(s, &(len, start))| (start..start + len).map(move |p| (s, p)));
    let qkv = encode(&mut new.map(|(s, p)| case.row(s, p)));
    // Where nothing was written, the pool is garbage.
    let size = case.pages() * heads.num_kv_heads * PAGE * heads.head_dim;
    let (mut keys, mut values) = (vec![POISON; size], vec![POISON; size]);
    for (sequence, (span, &(len, start))) in plan.spans.iter().zip(&case.spans).enumerate() {
        for position in 0..start + len {
            let page = plan.pages[span.first_page + position / PAGE] as usize;
            let row = case.row(sequence, position);
            for head in 0..heads.num_kv_heads {
                let at = ((page * heads.num_kv_heads + head) * PAGE + position % PAGE) * heads.head_dim;
                for d in 0..heads.head_dim {
                    let key = heads.q_width() + head * heads.head_dim + d;
                    keys[at + d] = case.half.encode(row[key]);
                    values[at + d] = case.half.encode(row[key + heads.kv_width()]);
                }
            }
        }
    }
    let mut memory = Memory::default();
    let [qkv, keys, values] = [&qkv, &keys, &values].map(|v| memory.upload(v));
    let pages = memory.upload(&plan.pages);
    let out = memory.upload(&vec![POISON; plan.rows() * heads.q_width()]);
    for (long, tiles) in [true, false].into_iter().zip(attention::cut(&plan, &case.kind, CTAS)) {
        let Tiles { tiles, joined, parts } = tiles;
        if tiles.is_empty() {
            continue;
        }
        let config = AttentionConfig::new(heads.head_dim, long, case.half);
        let rows = parts * heads.num_kv_heads * config.rows();
        let sums = memory.upload(&vec![f32::NAN; rows * heads.head_dim]);
        let stats = memory.upload(&vec![f32::NAN; rows * 2]);
        let parameters = AttentionParameters {
            qkv: qkv.address,
            out: out.address,
            keys: keys.address,
            values: values.address,
            pages: pages.address,
            tiles: memory.upload(&tiles).address,
            joined: memory.upload(&joined).address,
            sums: sums.address,
            stats: stats.address,
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            window: case.kind.window.map_or(0, |w| w as i32),
            scale: case.kind.scale * std::f32::consts::LOG2_E,
        };
        let raw = ((&raw const parameters).cast(), size_of::<AttentionParameters>());
        let shape = |blocks, threads, shared_bytes| Shape {
            blocks,
            threads,
            cluster: 1,
            shared_bytes,
            together: false,
        };
        let blocks = tiles.len() * heads.num_kv_heads;
        // The launch before may still write all that is read.
        let late = memory.regions();
        let source = config.source(AttentionKernel::Tiles);
        emulator.launch(
            &source,
            shape(blocks, config.threads(), config.shared_bytes()),
            raw,
            &memory,
            &late,
            seed,
        )?;
        if !joined.is_empty() {
            let source = config.source(AttentionKernel::Join);
            let shape = shape(joined.len() * heads.num_heads, config.threads(), 0);
            emulator.launch(&source, shape, raw, &memory, &late, seed + 1)?;
        }
    }
    Ok(memory.download::<u16>(out).into_iter().map(|v| case.half.decode(v)).collect())
}

/// Queries of one sequence and of many, before and behind the ends of pages, with and without windows, cut and whole.
fn cases(head_dim: usize, half: DType) -> Vec<Attending> {
    let case = |heads: (usize, usize), window, spans: &[(usize, usize)]| {
        Attending::new((heads.0, heads.1, head_dim), window, half, spans)
    };
    let mut cases = vec![
        case((2, 2), None, &[(1, 0), (1, 127), (1, 128), (1, 300)]),
        case((6, 2), None, &[(3, 125), (40, 0), (1, 700)]),
        // Parts without keys.
        case((4, 2), None, &[(1, 5), (1, 1100)]),
        case((4, 1), Some(33), &[(70, 0), (1, 200), (2, 255)]),
        case((3, 1), Some(300), &[(1, 1100), (66, 400)]),
    ];
    if everything() {
        cases.push(case((40, 1), None, &[(5, 60), (1, 900)]));
        cases.push(case((8, 8), Some(1), &[(129, 0)]));
        cases.push(case((2, 1), Some(256), &[(300, 3), (1, 2000)]));
    }
    cases
}

pub fn attention_is_that_of_float64(compiler: OsString) {
    let widths: &[usize] =
        if everything() { &[16, 32, 64, 80, 96, 112, 128, 192, 256] } else { &[16, 64, 96, 256] };
    let halves = |i: usize| if i.is_multiple_of(2) { DType::BF16 } else { DType::F16 };
    let all: Vec<_> = widths.iter().enumerate().map(|(i, w)| (*w, halves(i))).collect();
    let emulator = Emulator::new(&compiler, all.iter().flat_map(|(w, half)| sources(*w, *half)).collect());
    let cases: Vec<_> = all.iter().flat_map(|(w, half)| cases(*w, *half)).collect();
    let problems = Mutex::new(Vec::new());
    parallel_for(cases.len(), |i| {
        let [one, other] = [0, 100].map(|seed| attend(&emulator, &cases[i], seed + crate::seed()));
        let result = one.and_then(|got| {
            cases[i].check(&got)?;
            let same = other?.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
            if same { Ok(()) } else { Err(format!("{:?}: two runs differ", cases[i])) }
        });
        if let Err(problem) = result {
            problems.lock().unwrap().push(problem);
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Mistakes in `attention.cuh`: what is replaced by what.
const MISTAKES: [(&str, &str); 14] = [
    ("    ptx::grid_dependency_wait();\n", ""),
    ("ptx::copy_async_wait<1>();", "ptx::copy_async_wait<2>();"),
    ("ptx::copy_async_wait<1>();\n        __syncthreads();", "ptx::copy_async_wait<1>();"),
    ("p.scale, state);\n        __syncthreads();", "p.scale, state);"),
    ("2 * k + lane / 8 % 2", "2 * k + lane / 16"),
    ("distance < 0 || distance >= window", "distance < 0 || distance > window"),
    ("distance < 0 || distance >= window", "distance < -1 || distance >= window"),
    ("next - 1 > tile.position || last", "next - 1 > last_position || last"),
    ("|| last_position - key >= window", ""),
    ("state.total[r] *= factor;", ""),
    ("const bool valid = key + row < tile.end_key;", "const bool valid = true;"),
    ("total += source[C::kHeadDim + 1] * factor;", "total += source[C::kHeadDim + 1];"),
    ("total += p.stats[2 * row + 1] * factor;", "total = p.stats[2 * row + 1] * factor;"),
    ("stride = (long long)p.num_kv_heads * C::kRows", "stride = (long long)C::kRows"),
];

pub fn mistakes_in_attention_are_found(compiler: OsString) {
    let (head_dim, half) = (32, DType::F16);
    let missed = Mutex::new(Vec::new());
    parallel_for(MISTAKES.len(), |i| {
        let (text, replacement) = MISTAKES[i];
        let emulator = Emulator::with_headers(&compiler, sources(head_dim, half), |name, header| {
            let holds = if text.contains("grid_dependency") { "convert.cuh" } else { "attention.cuh" };
            if name != holds {
                return header.to_owned();
            }
            assert!(header.contains(text), "{name} has no {text:?}");
            header.replace(text, replacement)
        });
        let finds =
            |case: &Attending, seed| attend(&emulator, case, seed).and_then(|y| case.check(&y)).is_err();
        if !cases(head_dim, half).iter().any(|case| (0..8).any(|seed| finds(case, 2 * seed))) {
            missed.lock().unwrap().push(text);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
