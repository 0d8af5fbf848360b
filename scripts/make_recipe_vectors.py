#!/usr/bin/env python3
"""Makes crates/qqq-quant/tests/data/recipes.json: a small layer, and what the methods of other papers make of it.

The methods are written here from their papers' algorithms, in float64 with numpy, loop by loop; crates/qqq-quant/src/recipes/ is
tested against them. With a directory that holds other layers (weights.npy, hessian.npy, largest.npy) it prints their losses
tr((W-Q) H (W-Q)^T) / tr(W H W^T) instead. Usage: scripts/make_recipe_vectors.py [LAYER...]
"""

import json
import pathlib
import sys

import numpy as np

OUT = pathlib.Path(__file__).parent.parent / "crates/qqq-quant/tests/data/recipes.json"


def damped(H, share):
    H = H.copy()
    mean = np.mean(np.diag(H))
    H[np.diag_indices_from(H)] += share * mean
    return H


def inverse_factor(H):
    """Upper U with H^-1 = U^T U, as GPTQ has it."""
    return np.linalg.cholesky(np.linalg.inv(H)).T


def llm_int8(W):
    scale = np.abs(W).max(axis=1, keepdims=True) / 127
    return np.round(W / scale) * scale


def quik(W, H, largest, bits, share, damping, half, outlier_bits=16):
    """GPTQ with the outlier columns last, arXiv 2310.09259; returns the weights and the outliers."""

    def search(w, top):
        best, found = np.inf, 1.0
        for step in range(100):
            s = float(half((1 - 0.8 * step / 100) * np.abs(w).max() / top))
            error = np.sum((w - np.clip(np.round(w / s), -top - 1, top) * s) ** 2)
            if error < best:
                best, found = error, s
        return found

    n, k = W.shape
    count = int(round(share * k))
    outliers = np.sort(np.argsort(-largest, kind="stable")[:count])
    base = np.setdiff1d(np.arange(k), outliers)
    top = 2 ** (bits - 1) - 1
    scale = np.array([search(W[i, base], top) for i in range(n)])
    order = np.concatenate([base, outliers])
    U = inverse_factor(damped(H, damping)[np.ix_(order, order)])
    w = W[:, order].copy()
    for j in range(k if outlier_bits == 8 else len(base)):
        if j == len(base):
            top = 127
            scale = np.array([search(row[j:], top) for row in w])
        q = np.clip(np.round(w[:, j] / scale), -top - 1, top) * scale
        error = (w[:, j] - q) / U[j, j]
        w[:, j + 1 :] -= np.outer(error, U[j, j + 1 :])
        w[:, j] = q
    Q = np.zeros_like(W)
    Q[:, order] = w
    return Q, outliers


def fit(values, bits):
    low, high = np.min(values), np.max(values)
    if high <= low:
        return 1.0, -low
    scale = (high - low) / (2**bits - 1)
    return scale, -low / scale


def on_grid(value, scale, zero, bits):
    return scale * (np.clip(np.round(value / scale + zero), 0, 2**bits - 1) - zero)


def spqr(W, H, bits, group, statistics_bits, statistics_group, threshold, damping):
    """Algorithm 1 of arXiv 2306.03078; returns the weights and the number of outliers."""
    n, k = W.shape
    U = inverse_factor(damped(H, damping))
    tau = threshold * np.mean(np.var(W, axis=0) / np.diag(U) ** 2)
    W = W.copy()
    count = 0
    for first in range(0, k, group):
        columns = range(first, min(first + group, k))
        outlier = np.zeros((n, len(columns)), bool)
        scales, zeros = np.zeros(n), np.zeros(n)
        for i in range(n):
            w, u = W[i, first : columns[-1] + 1].copy(), np.diag(U)[first : columns[-1] + 1]
            base = np.sum(((w - on_grid(w, *fit(w, bits), bits)) / u) ** 2)
            for j in range(len(w)):
                others = np.delete(w, j)
                left = np.sum(((others - on_grid(others, *fit(others, bits), bits)) / np.delete(u, j)) ** 2)
                outlier[i, j] = base - left > tau
            kept = w[~outlier[i]]
            scales[i], zeros[i] = fit(kept, bits) if len(kept) else (1.0, 0.0)
        count += outlier.sum()
        for rows in range(0, n, statistics_group):
            part = slice(rows, min(rows + statistics_group, n))
            for statistics in (scales, zeros):
                grid = fit(statistics[part], statistics_bits)
                statistics[part] = on_grid(statistics[part], *grid, statistics_bits)
        for c, j in enumerate(columns):
            q = np.where(outlier[:, c], W[:, j], on_grid(W[:, j], scales, zeros, bits))
            error = (W[:, j] - q) / U[j, j]
            W[:, j + 1 :] -= np.outer(error, U[j, j + 1 :])
            W[:, j] = q
    return W, int(count)


def matrix(turn):
    left, right, order = turn
    return np.kron(left, right)[:, np.argsort(order)]


