"""``lightning-gp map``, ``map merge`` and ``map plot``."""

import pytest
import yaml

from lightning_gp.cli import main

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
        (["--map.optimizer=lion"], "optimizer='lion'"),
    ],
)
def test_refusals_are_one_line(config, tmp_path, capsys, words, message):
    output = tmp_path / "map.jsonl"
    assert main([*config, f"--map.output={output}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()
