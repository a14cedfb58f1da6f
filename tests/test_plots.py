"""Figures are drawn without pyplot, from finite and from broken numbers."""

import json
import sys

import pytest
import torch

from lightning_gp import plots

NAN = float("nan")


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.cosine_matrix(torch.tensor([[1.0, NAN], [NAN, NAN]])),
        lambda: plots.cosine_matrix(torch.eye(40, dtype=torch.bfloat16)),
        lambda: plots.histogram(torch.tensor([NAN, NAN]), "norm"),
        lambda: plots.histogram(torch.tensor([1.0]), "norm"),
        lambda: plots.spectral_density(torch.linspace(-1, 1, 9), torch.zeros(9)),
        lambda: plots.spectral_density(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9).exp()),
        lambda: plots.spectral_density(torch.linspace(-1, 1, 9), torch.full((9,), NAN)),
    ],
)
def test_every_figure_can_be_drawn(figure, tmp_path):
    figure().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_cosines_are_shown_as_they_are():
    cosines = torch.tensor([[1.0, -0.25], [-0.25, 1.0]])
    axes = plots.cosine_matrix(cosines).axes[0]
    assert torch.from_numpy(axes.images[0].get_array().data).equal(cosines.double())
    assert axes.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in axes.texts] == ["1.00", "-0.25", "-0.25", "1.00"]


def test_histogram_counts_what_it_leaves_out():
    axes = plots.histogram(torch.tensor([1.0, 3.0, NAN, float("inf")]), "norm", "Norms").axes[0]
    assert axes.get_title() == "Norms (2 not finite)"
    assert sum(bar.get_height() for bar in axes.patches) == 2
    assert axes.get_legend().get_texts()[0].get_text() == "mean 2"


def test_no_global_state(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plots.cosine_matrix(torch.eye(2))
    assert "matplotlib.pyplot" not in sys.modules


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-gp\[plots\]'"):
        plots.cosine_matrix(torch.eye(2))


def test_theory_draws_the_critical_rates_of_eigenvalues_and_of_a_card(tmp_path, monkeypatch, capsys):
    from lightning_gp.cli import main
    from lightning_gp.theory import critical_outer_lr

    monkeypatch.chdir(tmp_path)
    assert main(["theory", "--eigenvalues", "1", "4", "--output", "own"]) == 0
    assert "1/λ_1 = 0.25" in capsys.readouterr().out
    written = json.loads((tmp_path / "own" / "theory.json").read_text())
    alphas = torch.tensor(written["inner_rates"], dtype=torch.float64)
    for value, label in ((4.0, "λ_1 = 4"), (1.0, "λ_2 = 1")):
        expected = critical_outer_lr(torch.full((len(alphas), 1), value, dtype=torch.float64), alphas)
        assert written["kinds"]["fomaml"][label] == expected.tolist()
    assert written["kinds"]["fomaml"]["inner_critical"] == 0.25
    assert (tmp_path / "own" / "theory.png").stat().st_size > 1000
    card = {"values": {"curvature/eigenvalue_1": 4.0, "curvature/eigenvalue_2": 1.0, "gradients/norm": 3.0}}
    (tmp_path / "diagnose.json").write_text(json.dumps(card))
    assert main(["theory", "--card", "diagnose.json", "--output", "card"]) == 0
    assert json.loads((tmp_path / "card" / "theory.json").read_text()) == written
    both = ["--kind", "maml", "positive_penalty"]
    assert main(["theory", "--eigenvalues", "4", *both, "--inner-steps", "1", "--output", "both"]) == 0
    kinds = json.loads((tmp_path / "both" / "theory.json").read_text())["kinds"]
    expected = critical_outer_lr(torch.full((len(alphas), 1), 4.0, dtype=torch.float64), alphas, "positive_penalty")
    assert kinds["positive_penalty"]["λ_1 = 4"] == expected.tolist()
    assert [kind["inner_critical"] for kind in kinds.values()] == [None, None]  # they keep their minimum at any α
