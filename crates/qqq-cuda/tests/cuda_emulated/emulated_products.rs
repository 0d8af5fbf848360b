//! Every kind of product, bit for bit where sums are exact.

use std::collections::HashMap;
use std::ffi::OsString;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock};

use crate::emulator::Emulator;
use crate::product::{Case, product};
use crate::products_half::{self, Numbers, Problem, Weights};
use crate::{everything, products_int8, seed};
use qqq_backend::pool::parallel_for;
use qqq_cuda::gemm::{GemmLaunch, GemmTypes, Instance, Plan, WeightKind, instances};
use qqq_cuda::{Arch, DType};

/// Most tokens of a product.
const TOKENS: usize = 300;

/// The cases of an instance: more tokens than a tile's for few clusters, so that each has several tiles; and fewer
/// tokens, cut along K where that is possible.
fn cases(instance: Instance, first_seed: u64) -> Vec<Case> {
    let tile = instance.tile();
    let tokens = tile.tokens;
    let mut cases = Vec::new();
    let mut add = |m, clusters, split, narrow, biased| {
        let plan = Plan { instance, stream_k: split && tile.cluster_split_k == 1, paired: false };
        let launch = GemmLaunch::new(plan, clusters);
        let seed = first_seed + 2 * cases.len() as u64;
        cases.push(Case { launch, m, narrow, biased, seed });
    };
    add(tokens + 1, 2, false, false, false);
    add(tokens - 1, 7, true, false, true);
    if everything() {
        add(1, 3, true, true, false);
        add((2 * tokens + 7).min(TOKENS), 4, true, false, false);
        add((tokens / 2 + 3).min(TOKENS), 1, false, false, true);
        add((3 * tokens).min(TOKENS), 5, true, true, false);
    }
    cases
}

/// Cases of all instances of these types, or of a part of them that has every type and every tile.
fn select(types: &[GemmTypes], every: usize) -> Vec<Case> {
    let mut selected = Vec::new();
    for (t, types) in types.iter().enumerate() {
        for arch in [Arch::Sm90a, Arch::Sm80] {
            let every = if everything() {
                1
            } else if arch == Arch::Sm80 {
                every.min(5)
            } else {
                every
            };
            for (i, instance) in instances(*types, arch).into_iter().enumerate() {
                if (i + t * 3) % every == 0 {
                    selected.extend(cases(instance, seed() + selected.len() as u64));
                }
            }
        }
    }
    selected
}

/// Runs cases on all cores and reports all that fail.
fn check(compiler: &OsString, cases: &[Case], run: impl Fn(&Emulator, &Case) -> Result<(), String> + Sync) {
    let emulators = ["sm90_gemm.cuh", "sm80_gemm.cuh"].map(|header| {
        let mut sources: Vec<_> = cases.iter().map(|c| c.launch.plan().instance.source()).collect();
        sources.retain(|s| s.text.contains(header));
        sources.dedup();
        Emulator::new(compiler, sources)
    });
    let problems = Mutex::new(Vec::new());
    parallel_for(cases.len(), |i| {
        let emulator = &emulators[usize::from(matches!(cases[i].launch.plan().instance, Instance::Sm80(_)))];
        if let Err(problem) = run(emulator, &cases[i]) {
            problems.lock().unwrap().push(format!("{:?}:\n  {problem}", cases[i]));
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{} of {} cases:\n{}", problems.len(), cases.len(), problems.join("\n"));
    println!("{} cases, two launches each", cases.len());
}

/// Values that are made once.
struct Cache<K, V>(Mutex<HashMap<K, Arc<OnceLock<V>>>>);

impl<K: Eq + Hash, V> Cache<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn with<R>(&self, key: K, make: impl FnOnce() -> V, read: impl FnOnce(&V) -> R) -> R {
        let place = self.0.lock().unwrap().entry(key).or_default().clone();
        read(place.get_or_init(make))
    }
}

pub fn products_of_int8_activations(compiler: OsString) {
    let types: Vec<_> = GemmTypes::all().into_iter().filter(|t| t.activation() == DType::I8).collect();
    let cache = Cache::new();
    check(&compiler, &select(&types, 17), |emulator, case| {
        let (kind, (n, k)) = (case.types().weights(), case.shape());
        let make = || {
            let weights = products_int8::Weights::random(kind, n, k);
            let problem = products_int8::Problem::new(&weights, TOKENS);
            (weights, problem)
        };
        cache.with((kind, n), make, |(weights, problem)| {
            let (problem, packed) = (problem.first(case.m), &weights.packed);
            let tokens = (&problem.x[..], &problem.scale[..]);
            let y = product(emulator, case, tokens, (&packed.weight_tiles, &packed.channel_scale))?;
            problem.check(&y, case.bias().as_deref(), case.types().output(), "")
        })
    });
}

pub fn products_of_16_bit_activations(compiler: OsString) {
    let types: Vec<_> = products_half::all_types().collect();
    let cache = Cache::new();
    check(&compiler, &select(&types, 9), |emulator, case| {
        let (n, k) = case.shape();
        let numbers = if case.biased { Numbers::Real } else { Numbers::Exact };
        let make = || Weights::random(case.types(), n, k, numbers);
        cache.with((case.types(), n, case.biased), make, |weights| {
            let problem = Problem::new(weights, case.m);
            let packed = &weights.packed;
            let y =
                product(emulator, case, (&problem.x, &[]), (&packed.weight_tiles, &packed.channel_scale))?;
            problem.check(&y, case.bias().as_deref(), "")
        })
    });
}

/// Every plan in one order gives a token the same bits: whatever the tile, the number of tokens and the token's place.
pub fn batch_invariant_plans(compiler: OsString) {
    let types = GemmTypes::new(WeightKind::GroupHalf4(64), DType::BF16, DType::BF16).unwrap();
    for arch in [Arch::Sm90a, Arch::Sm80] {
        let plans = instances(types, arch).into_iter();
        let plans = plans.map(|instance| Plan { instance, stream_k: false, paired: false });
        let mut plans: Vec<_> = plans.filter(|p| p.is_batch_invariant()).collect();
        if !everything() {
            plans.retain(|p| [8, 64, 128, 192].contains(&p.instance.tile().tokens));
        }
        let emulator = Emulator::new(&compiler, plans.iter().map(|p| p.instance.source()).collect());
        let case = |plan, m| {
            let launch = GemmLaunch::new(plan, 3);
            Case { launch, m, narrow: false, biased: false, seed: seed() + m as u64 }
        };
        let (n, k) = case(plans[0], 1).shape();
        let weights = Weights::random(types, n, k, Numbers::Real);
        let all = Problem::new(&weights, 65);
        let run = |plan, problem: &Problem| {
            let operands = (&weights.packed.weight_tiles[..], &weights.packed.channel_scale[..]);
            product(&emulator, &case(plan, problem.m), (&problem.x, &[]), operands).unwrap()
        };
        let expected = run(plans[0], &all);
        parallel_for(plans.len(), |i| {
            let (first, m) = (5 * i, 17 + i);
            let got = run(plans[i], &all.tokens(first, m));
            assert!(got == expected[first * n..(first + m) * n], "{m} tokens from {first}: {:?}", plans[i]);
        });
    }
}
