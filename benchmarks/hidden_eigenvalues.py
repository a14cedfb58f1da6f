"""How often a search ends before a leading eigenvalue has shown, by the two rules for when to stop.

    python benchmarks/hidden_eigenvalues.py

Random starts on a diagonal operator of 20,000 dimensions with the spectrum of a small convolutional network: three
outliers within 7 %, some fifty below them, the rest zero; and with one whose leading eigenvalues are repeated, as at
zero logits. A result is wrong where a value is off by more than the tolerance, 1e-3. Results are written to
docs/results/hidden_eigenvalues.json.
"""

from __future__ import annotations

import argparse

import torch
from harness import RESULTS, print_table, write_json
from tqdm import tqdm

from lightning_gp.functional.lanczos import leading_eigenpairs

RULES = {"settled": None, "nothing hidden": 1.0}
"""Name of a rule -> `random_share`."""


def spectrum(leading: list[float]) -> torch.Tensor:
    values = torch.zeros(20_000)
    values[:60] = torch.cat([torch.tensor(leading), torch.linspace(2.35, 0.05, 60 - len(leading))])
    return values


SPECTRA = {"simple": [3.067, 2.927, 2.861, 2.542], "repeated": [3.0, 3.0, 3.0, 3.0, 2.6, 2.6]}


def searches(leading: list[float], random_share: float | None, k: int, starts: int) -> dict[str, float]:
    values = spectrum(leading)
    wrong = products = 0
    for seed in tqdm(range(starts), desc=f"random_share={random_share}, k={k}", leave=False):
        start = torch.randn(len(values), generator=torch.Generator().manual_seed(seed))
        pairs = leading_eigenpairs(lambda v: values * v, start, k, random_share=random_share)
        wrong += bool((pairs.values / values[:k] - 1).abs().max() > 1e-3)
        products += pairs.products
    return {"wrong": wrong, "starts": starts, "mean_products": round(products / starts, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--k", nargs="+", type=int, default=[1, 2, 5])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        f"{kind}, top {k}": {name: searches(leading, share, k, arguments.starts) for name, share in RULES.items()}
        for kind, leading in SPECTRA.items()
        for k in arguments.k
    }
    write_json(RESULTS / "hidden_eigenvalues.json", results)
    rows = [[top, name, *row.values()] for top, found in results.items() for name, row in found.items()]
    print_table("Searches that ended too early", ["values", "rule", "wrong", "of", "mean products"], rows)


if __name__ == "__main__":
    main()
