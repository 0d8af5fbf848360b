//! Attention over pages.

use std::ffi::OsString;
use std::sync::Mutex;

use qqq_backend::PAGE;
use qqq_backend::pool::parallel_for;
use qqq_cuda::decoder::attention::{self, AttentionConfig, AttentionKernel, AttentionParameters, Tiles};
use qqq_cuda::{Arch, DType, KernelType, Source};

use crate::attending::Attending;
use crate::emulator::{Emulator, Memory, Shape};
use crate::everything;

/// A NaN in either type.
const POISON: u16 = 0x7FAB;
/// CTAs that run at once: long sequences of few queries are cut.
const CTAS: usize = 64;

fn sources(arch: Arch, head_dim: usize, half: DType) -> Vec<Source> {
    let kernels = |long| {
        let config = AttentionConfig::new(arch, head_dim, long, half);
        config.kernels().into_iter().map(move |(kernel, _)| config.source(kernel))
    };
    [true, false].into_iter().flat_map(kernels).collect()
}

/// Launches what attention takes; gives the output.
fn attend(emulator: &Emulator, arch: Arch, case: &Attending, seed: u64) -> Result<Vec<f32>, String> {
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
    let config = |long| AttentionConfig::new(arch, heads.head_dim, long, case.half);
    let cuts = attention::cut(&plan, &case.kind, config(true).rows(), CTAS);
    for (long, tiles) in [true, false].into_iter().zip(cuts) {
        let Tiles { tiles, joined, parts } = tiles;
        if tiles.is_empty() {
            continue;
        }
        let config = config(long);
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
fn cases(arch: Arch, head_dim: usize, half: DType) -> Vec<Attending> {
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
    if AttentionConfig::new(arch, head_dim, true, half).wgmma {
        // Warpgroups without tokens, that see nothing of a step, or all of it.
        cases.push(case((2, 2), None, &[(17, 0), (200, 60), (64, 128)]));
        cases.push(case((2, 1), Some(100), &[(150, 300)]));
    }
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
    let wide: &[usize] = if everything() { &[64, 128, 256] } else { &[64, 256] };
    let kinds = |arch, widths: &[usize]| -> Vec<_> {
        let half = |i: usize| if i.is_multiple_of(2) { DType::BF16 } else { DType::F16 };
        widths.iter().enumerate().map(|(i, width)| (arch, *width, half(i))).collect()
    };
    let all = [kinds(Arch::Sm80, widths), kinds(Arch::Sm90a, wide)].concat();
    let sources = all.iter().flat_map(|&(arch, width, half)| sources(arch, width, half)).collect();
    let emulator = Emulator::new(&compiler, sources);
    let cases: Vec<_> = all
        .iter()
        .flat_map(|&(arch, width, half)| cases(arch, width, half).into_iter().map(move |case| (arch, case)))
        .collect();
    let problems = Mutex::new(Vec::new());
    parallel_for(cases.len(), |i| {
        let (arch, case) = &cases[i];
        let [one, other] = [0, 100].map(|seed| attend(&emulator, *arch, case, seed + crate::seed()));
        let result = one.and_then(|got| {
            case.check(&got)?;
            let same = other?.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
            if same { Ok(()) } else { Err(format!("{case:?}: two runs differ")) }
        });
        if let Err(problem) = result {
            problems.lock().unwrap().push(format!("{arch}: {problem}"));
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Mistakes in `attention.cuh`: what is replaced by what.
const MISTAKES: [(&str, &str); 15] = [
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
    ("-base[r]));\n            state.total", "-base[0]));\n            state.total"),
    ("const bool valid = key + row < tile.end_key;", "const bool valid = true;"),
    ("total += source[C::kHeadDim + 1] * factor;", "total += source[C::kHeadDim + 1];"),
    ("total += p.stats[2 * row + 1] * factor;", "total = p.stats[2 * row + 1] * factor;"),
    ("stride = (long long)p.num_kv_heads * C::kRows", "stride = (long long)C::kRows"),
];

/// Mistakes in `wgmma_attention.cuh`, and in what it is told of tiles.
const WGMMA_MISTAKES: [(&str, &str); 15] = [
    ("ptx::copy_async_wait<0>();", "ptx::copy_async_wait<1>();"),
    ("        ptx::fence_async_shared();\n", ""),
    ("        __syncthreads();\n", ""),
    ("    wgmma::commit();\n    wgmma::wait<0>();\n    wgmma::pin(scores);", "    wgmma::commit();"),
    ("    wgmma::commit();\n    wgmma::wait<0>();\n    wgmma::pin(state.sums);", "    wgmma::commit();"),
    ("    wgmma::pin(p);\n    wgmma::fence();", "    wgmma::pin(p);"),
    (", k > 0);", ", true);"),
    ("chunk / 8 * (Rows * 128)", "chunk / 8 * 4096"),
    ("((chunk ^ row) & 7)", "(chunk & 7)"),
    ("+ j * 1024", "+ j * 512"),
    ("C::kKeys * 128);", "C::kRows * 128);"),
    ("queries + warpgroup * 64 * 128", "queries"),
    ("first_position - (next - 1) < window", "first_position - next < window - 64"),
    ("next - 1 > first_position || last", "next - 1 > last_position || last"),
    ("const float total = quad_sum(state.total[r]);", "const float total = state.total[r];"),
];

pub fn mistakes_in_attention_are_found(compiler: OsString) {
    find_mistakes(&compiler, Arch::Sm80, 32, DType::F16, "attention.cuh", &MISTAKES);
    find_mistakes(&compiler, Arch::Sm90a, 128, DType::BF16, "wgmma_attention.cuh", &WGMMA_MISTAKES);
}

fn find_mistakes(
    compiler: &OsString,
    arch: Arch,
    head_dim: usize,
    half: DType,
    file: &str,
    mistakes: &[(&str, &str)],
) {
    let missed = Mutex::new(Vec::new());
    parallel_for(mistakes.len(), |i| {
        let (text, replacement) = mistakes[i];
        let sources = sources(arch, head_dim, half);
        let emulator = Emulator::with_headers(compiler, sources, |name, header| {
            let holds = if text.contains("grid_dependency") { "convert.cuh" } else { file };
            if name != holds {
                return header.to_owned();
            }
            assert!(header.contains(text), "{name} has no {text:?}");
            header.replace(text, replacement)
        });
        let finds = |case: &Attending, seed| {
            attend(&emulator, arch, case, seed).and_then(|y| case.check(&y)).is_err()
        };
        if !cases(arch, head_dim, half).iter().any(|case| (0..8).any(|seed| finds(case, 2 * seed))) {
            missed.lock().unwrap().push(text);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found in {file}: {missed:#?}");
}
