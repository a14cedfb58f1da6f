"""What the comparisons share: trials spread over processes, and what is said about them."""

from dataclasses import dataclass, replace

from lightning_gp.runs import trials
from lightning_gp.runs.command import spelled
from lightning_gp.runs.trials import changed_from, smallest, spelled_out, spread
from tests.pools import InProcess


@dataclass(frozen=True)
class Settings:
    inner_steps: int = 3
    lr: float = 0.1


def test_results_come_in_the_order_of_the_jobs(monkeypatch, capsys):
    monkeypatch.setattr(trials, "ProcessPoolExecutor", InProcess)
    rows = spread(lambda a, b: {"sum": a + b}, [(3, 4), (1, 1), (2, 5)], 1, lambda row: f"sum {row['sum']}")
    assert [row["sum"] for row in rows] == [7, 2, 7]
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(" (")[0] for line in lines) == ["sum 2", "sum 7", "sum 7"]
    assert [line.split(" (")[1].split(",")[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"]


def test_what_is_not_finite_comes_last_and_the_first_of_equals_is_taken():
    rows = [{"loss": None, "place": 0}, {"loss": 2.0, "place": 1}, {"loss": 2.0, "place": 2}, {"loss": 1.0, "place": 3}]
    assert smallest(rows, "loss")["place"] == 3
    assert smallest(rows, "loss", -1)["place"] == 1
    assert smallest(rows[:1], "loss")["place"] == 0


def test_quick_leaves_what_the_user_chose():
    given = replace(Settings(), lr=0.5)
    assert changed_from(Settings(), given, {"inner_steps": 1, "lr": 0.9}) == {"inner_steps": 1}


def test_the_command_that_is_recorded_gives_the_settings_again():
    text = spelled_out("run", Settings(5, 0.1), Settings(), True, (0, 1))
    options = {"inner_steps": int, "lr": float, "quick": bool, "seeds": list[int]}
    words, unknown = spelled(text.split()[1:], options)
    assert words == ["--quick=true", "--seeds=[0,1]", "--inner_steps=5"]
    assert not unknown
