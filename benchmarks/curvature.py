"""Top Hessian eigenvalues side by side: this package, PyHessian, curvlinops + scipy's eigsh.

The peers, in an environment that has this package: pip install pyhessian curvlinops-for-pytorch

    python benchmarks/curvature.py                              # colored-MNIST MLP and Conv4, top 2
    python benchmarks/curvature.py --k 5 --repeats 1
    python benchmarks/curvature.py --cases resnet18 --parts memory
    python benchmarks/curvature.py --parts warm                 # products saved by the warm start

Seconds are CPU time of the process on one thread, medians of interleaved runs; memory is the growth of the resident
memory's high-water mark in one fresh process per method. Errors are the largest over the k values, relative to eigsh
at 1e-10 in float64. Results are merged into docs/results/curvature.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from curvature_cases import CASES, EPOCHS, Case, build
from harness import RESULTS, interleave, machine, peak_memory_growth, print_table, write_json

from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.functional.hessian_product import HessianVectorProduct
from lightning_gp.functional.lanczos import leading_eigenpairs

FILE = RESULTS / "curvature.json"
TIGHTEST = "curvlinops + eigsh, default"
"""Runs to rounding error: the reference where eigsh in float64 would take too long (`--parts memory` alone)."""

Result = tuple[list[float], int]


def ours(case: Case, k: int, tol: float = 1e-3) -> Result:
    pairs = hessian_eigenvalues(case.loss, case.parameters(), k, tol)
    return pairs.values.tolist(), pairs.products


def pyhessian(case: Case, k: int, tol: float = 1e-3, iterations: int = 100) -> Result:
    peer = importlib.import_module("pyhessian.hessian")  # the package hides this module behind a class of its name
    plain, count = peer.hessian_vector_product, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return plain(*arguments)

    peer.hessian_vector_product = counted
    try:
        operator = peer.hessian(case.network, case.criterion, data=(case.x, case.y), cuda=False)
        values, _ = operator.eigenvalues(maxIter=iterations, tol=tol, top_n=k)
    finally:
        peer.hessian_vector_product = plain
        case.network.train()  # the peer leaves the network in evaluation mode
    return sorted(values, reverse=True), count


def eigsh(matvec: Callable[[np.ndarray], np.ndarray], size: int, dtype: type, k: int, tol: float) -> Result:
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import eigsh as solve

    count = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return matvec(vector)

    operator = LinearOperator((size, size), counted, dtype=dtype)
    start = np.random.default_rng(0).standard_normal(size).astype(dtype)
    values = solve(operator, k, which="LA", tol=tol, v0=start, return_eigenvectors=True)[0]
    return sorted(map(float, values), reverse=True), count


def curvlinops(case: Case, k: int, tol: float = 0.0) -> Result:
    from curvlinops import HessianLinearOperator

    parameters = case.parameters()
    arguments = [(case.x, case.y)]
    try:
        operator = HessianLinearOperator(case.network, case.criterion, parameters, arguments, check_deterministic=False)
    except (TypeError, ValueError, AttributeError):  # releases before 3 take a list
        operator = HessianLinearOperator(
            case.network, case.criterion, list(parameters.values()), arguments, check_deterministic=False
        )
    matrix = operator.to_scipy()
    return eigsh(matrix.matvec, matrix.shape[0], np.float32, k, tol)


def reference(case: Case, k: int) -> list[float]:
    """Float64 throughout: in float32 the products' rounding keeps eigsh from ever reaching 1e-10."""
    y = case.y.double() if case.y.is_floating_point() else case.y
    double = case._replace(x=case.x.double(), y=y)
    product = HessianVectorProduct(double.loss, {name: p.double() for name, p in case.parameters().items()})
    return eigsh(lambda v: product(torch.from_numpy(v.copy())).numpy(), product.size, np.float64, k, 1e-10)[0]


METHODS: dict[str, tuple[str, Callable[[Case, int], Result]]] = {
    "ours, tol 1e-3": ("", ours),
    "PyHessian, default": ("pyhessian", pyhessian),
    "PyHessian, tol 1e-5": ("pyhessian", lambda case, k: pyhessian(case, k, 1e-5, 200)),
    "curvlinops + eigsh, default": ("curvlinops", curvlinops),
    "curvlinops + eigsh, tol 1e-2": ("curvlinops", lambda case, k: curvlinops(case, k, 1e-2)),
}


