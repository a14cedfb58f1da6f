"""Top Hessian eigenvalues side by side: this package, PyHessian, curvlinops + scipy's eigsh.

The peers, in an environment that has this package: pip install pyhessian curvlinops-for-pytorch

    python benchmarks/curvature.py                    # colored-MNIST MLP and Conv4, about 5 minutes on one core
    python benchmarks/curvature.py --cases resnet18   # about 10 minutes more

MNIST is read from $LIGHTNING_GP_DATA/mnist or ../shared/data/mnist. Timings are medians of interleaved runs in one
process and thread; peak memory comes from one fresh process per method. Errors are relative to eigsh at 1e-10, the
largest over the k values. Results are written to docs/results/curvature.json.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_gp.functional.curvature import HessianVectorProduct, hessian_eigenvalues

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("LIGHTNING_GP_DATA", ROOT.parent / "shared" / "data")) / "mnist"
RESULTS = ROOT / "docs" / "results" / "curvature.json"
Case = tuple[nn.Module, Tensor, Tensor, nn.Module]
Result = tuple[list[float], int]


def mnist(count: int) -> tuple[Tensor, Tensor]:
    def read(name: str, header: int) -> np.ndarray:
        path = next(DATA.rglob(name), None)
        if path is None:
            raise FileNotFoundError(
                f"{name} is not under {DATA}; set LIGHTNING_GP_DATA to the folder that holds mnist/"
            )
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    images = torch.tensor(read("train-images-idx3-ubyte.gz", 16)).view(-1, 28, 28)[:count]
    return images.float() / 255, torch.tensor(read("train-labels-idx1-ubyte.gz", 8))[:count].long()


def train(
    network: nn.Module, x: Tensor, y: Tensor, criterion: nn.Module, lr: float, steps: int, kind=torch.optim.SGD
) -> None:
    optimizer = kind(network.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(network(x), y).backward()
        optimizer.step()


def mlp(steps: int = 100) -> Case:
    images, digits = mnist(5000)
    y = (digits < 5) ^ (torch.rand(len(digits)) < 0.25)
    colour = (y ^ (torch.rand(len(digits)) < 0.2)).long()
    x = torch.stack([images[:, ::2, ::2]] * 2, 1)
    x[torch.arange(len(x)), 1 - colour] = 0
    layers = [nn.Linear(392, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)]
    case = nn.Sequential(*layers), x.flatten(1), y.float()[:, None], nn.BCEWithLogitsLoss()
    # Trained until the two largest magnitudes are the two largest eigenvalues: PyHessian looks for magnitudes.
    train(*case, lr=1e-3, steps=steps, kind=torch.optim.Adam)
    return case


def conv4(steps: int = 20) -> Case:
    images, digits = mnist(5000)
    chosen = torch.cat([(digits == digit).nonzero()[:16, 0] for digit in range(5)])
    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64, track_running_stats=False)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    case = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5)), images[chosen][:, None], digits[chosen]
    train(*case, nn.CrossEntropyLoss(), lr=0.1, steps=steps)
    return *case, nn.CrossEntropyLoss()


def resnet18(steps: int = 2) -> Case:
    from torchvision.models import resnet18 as build

    network = build(num_classes=10)
    for module in network.modules():  # batch statistics without buffers: the same function for every method
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    train(network, x, y, nn.CrossEntropyLoss(), lr=0.05, steps=steps)
    return network, x, y, nn.CrossEntropyLoss()


CASES = {"mlp": mlp, "conv4": conv4, "resnet18": resnet18}


def ours(case: Case, k: int, tol: float = 1e-3, initial: Tensor | None = None) -> Result:
    network, x, y, criterion = case
    parameters = dict(network.named_parameters())
    pairs = hessian_eigenvalues(
        lambda p: criterion(functional_call(network, p, (x,)), y), parameters, k, tol, initial=initial
    )
    return pairs.values.tolist(), pairs.products


def pyhessian(case: Case, k: int, tol: float = 1e-3) -> Result:
    peer = importlib.import_module("pyhessian.hessian")  # the package hides this module behind a class of its name
    network, x, y, criterion = case
    plain, count = peer.hessian_vector_product, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return plain(*arguments)

    peer.hessian_vector_product = counted
    try:
        operator = peer.hessian(network, criterion, data=(x, y), cuda=False)
        network.train()  # the peer leaves the network in evaluation mode
        values, _ = operator.eigenvalues(maxIter=200, tol=tol, top_n=k)
    finally:
        peer.hessian_vector_product = plain
        network.train()
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

    network, x, y, criterion = case
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    try:
        operator = HessianLinearOperator(network, criterion, parameters, [(x, y)], check_deterministic=False)
    except (TypeError, ValueError, AttributeError):  # releases before 3 take a list
        operator = HessianLinearOperator(
            network, criterion, list(parameters.values()), [(x, y)], check_deterministic=False
        )
    matrix = operator.to_scipy()
    return eigsh(matrix.matvec, matrix.shape[0], np.float32, k, tol)


def reference(case: Case, k: int) -> Result:
    """Float64 throughout: in float32 the products' rounding keeps eigsh from ever reaching 1e-10."""
    network, x, y, criterion = case
    x, y = x.double(), y.double() if y.is_floating_point() else y
    parameters = {name: parameter.double() for name, parameter in network.named_parameters()}
    product = HessianVectorProduct(lambda p: criterion(functional_call(network, p, (x,)), y), parameters)
    return eigsh(lambda v: product(torch.from_numpy(v.copy())).numpy(), product.size, np.float64, k, 1e-10)


