"""``lightning-gp map``, ``map merge`` and ``map plot``."""

import pytest
import yaml

from lightning_gp.cli import main
from lightning_gp.trainability import TrainabilityResult

CONFIG = {
    "model": {
        "class_path": "lightning_gp.MAML",
        "init_args": {
            "network": {"class_path": "lightning_gp.networks.SinusoidMLP", "init_args": {"hidden": [4]}},
            "criterion": "torch.nn.functional.mse_loss",
        },
    },
    "data": {"class_path": "SinusoidDataModule", "init_args": {"environments_per_batch": 3}},
    "map": {"inner_lrs": "0.01,0.1", "outer_lrs": "1e-2:2e-2", "iterations": 3, "seeds": 2},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return ["map", "--config", str(path)]


def test_map_shards_merge_and_plot(config, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    whole, merged, shards = tmp_path / "whole.jsonl", tmp_path / "merged.jsonl", [tmp_path / "1", tmp_path / "2"]
    assert main([*config, f"--map.output={whole}"]) == 0
    assert whole.with_suffix(".png").exists()
    assert whole.with_suffix(".pdf").exists()
    for index, path in enumerate(shards, 1):
        assert main([*config, f"--map.output={path}", "--shard", f"{index}/2"]) == 0
    assert main(["map", "merge", *map(str, shards), "--output", str(merged)]) == 0
    assert merged.read_bytes() == whole.read_bytes()
    assert main(["map", "plot", str(merged), "--eigenvalues", "9", "1", "--output", str(tmp_path / "picture")]) == 0
    assert (tmp_path / "picture.pdf").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inner_lrs=0.2,0.1"], "inner_lrs must ascend"),
        (["--map.outer_lrs=0,1"], "outer_lrs contains 0"),
        (["--shard=5"], "shard='5'"),
        (["--seeds=0"], "seeds=0"),
    ],
)
def test_refusals_are_one_line(config, tmp_path, capsys, words, message):
    output = tmp_path / "map.jsonl"
    assert main([*config, f"--map.output={output}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()


def test_an_unknown_optimizer_is_refused_with_those_there_are(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*config, f"--map.output={tmp_path / 'map.jsonl'}", "--optimizer", "lion"])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "lion" in shown
    assert "'sgd', 'adam'" in shown
    assert not (tmp_path / "map.jsonl").exists()


@pytest.mark.parametrize(("words", "seeds"), [(["--seeds", "1"], [0]), (["--seeds", "3", "4"], [3, 4])])
def test_options_behind_the_config_or_before_it_count_more_than_it(config, tmp_path, words, seeds):
    path = tmp_path / "map.jsonl"
    assert main([config[0], "--iterations=2", *words, f"--map.output={path}", *config[1:]]) == 0
    header = TrainabilityResult.load(path).header
    assert (header["settings"]["iterations"], header["seeds"]) == (2, seeds)


def test_seeds_are_of_weights_and_data_whatever_the_config_seeds(config, tmp_path):
    path, whole = tmp_path / "map.jsonl", tmp_path / "config.yaml"
    whole.write_text(yaml.safe_dump({**CONFIG, "seed_everything": 7}))
    assert main([*config, "--iterations=1", "--inner_lrs=0.1", f"--map.output={path}", "--refine", "4"]) == 0
    starts = TrainabilityResult.load(path).header["settings"]["starts"]
    assert len({start["weights"] for start in starts.values()}) == 2
    assert len({start["first_batch"] for start in starts.values()}) == 2