def measure(name: str, k: int, repeats: int, methods: list[str], parts: list[str]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {method: {} for method in methods}
    if "time" in parts:
        case = build(name)
        truth = np.array(reference(case, k))
        ours(case, 1)  # loads libraries
        found: dict[str, Result] = {}

        def contender(method: str) -> Callable[[], object]:
            return lambda: found.update({method: METHODS[method][1](case, k)})

        seconds = interleave({m: contender(m) for m in methods}, repeats, warmup=0, clock=time.process_time)
        for method, (values, products) in found.items():
            median = float(np.median(seconds[method]))
            error = float(np.abs(np.array(values) / truth - 1).max())
            rows[method] = {"products": products, "error": error, "seconds": median, "repeats": repeats}
    if "memory" in parts:
        runs = {method: fresh_process(name, method, k) for method in methods}
        tight = runs.get(TIGHTEST) or recorded().get("eigenvalues", {}).get(f"{name}, top {k}", {}).get(TIGHTEST)
        for method, run in runs.items():
            if "time" in parts or run is None:
                rows[method]["peak_mb"] = run and run["peak_mb"]
                continue
            # One run serves for all: the time includes the page faults that make memory measurable.
            rows[method] = run
            if tight:
                run["error"] = float(np.abs(np.array(run["values"]) / tight["values"] - 1).max())
    return rows


def fresh_process(name: str, method: str, k: int) -> dict[str, Any] | None:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, method, str(k)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def one(name: str, method: str, k: int) -> dict[str, Any]:
    """Peak growth in MB and CPU seconds, after a small run that loads the method's libraries."""
    case, run = build(name), METHODS[method][1]
    small = torch.nn.Linear(4, 2)
    run(Case(small, torch.randn(8, 4), torch.randint(2, (8,)), torch.nn.CrossEntropyLoss(), 0.1, 8), 1)
    found: list[Result] = []
    began = time.process_time()
    peak = peak_memory_growth(lambda: found.append(run(case, k)))
    seconds = time.process_time() - began
    values, products = found[0]
    return {"products": products, "values": values, "seconds": seconds, "repeats": 1, "peak_mb": peak / 2**20}


def warm_start(name: str, seeds: int, epochs: int, k: int = 2) -> dict[str, Any]:
    """Products after each epoch of 20 SGD steps: from a random vector, by the rule for warm starts; cold; and warm.

    Errors are relative to the cold search with a tolerance of 1e-6.
    """
    products: dict[str, list[int]] = {"random": [], "cold": [], "warm": []}
    errors: dict[str, float] = dict.fromkeys(products, 0.0)
    for seed in range(seeds):
        case, vectors = build(name, seed, epochs=True), None
        for epoch in range(epochs + 1):
            pairs = hessian_eigenvalues(case.loss, case.parameters(), k, initial=vectors)
            if vectors is not None:
                product = HessianVectorProduct(case.loss, case.parameters())
                noise = torch.randn(product.size, generator=torch.Generator().manual_seed(epoch))
                truth = leading_eigenpairs(product, noise, k, 1e-6, random_share=1.0).values
                found = {
                    "random": leading_eigenpairs(product, noise, k),
                    "cold": leading_eigenpairs(product, noise, k, random_share=1.0),
                    "warm": pairs,
                }
                for start, each in found.items():
                    products[start].append(each.products)
                    errors[start] = max(errors[start], float((each.values / truth - 1).abs().max()))
            vectors = pairs.vectors
            case.train(20)
    total = {start: sum(counts) for start, counts in products.items()}
    return {
        "seeds": seeds,
        "epochs": epochs,
        "products": products,
        "mean": {start: round(count / len(products["warm"]), 2) for start, count in total.items()},
        "saving_over_random": round(1 - total["warm"] / total["random"], 3),
        "saving_over_cold": round(1 - total["warm"] / total["cold"], 3),
        "largest_error": errors,
    }


def recorded() -> dict[str, Any]:
    """The results so far."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


@contextmanager
def merging() -> Iterator[dict[str, Any]]:
    """The results so far, written back at the end: read late, so that runs of different parts can take turns."""
    results = recorded()
    results |= {"machine": machine(), "clock": "CPU time of the process"}
    yield results
    write_json(FILE, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["mlp", "mlp, untrained", "conv4"], choices=sorted(CASES))
    parser.add_argument("--parts", nargs="+", default=["time", "memory"], choices=["time", "memory", "warm"])
    parser.add_argument("--warm-cases", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--k", nargs="+", type=int, default=[2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--one", nargs=3, metavar=("CASE", "METHOD", "K"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(one(arguments.one[0], arguments.one[1], int(arguments.one[2]))))
        return
    available = [m for m in arguments.methods if not METHODS[m][0] or importlib.util.find_spec(METHODS[m][0])]
    for method in set(arguments.methods) - set(available):
        print(f"skipped: {method} is not installed (pip install pyhessian curvlinops-for-pytorch)")
    for name, k in [(n, k) for n in arguments.cases for k in arguments.k if {"time", "memory"} & {*arguments.parts}]:
        rows = measure(name, k, arguments.repeats, available, arguments.parts)
        with merging() as results:
            entry = results.setdefault("eigenvalues", {}).setdefault(f"{name}, top {k}", {})
            for method, row in rows.items():
                entry[method] = {**entry.get(method, {}), **row}
        keys = ["products", "error", "seconds", "peak_mb"]
        table = [
            [m, *(f"{row[key]:.4g}" if row.get(key) is not None else "" for key in keys)] for m, row in rows.items()
        ]
        print_table(f"{name}, top {k}", ["method", *keys], table)
    for name in arguments.warm_cases if "warm" in arguments.parts else []:
        row = warm_start(name, arguments.seeds, arguments.epochs)
        with merging() as results:
            results.setdefault("warm start", {})[name] = row
        print(name, "warm start", {key: value for key, value in row.items() if key != "products"}, flush=True)


if __name__ == "__main__":
    main()
