"""Pictures of episodes, and the command that looks at data."""

import numpy as np
import pytest
from PIL import Image

from lightning_gp.cli import main
from lightning_gp.commands.data import data_module
from lightning_gp.datamodules import ClassFolderDataModule, SinusoidDataModule
from tests.datamodules.image_cases import colour


@pytest.fixture
def config(tmp_path, tree):
    path = tmp_path / "run.yaml"
    path.write_text(
        "seed_everything: 1\ntrainer:\n  max_epochs: 3\nmodel: NoSuchModule\n"
        f"data:\n  class_path: ClassFolderDataModule\n  init_args:\n    root: {tree}\n    ways: 2\n    queries: 3\n"
        "    image_size: 8\n"
    )
    return path


def test_an_episode_is_drawn_class_by_class(tree, tmp_path):
    data = ClassFolderDataModule(tree, ways=2, shots=1, queries=2, image_size=8, mean=[0.5] * 3, std=[0.1] * 3)
    figure = data.show_episode("val", 1, tmp_path / "episode.png")
    support, query = figure.axes
    assert (support.get_title(), query.get_title()) == ("support", "query")
    assert "val episode 1" in figure.get_suptitle()
    labels = [text.get_text() for text in support.get_yticklabels()]
    assert sorted(labels) == ["val/dog", "val/elk"]
    pictures = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [picture.shape for picture in pictures] == [(24, 12, 3), (24, 24, 3)]
    seen = set()
    for row, name in enumerate(labels):
        label = {"val/dog": 3, "val/elk": 4}[name]
        for picture in pictures:
            for column in range(picture.shape[1] // 12):
                pixel = picture[12 * row + 6, 12 * column + 6] * 255
                number = next(n for n in range(4) if np.allclose(pixel, colour(label, n), atol=0.01))
                seen.add((label, number))
    assert len(seen) == 6  # no image twice
    with Image.open(tmp_path / "episode.png") as image:
        assert image.width > 300


def test_check_reports_classes_images_and_cache(config, tree, capsys):
    assert main(["data", "check", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert f"ClassFolderDataModule: {tree}" in shown
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert lines["train"][1:3] == ["3", "12"]
    assert lines["val"][1:] == ["2", "8", "val/dog", "(4)", "val/dog", "(4)", "0"]
    assert "8×8, colour" in shown
    assert "not built yet" in shown
    assert "0 of 28 images" in shown
    assert not list(tree.glob("*.npy"))
    ClassFolderDataModule(tree, image_size=8).prepare_data()
    main(["data", "check", "--config", str(config)])
    assert "not built yet" not in capsys.readouterr().out


def test_check_names_every_broken_file_and_fails(config, tree, capsys):
    for name in ("train/bee/1.png", "test/gnu/3.png"):
        (tree / name).write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", "--config", str(config)])
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "2 of 28 images" in shown
    assert "bee/1.png is no readable image" in shown
    assert "gnu/3.png is no readable image" in shown


def test_show_draws_with_options_of_the_data(config, tmp_path, capsys):
    output = tmp_path / "shown.png"
    words = ["data", "show", "--config", str(config), "--output", str(output), "--split", "test", "--index", "2"]
    assert main([*words, "--data.ways=2"]) == 0
    with Image.open(output) as image:
        assert image.width > 100
    assert data_module(config, ["--data.init_args.shots=2"]).shots == 2
    assert data_module(config).queries == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: X\n", "has no section `data`"),
        ("data: [", "is no YAML file"),
        ("data: NoSuchData\n", "the section `data` does not fit"),
        ("data:\n  class_path: OmniglotDataModule\n  init_args:\n    shot: 1\n", "the section `data` does not fit"),
    ],
)
def test_bad_configs_are_named(tmp_path, text, message, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["data", "check", "--config", str(path)]) == 2
    shown = capsys.readouterr().err
    assert f"bad.yaml {message}" in shown or f"bad.yaml: {message}" in shown


def test_what_has_no_images_is_refused(tmp_path, capsys):
    path = tmp_path / "sinusoid.yaml"
    path.write_text("data: SinusoidDataModule\n")
    for command in ("check", "show"):
        assert main(["data", command, "--config", str(path)]) == 2
        assert "SinusoidDataModule has no image" in capsys.readouterr().err
    assert type(data_module(path)).__name__ == SinusoidDataModule.__name__
    assert main(["data", "check", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
