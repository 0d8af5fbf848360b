//! The emulated GPU finds what it is for: kernels with a mistake.

use std::ffi::OsString;
use std::sync::Mutex;

use crate::emulator::Emulator;
use crate::product::{Case, product};
use crate::products_int8::{Problem, Weights};
use qqq_backend::pool::parallel_for;
use qqq_cuda::gemm::{GemmLaunch, GemmTypes, Instance, Plan, WeightKind, instances};
use qqq_cuda::{Arch, DType};

/// A mistake in a kernel: what is replaced in a header by what, and the case that must find it.
struct Mistake {
    header: &'static str,
    text: &'static str,
    replacement: &'static str,
    arch: Arch,
    tokens: usize,
    /// CTAs that share tokens by multicast, and those that share a tile.
    cluster: (usize, usize),
    split: bool,
}

/// With one of a few seeds.
pub fn mistakes_are_found(compiler: OsString) {
    let sm90 = |header, text, replacement, tokens, cluster, split| Mistake {
        header,
        text,
        replacement,
        arch: Arch::Sm90a,
        tokens,
        cluster,
        split,
    };
    let sm80 = |header, text, replacement, split| Mistake {
        header,
        text,
        replacement,
        arch: Arch::Sm80,
        tokens: 16,
        cluster: (1, 1),
        split,
    };
    let (gemm, epilogue) = ("sm90_gemm.cuh", "sm90_epilogue.cuh");
    let mistakes = [
        // Tiles of one team.
        sm90(gemm, "wgmma::wait<1>();", "", 64, (1, 1), false),
        sm90(
            gemm,
            "wait<1>();\n                    if (half == 0) release(previous);",
            "wait<1>(); if (half == 0) release(ready + C::kStages * 8);",
            64,
            (1, 1),
            false,
        ),
        sm90(gemm, "        wgmma::wait<0>();\n#pragma", "#pragma", 64, (1, 1), false),
        sm90(gemm, "if (C::kCtaSplitK == 1 || begin < k_tiles) release(previous);", "", 256, (1, 1), false),
        // Of two.
        sm90(
            gemm,
            "wgmma::wait<0>();\n                    if (half == 0)",
            "if (half == 0)",
            32,
            (1, 1),
            false,
        ),
        sm90(gemm, "ptx::barrier_wait(ready, phase);", "", 32, (1, 1), false),
        sm90(
            gemm,
            "const int begin = C::kCtaSplitK == 1 ? 0 : (k_group + C::kCtaSplitK - count % C::kCtaSplitK) % C::kCtaSplitK;",
            "const int begin = k_group;",
            32,
            (1, 1),
            true,
        ),
        sm90(
            epilogue,
            "ptx::named_barrier(written, 128 * C::kCtaSplitK);\n        if (k_group == 0)",
            "if (k_group == 0)",
            32,
            (1, 1),
            false,
        ),
        // Seen only where a pipeline is deep enough for a team to be a tile ahead.
        sm90(epilogue, "ptx::named_barrier(read, 128 * C::kCtaSplitK);\n    }\n", "}\n", 8, (1, 1), false),
        // Copies.
        sm90(
            gemm,
            "at.wait();\n            if (leader) {\n                ptx::barrier_expect(at.barrier(), C::kWeightBytes);",
            "if (leader) {\n                ptx::barrier_expect(at.barrier(), C::kWeightBytes);",
            256,
            (1, 1),
            false,
        ),
        sm90(
            gemm,
            "at.wait();\n            if (leader) {\n                const uint32 target",
            "if (leader) {\n                const uint32 target",
            256,
            (1, 1),
            false,
        ),
        sm90(
            gemm,
            "        __syncwarp();\n    }\n    QQQ_DEVICE void next",
            "    }\n    QQQ_DEVICE void next",
            128,
            (1, 4),
            false,
        ),
        sm90(gemm, "C::kReleases", "C::kWarpgroups * 4", 256, (2, 1), false),
        sm90(gemm, "C::kReleases", "C::kReleases - 32", 64, (1, 1), false),
        sm90(
            gemm,
            "kNobodyOffset, C::kMathThreads",
            "kNobodyOffset, C::kMathThreads / 32",
            64,
            (1, 1),
            false,
        ),
        sm90(
            gemm,
            "ptx::grid_dependency_wait();\n    while (units.next(g)) {\n        const int row",
            "while (units.next(g)) {\n        const int row",
            32,
            (1, 1),
            false,
        ),
        // The last tile of tokens, which begins before the one before it ends.
        sm90(gemm, "= first_token<C>(p, g);", "= g.m_tile * C::kTokens;", 64, (1, 1), false),
        sm90(
            epilogue,
            "token0 = first_token<C>(p, g);",
            "token0 = g.m_tile * C::kTokens;",
            64,
            (1, 1),
            false,
        ),
        sm90(epilogue, "token = first_token<C>(p, g)", "token = g.m_tile * C::kTokens", 64, (1, 1), true),
        sm90(gemm, "row + place.peer * p.box_tokens", "row", 256, (2, 1), false),
        sm90(gemm, "if constexpr (C::kCtasInCluster > 1) ptx::cluster_sync();", "", 32, (1, 4), false),
        sm90(gemm, "parity ^= 1;", "", 32, (1, 2), false),
        sm90(epilogue, "if (thread == 0) ptx::store_wait_read<0>();", "", 32, (1, 1), false),
        sm90(epilogue, "if (thread == 0) ptx::store_wait_read<C::kBuffers - 1>();", "", 256, (1, 1), false),
        sm90(epilogue, "ptx::copy_async_wait<0>();\n    // The tile", "// The tile", 32, (1, 1), false),
        sm90(gemm, "if (k_group == 0) ptx::copy_async_wait<0>();", "", 64, (1, 1), true),
        sm90(epilogue, "ptx::fence_async_shared();", "", 32, (1, 1), false),
        sm90(
            epilogue,
            "if (C::kOwners > 1 || k_rank > 0) ptx::barrier_wait(free, parity ^ 1);",
            "",
            32,
            (1, 2),
            false,
        ),
        sm90(epilogue, "ptx::barrier_wait_cluster(arrived, parity);", "", 32, (1, 2), false),
        sm90(epilogue, "if (before == (uint32)(last - first)) *counter = 0;", "", 64, (1, 1), true),
        sm90("wgmma.cuh", "1024 >> 4 | 1 << 30", "512 >> 4 | 1 << 30", 32, (1, 1), false),
        sm80("sm80_gemm.cuh", "C::kStages - 2>", "C::kStages - 1>", false),
        sm80("sm80_gemm.cuh", "ptx::named_barrier(1 + place.k_group, C::kGroupThreads);", "", false),
        sm80("sm80_epilogue.cuh", "ptx::named_barrier(read, 128 * C::kCtaSplitK);\n}", "}", false),
    ];
    let kind = WeightKind::GroupInteger4(64);
    let types = GemmTypes::int8(kind, DType::F16);
    let (n, k) = (336, 2048 + 64);
    let weights = Weights::random(kind, n, k);
    let problem = Problem::new(&weights, 257);
    let missed = Mutex::new(Vec::new());
    parallel_for(mistakes.len(), |i| {
        let mistake = &mistakes[i];
        let is_meant = |i: &Instance| {
            let tile = i.tile();
            let cluster = (tile.multicast, tile.cluster_split_k);
            (tile.tokens, cluster) == (mistake.tokens, mistake.cluster)
        };
        let instance = instances(types, mistake.arch).into_iter().find(is_meant).unwrap();
        let emulator = Emulator::with_headers(&compiler, vec![instance.source()], |name, text| {
            if name != mistake.header {
                return text.to_owned();
            }
            assert!(text.contains(mistake.text), "{name} has no {:?}", mistake.text);
            text.replace(mistake.text, mistake.replacement)
        });
        let plan = Plan { instance, stream_k: mistake.split, paired: false };
        let launch = GemmLaunch::new(plan, if mistake.split { 7 } else { 2 });
        let found = (0..16).find_map(|seed| {
            let m = mistake.tokens + 1;
            let case = Case { launch, m: m.min(257), narrow: false, biased: false, seed: 2 * seed };
            let problem = problem.first(case.m);
            let operands = (&weights.packed.weight_tiles[..], &weights.packed.channel_scale[..]);
            let result = product(&emulator, &case, (&problem.x, &problem.scale), operands);
            result.and_then(|y| problem.check(&y, None, types.output(), "")).err().map(|e| (seed, e))
        });
        match found {
            Some((seed, e)) => println!(
                "{:?}: seed {seed}: {}",
                mistake.text,
                e.lines().take(3).collect::<Vec<_>>().join(" ")
            ),
            None => missed.lock().unwrap().push(mistake.text),
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
