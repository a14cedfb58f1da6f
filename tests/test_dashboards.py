"""The W&B workspace, built and serialised without an account or a network."""

import json
import re
import sys

import pytest

from lightning_gp import dashboards

pytest.importorskip("wandb_workspaces", exc_type=ImportError)


def serialised(workspace):
    """What would be sent to W&B."""
    return json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))


def test_workspace_has_the_sections_in_order():
    content = serialised(dashboards.build("me", "maml"))
    assert (content["entity"], content["project"]) == ("me", "maml")
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    names = ["training", "adaptation", "gradients", "linearity", "curvature", "learning rates"]
    assert [section["name"] for section in sections][: len(names)] == names
    # Then those of keys that no panel above shows; callbacks that other tests define are known, too.
    assert {section["name"] for section in sections[len(names) :]} <= {
        key.name.partition("/")[0].replace("_", " ") for kind in dashboards.callback_classes() for key in kind.keys
    }
    assert all(section["isOpen"] and section["panels"] for section in sections)


def test_every_curve_is_drawn_over_the_global_step():
    content = serialised(dashboards.build("me", "maml"))
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    curves = [config for config in panels if "mediaKeys" not in config]
    assert curves
    for config in curves:
        assert config["xAxis"] == "trainer/global_step"
        assert config["useMetricRegex"]
        re.compile(config["metricRegex"])


def panels_of(key):
    return [
        (section, panel.title)
        for section, panels in dashboards.sections().items()
        for panel in panels
        if dashboards.shows(panel, key)
    ]


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("train/loss", "training"),
        ("val/loss", "training"),
        ("val/accuracy", "training"),
        ("val/loss_step_0", "adaptation"),
        ("val/accuracy_step_10", "adaptation"),
        ("gradients/norm", "gradients"),
        ("gradients/norm/head", "gradients"),
        ("gradients/norm_1/head", "gradients"),
        ("gradients/norm_histogram", "gradients"),
        ("gradients/cosine", "gradients"),
        ("gradients/cosine_min", "gradients"),
        ("gradients/inner_product", "gradients"),
        ("val/gradients/norm", "gradients"),
        ("gradients/cosine_matrix", "gradients"),
        ("train/phase_loss", "training"),
        ("linearity/phase_consistency", "linearity"),
        ("linearity/prototype_cosine", "linearity"),
        ("second/linearity/amplitude_consistency", "linearity"),
        ("curvature/eigenvalue_1", "curvature"),
        ("curvature/residual_12", "curvature"),
        ("curvature/trace_standard_error", "curvature"),
        ("curvature/spectral_density", "curvature"),
        ("learning_rates/inner", "learning rates"),
        ("learning_rates/outer_critical", "learning rates"),
        ("learning_rates/edge", "learning rates"),
    ],
)
def test_each_key_has_exactly_one_panel(key, section):
    found = panels_of(key)
    assert len(found) == 1, found
    assert found[0][0] == section


def test_every_declared_key_has_exactly_one_panel():
    for callback in dashboards.callback_classes():
        for key in callback.keys:
            name = key.name.replace("<i>", "2").replace("<group>", "head")
            assert len(panels_of(name)) == 1, name


def test_a_callback_of_ones_own_is_named_at_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_probe.py").write_text(
        "from lightning_gp.callbacks import Probe\nfrom lightning_gp.contracts import Key\n"
        "class Own(Probe):\n    keys = (Key('own/number_<i>', '[0, 1]', 'a number'), Key('own/map', '', 'picture'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--entity", "me", "--project", "maml", "--dry-run", "--callback"]
    dashboards.main([*options, "own_probe.Own"])
    printed = capsys.readouterr().out
    assert re.search(r"own/number_<i> +\^\.\*own/number_\\d\+\$", printed)
    assert re.search(r"own/map +own/map", printed)
    with pytest.raises(ValueError, match=r"callback='own_probe.Other' names nothing"):
        dashboards.main([*options, "own_probe.Other"])


def test_dry_run_prints_the_workspace_and_needs_no_account(capsys, monkeypatch):
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", lambda *_: pytest.fail("must not be saved"))
    dashboards.main(["--entity", "me", "--project", "maml", "--dry-run"])
    printed = capsys.readouterr().out
    assert "me/maml" in printed
    for section, panels in dashboards.sections().items():
        assert section in printed
        assert all(panel.title in printed for panel in panels)


def test_saving_prints_the_address(capsys, monkeypatch):
    def save(self):
        self._internal_name = "nw-abc"

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", save)
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.url", "https://example.org/me/maml")
    dashboards.main(["--entity", "me", "--project", "maml"])
    assert capsys.readouterr().out == "Saved: https://example.org/me/maml\n"


def test_a_refusal_by_wandb_names_the_way_out(monkeypatch):
    from wandb.errors import UsageError

    def save(self):
        raise UsageError("No API key configured.")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", save)
    with pytest.raises(ValueError, match=r"No API key configured.*--dry-run"):
        dashboards.main(["--entity", "me", "--project", "maml"])


@pytest.mark.parametrize(("entity", "project"), [("", "maml"), ("me", " ")])
def test_empty_names_are_refused(entity, project):
    with pytest.raises(ValueError, match="is empty; name the W&B"):
        dashboards.build(entity, project)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-gp\[dashboards\]'"):
        dashboards.build("me", "maml")