def random_turn(width, rng):
    p = max(p for p in range(1, width + 1) if p * p <= width and width % p == 0)
    return [np.linalg.qr(rng.normal(size=(m, m)))[0] for m in (p, width // p)] + [rng.permutation(width)]


def quip(W, H, bits, greedy, rho, damping, turns):
    """Algorithms 1 to 4 of arXiv 2307.13304."""
    n, k = W.shape
    H = damped(H, damping)
    if turns:
        U, V = matrix(turns[0]), matrix(turns[1])
        D = (np.diag(H) / np.diag(W.T @ W)) ** 0.25
        W, H = W * D, H / np.outer(D, D)
        W, H = U @ W @ V.T, V @ H @ V.T
    scale = rho * np.linalg.norm(W) / np.sqrt(n * k)
    levels = 2**bits - 1
    W = (W / scale + 1) / 2 * levels
    # H = (F + I) D (F + I)^T with F strictly upper.
    R = np.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1]
    F = R / np.diag(R) - np.eye(k)
    Q = np.zeros_like(W)
    for j in range(k):
        Q[:, j] = np.clip(np.round(W[:, j] + (W[:, :j] - Q[:, :j]) @ F[:j, j]), 0, levels)
    for _ in range(greedy):
        for j in range(k):
            others = np.arange(k) != j
            step = (W - Q)[:, others] @ H[others, j] / H[j, j]
            Q[:, j] = np.clip(np.round(W[:, j] + step), 0, levels)
    Q = (Q / levels * 2 - 1) * scale
    if turns:
        Q = U.T @ Q @ V / D
    return Q


def loss(W, H, Q):
    E = W - Q
    return np.sum((E @ H) * E) / np.sum((W @ H) * W)


def float16(value):
    return np.float16(np.float32(value))


def main():
    for place in sys.argv[1:]:
        W, H, largest = (np.load(f"{place}/{name}.npy").astype(float) for name in ("weights", "hessian", "largest"))
        rng = np.random.default_rng(0)
        turns = [random_turn(width, rng) for width in W.shape]
        print(place, "llm-int8", f"{loss(W, H, llm_int8(W)):.6g}")
        for bits in (4, 8):
            Q = quik(W, H, largest, bits, 0.0625, 0.01, float16)[0]
            print(place, f"quik {bits} bits", f"{loss(W, H, Q):.6g}")
        Q, count = spqr(W, H, 3, 16, 3, 16, 0.2, 1.0)
        print(place, "spqr", f"{loss(W, H, Q):.6g}", count, "outliers")
        for bits in (2, 3, 4):
            print(place, f"quip {bits} bits", f"{loss(W, H, quip(W, H, bits, 0, 2.4, 0.01, turns)):.6g}")
        print(place, "quip 2 bits greedy 10", f"{loss(W, H, quip(W, H, 2, 10, 2.4, 0.01, turns)):.6g}")
    if sys.argv[1:]:
        return
    rng = np.random.default_rng(19)
    n, k = 24, 48
    # In steps that are exact in 16 bits and short in text.
    W = np.round(rng.standard_t(4, size=(n, k)) * 64) / 1024
    X = rng.normal(size=(96, k)) @ (np.eye(k) + 0.3 * rng.normal(size=(k, k)))
    X[:, [5, 30]] *= 8
    H = np.round(2 / len(X) * X.T @ X * 1024) / 1024
    largest = np.round(np.abs(X).max(axis=0) * 1024) / 1024
    turns = [random_turn(n, rng), random_turn(k, rng)]
    quik_4, outliers = quik(W, H, largest, 4, 0.0625, 0.01, float16)
    quik_8 = quik(W, H, largest, 4, 0.125, 0.01, float16, outlier_bits=8)[0]
    sparse, count = spqr(W, H, 3, 16, 3, 8, 0.1, 0.1)
    assert 0 < count < n * k / 10, count

    def numbers(m):
        return [float(f"{v:.10g}") for v in np.asarray(m).ravel()]

    vectors = {
        "n": n, "k": k, "weights": numbers(W), "hessian": numbers(H), "largest": numbers(largest),
        "turns": [{"left": [float(v) for v in l.ravel()], "right": [float(v) for v in r.ravel()], "order": o.tolist()}
                  for l, r, o in turns],
        "llm_int8": numbers(llm_int8(W)),
        "quik": numbers(quik_4), "quik_outliers": outliers.tolist(), "quik_8": numbers(quik_8),
        "spqr": numbers(sparse), "spqr_outliers": count,
        "quip": numbers(quip(W, H, 2, 0, 2.4, 0.01, turns)),
        "quip_greedy": numbers(quip(W, H, 3, 3, 2.4, 0.01, turns)),
        "quip_plain": numbers(quip(W, H, 4, 0, 2.4, 0.01, None)),
    }  # fmt: skip
    OUT.write_text(json.dumps(vectors) + "\n")


main()
