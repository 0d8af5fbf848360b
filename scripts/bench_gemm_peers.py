#!/usr/bin/env python3
"""Times the products of 4-bit weights and int8 activations beside humming's and cuBLAS' float16 ones, in one process.

    scripts/bench_gemm_peers.py LIBQQQ_CAPI.so [--shapes NxK,...] [--tokens M,...] [--groups 0,128] [--json FILE]

Needs PyTorch and a Hopper GPU; humming (the package `humming-kernels`) is left out where it is not installed. Every product is
timed by medians of CUDA graphs of 20 launches, with weights that rotate among copies, so that they come from memory. Ours and
humming's take turns, with the same random codes and activations: large products are as fast as power allows, which depends
on the data, and on what ran a moment before. The plans of ours are tried first, as when a model is loaded. An output of ours
that differs from exact sums is an error. "ratio" is the peer's time divided by ours: above 1, ours is faster.
"""

import argparse
import ctypes
import json
import statistics
import sys

import torch

CHANNEL, GROUP_INTEGER = 0, 1
FLOAT16, INT8 = 0, 3
LAUNCHES, ROUNDS = 20, 9
ROTATE = 240 << 20


class Shape(ctypes.Structure):
    _fields_ = [
        ("weights", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("activations", ctypes.c_int),
        ("output", ctypes.c_int),
        ("batch_invariant", ctypes.c_int),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("most_tokens", ctypes.c_int64),
    ]


class WeightOperands(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("codes", "group_scales", "channel_scales", "packed", "packed_scales")
    ]


class Operands(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("x", "token_scales", "packed", "packed_scales", "bias", "y")
    ] + [
        ("m", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("overlap", ctypes.c_int),
    ]


class Library:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.qqq_last_error.restype = ctypes.c_char_p
        for name in ("qqq_gemm_weight_bytes", "qqq_gemm_scale_count", "qqq_gemm_workspace_bytes"):
            getattr(self.lib, name).restype = ctypes.c_size_t
        self.device = ctypes.c_void_p()
        torch.zeros(1, device="cuda")
        self.call("qqq_device_open", 0, ctypes.byref(self.device))

    def call(self, name, *arguments):
        status = getattr(self.lib, name)(*arguments)
        if status:
            sys.exit(f"{name}: {self.lib.qqq_last_error().decode()}")


def stream():
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def recorded(launch, copies):
    """A graph of launches; `launch` takes the number of a copy of the weights."""
    for i in range(copies):
        launch(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            launch(i % copies)
    return graph


def microseconds(graphs):
    """The median times of a launch in graphs that take turns."""
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    times = [[] for _ in graphs]
    for _ in range(ROUNDS):
        for graph, found in zip(graphs, times):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) * 1e3 / LAUNCHES)
    return [statistics.median(found) for found in times]


def copies_of(size):
    return max(2, min(LAUNCHES, -(-ROTATE // size)))


def random_weights(n, k, group):
    """Codes, groups' scales (None per channel), channels' scales."""
    codes = torch.randint(-7, 8, (n, k), dtype=torch.int8, device="cuda")
    groups = torch.randint(1, 17, (n, k // group), dtype=torch.uint8, device="cuda") if group else None
    return codes, groups, (torch.rand(n, device="cuda") + 0.5) * 1e-3


def of_qqq(library, n, k, group, activations):
    """Graphs by number of tokens, and what they read."""
    shape = Shape(GROUP_INTEGER if group else CHANNEL, group, INT8, FLOAT16, 0, n, k, max(max(activations), 2048))
    library.call("qqq_gemm_try_plans", library.device, ctypes.byref(shape))
    gemm = ctypes.c_void_p()
    library.call("qqq_gemm_create", library.device, ctypes.byref(shape), ctypes.byref(gemm))
    size = library.lib.qqq_gemm_weight_bytes(ctypes.byref(shape))
    scales = library.lib.qqq_gemm_scale_count(ctypes.byref(shape))
    workspace_bytes = library.lib.qqq_gemm_workspace_bytes(gemm)
    workspace = torch.zeros(workspace_bytes, dtype=torch.uint8, device="cuda")
    layers, first = [], None
    for _ in range(copies_of(size)):
        codes, groups, channels = random_weights(n, k, group)
        packed = torch.empty(size, dtype=torch.uint8, device="cuda")
        padded = torch.empty(scales, dtype=torch.float32, device="cuda")
        pointers = [t.data_ptr() if t is not None else None for t in (codes, groups, channels, packed, padded)]
        library.call("qqq_gemm_prepack", gemm, ctypes.byref(WeightOperands(*pointers)), stream())
        torch.cuda.synchronize()
        layers.append((packed, padded))
        if first is None:
            int8 = codes if groups is None else (codes * groups.repeat_interleave(group, 1)).to(torch.int8)
            first = (int8, channels)
    graphs, held = {}, [layers, workspace]
    for m, (x, token_scales) in activations.items():
        y = torch.full((m, n), float("nan"), dtype=torch.half, device="cuda")

        def launch(i):
            packed, padded = layers[i]
            operands = Operands(
                x.data_ptr(), token_scales.data_ptr(), packed.data_ptr(), padded.data_ptr(), None, y.data_ptr(),
                m, workspace.data_ptr(), workspace_bytes, 1,
            )  # fmt: skip
            library.call("qqq_gemm_launch", gemm, ctypes.byref(operands), stream())

        launch(0)
        # PyTorch multiplies int8 from 17 rows on, in eights.
        rows = max(32, -(-m // 8) * 8)
        padded_x = torch.zeros(rows, k, dtype=torch.int8, device="cuda")
        padded_x[:m] = x
        sums = torch._int_mm(padded_x, first[0].t())[:m]
        expected = (sums.float() * first[1] * token_scales[:, None]).half()
        wrong = int((y != expected).sum())
        if wrong:
            sys.exit(f"{n}x{k}, groups of {group}, {m} tokens: {wrong} outputs differ from exact sums")
        graphs[m] = recorded(launch, len(layers))
        held.append(y)
    return graphs, (gemm, held)


def of_humming(n, k, group, activations):
    """As `of_qqq`; nothing where it is not installed."""
    try:
        from humming.layer import HummingLayer
    except ImportError:
        return {}, None
    weight = {"dtype": "int4"} | ({"group_size": group} if group else {})
    layers = []
    for _ in range(copies_of(n * k // 2)):
        layer = HummingLayer(
            shape_n=n, shape_k=k, weight_config=weight, input_config={"dtype": "int8"}, torch_dtype=torch.float16
        ).cuda()
        codes, groups, channels = random_weights(n, k, group)
        if group:
            codes = codes * groups.repeat_interleave(group, 1)
        layer.load_from_unquantized((codes * channels[:, None]).half())
        layer.transform()
        layers.append(layer)
    graphs = {}
    for m, (x, token_scales) in activations.items():
        scale = token_scales[:, None].contiguous()
        graphs[m] = recorded(lambda i: layers[i](x, input_scale=scale), len(layers))  # noqa: B023 (recorded at once)
    return graphs, layers


def of_cublas(n, k, tokens):
    weights = [torch.randn(n, k, dtype=torch.half, device="cuda") for _ in range(copies_of(2 * n * k))]
    times = {}
    for m in tokens:
        x = torch.randn(m, k, dtype=torch.half, device="cuda")
        y = torch.empty(m, n, dtype=torch.half, device="cuda")
        graph = recorded(lambda i: torch.mm(x, weights[i].t(), out=y), len(weights))  # noqa: B023 (recorded at once)
        [times[m]] = microseconds([graph])
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--shapes", default="8192x21760,22016x4096,4096x11008")
    parser.add_argument("--tokens", default="1,16,64,128,256,1024,4096")
    parser.add_argument("--groups", default="0,128", help="0: per channel")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    library = Library(arguments.library)
    tokens = [int(m) for m in arguments.tokens.split(",")]
    rows = []
    print(f"{torch.cuda.get_device_name()}; microseconds")
    print(f"{'shape':>12} {'group':>5} {'tokens':>6} {'qqq':>8} {'humming':>8} {'ratio':>6} {'fp16':>8} {'ratio':>6}")
    for n, k in (map(int, shape.split("x")) for shape in arguments.shapes.split(",")):
        half = of_cublas(n, k, tokens)
        for group in map(int, arguments.groups.split(",")):
            activations = {
                m: (
                    torch.randint(-127, 128, (m, k), dtype=torch.int8, device="cuda"),
                    (torch.rand(m, device="cuda") + 0.5) * 1e-2,
                )
                for m in tokens
            }
            our_graphs, (gemm, held) = of_qqq(library, n, k, group, activations)
            peer_graphs, layers = of_humming(n, k, group, activations)
            ours, peer = {}, {}
            for m in tokens:
                both = [our_graphs[m]] + ([peer_graphs[m]] if m in peer_graphs else [])
                ours[m], *others = microseconds(both)
                peer.update({m: time for time in others})
                row = {"n": n, "k": k, "group": group, "tokens": m, "qqq": ours[m], "humming": peer.get(m), "fp16": half[m]}
                rows.append(row)
                humming = f"{peer[m]:8.1f} {peer[m] / ours[m]:6.2f}" if m in peer else f"{'-':>8} {'-':>6}"
                shape = f"{n}x{k}"
                print(f"{shape:>12} {group:>5} {m:>6} {ours[m]:8.1f} {humming} {half[m]:8.1f} {half[m] / ours[m]:6.2f}", flush=True)
            our_graphs = peer_graphs = both = held = layers = None
            library.lib.qqq_gemm_destroy(gemm)
            torch.cuda.empty_cache()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"gpu": torch.cuda.get_device_name(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