METHODS: dict[str, tuple[str, Callable[[Case, int], Result]]] = {
    "ours, tol 1e-3": ("", lambda case, k: ours(case, k)),
    "PyHessian, default": ("pyhessian", lambda case, k: pyhessian(case, k)),
    "PyHessian, tol 1e-5": ("pyhessian", lambda case, k: pyhessian(case, k, 1e-5)),
    "curvlinops + eigsh, default": ("curvlinops", lambda case, k: curvlinops(case, k)),
    "curvlinops + eigsh, tol 1e-2": ("curvlinops", lambda case, k: curvlinops(case, k, 1e-2)),
}


def measure(name: str, k: int, repeats: int, methods: list[str]) -> dict[str, dict[str, object]]:
    torch.manual_seed(0)
    case = CASES[name]()
    truth = np.array(reference(case, k)[0])
    rows: dict[str, dict[str, object]] = {}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(repeats):
        for method in methods:
            began = time.perf_counter()
            values, products = METHODS[method][1](case, k)
            seconds[method].append(time.perf_counter() - began)
            error = float(np.abs(np.array(values) / truth - 1).max())
            rows[method] = {"products": products, "error": error}
    for method in methods:
        rows[method]["seconds"] = statistics.median(seconds[method])
        rows[method]["peak_rss_mb"] = peak_memory(name, method, k)
    return rows


def peak_memory(name: str, method: str, k: int) -> float | None:
    command = [sys.executable, __file__, "--memory", name, method, str(k)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def warm_start(name: str, epochs: int = 5) -> dict[str, object]:
    """Products for the top 2 with and without the last vectors, 20 SGD steps apart."""
    torch.manual_seed(0)
    case = CASES[name]()
    network, x, y, criterion = case
    loss = lambda p: criterion(functional_call(network, p, (x,)), y)  # noqa: E731
    vectors, cold, warm = None, [], []
    for epoch in range(epochs + 1):
        parameters = dict(network.named_parameters())
        started = hessian_eigenvalues(loss, parameters, 2, initial=vectors)
        if epoch:
            cold.append(hessian_eigenvalues(loss, parameters, 2).products)
            warm.append(started.products)
        vectors = started.vectors
        train(*case, lr=0.01, steps=20)
    return {"cold": cold, "warm": warm, "saving": 1 - sum(warm) / sum(cold)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["mlp", "conv4"], choices=list(CASES))
    parser.add_argument("--k", nargs="+", type=int, default=[2, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", nargs=3, metavar=("CASE", "METHOD", "K"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        name, method, k = arguments.memory
        torch.manual_seed(0)
        METHODS[method][1](CASES[name](), int(k))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    methods = [method for method, (module, _) in METHODS.items() if not module or importlib.util.find_spec(module)]
    for method in METHODS.keys() - set(methods):
        print(f"skipped: {method} is not installed (pip install pyhessian curvlinops-for-pytorch)")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.cases:
        for k in arguments.k:
            rows = results[f"{name}, top {k}"] = measure(name, k, arguments.repeats, methods)
            for method, row in rows.items():
                print(
                    f"{name:9}top {k}  {method:30}" + "  ".join(f"{key} {value:.4g}" for key, value in row.items()),
                    flush=True,
                )
        if name != "resnet18":
            results[f"{name}, warm start"] = warm_start(name)
            print(name, "warm start", results[f"{name}, warm start"])
        results["setting"] = {"torch": torch.__version__, "threads": 1, "repeats": arguments.repeats}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        os.replace(temporary, RESULTS)


if __name__ == "__main__":
    main()
