"""A map computed by an executor has the file of a serial run, byte for byte, however it went."""

import itertools
import pickle
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from lightning_gp.trainability import TrainabilityResult, executors, storage
from tests.trainability import problems


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a serial run."""
    path = tmp_path_factory.mktemp("whole") / "map.jsonl"
    problems.tiny_map().run(path, progress=False)
    return path.read_bytes()


class Elsewhere(Executor):
    """Gets copies, as another process does, and dies after some blocks."""

    def __init__(self, lives=10**6):
        self.lives, self.closed, self.futures = lives, False, []

    def submit(self, function, /, *arguments):
        future = Future()
        self.futures.append(future)
        try:
            self.lives -= 1
            if self.lives < 0:
                raise BrokenExecutor("a worker died")
            future.set_result(pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments))))))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.closed = True


@pytest.fixture
def elsewhere(monkeypatch):
    places = itertools.count()
    monkeypatch.setattr(executors, "_here", lambda: ("machine", next(places)))
    return Elsewhere


def test_a_pool_of_processes_writes_the_serial_file_and_stays_open(whole, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        problems.tiny_map().run(tmp_path / "map.jsonl", progress=False, executor=pool)
        assert (tmp_path / "map.jsonl").read_bytes() == whole
        assert pool.submit(abs, -1).result() == 1


def test_what_dies_midway_goes_on_where_it_was(whole, tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(executors, "BLOCKS", 8)  # of 4 cells
    path = tmp_path / "map.jsonl"
    with pytest.raises(BrokenExecutor):
        problems.tiny_map().run(path, progress=False, executor=elsewhere(lives=2))
    assert len(TrainabilityResult.load(path).cells) in (0, 4, 8)  # what came before the news of the death
    executor = elsewhere()
    problems.tiny_map().run(path, progress=False, executor=executor)
    assert path.read_bytes() == whole
    assert not executor.closed


def test_a_process_builds_the_map_once(elsewhere, monkeypatch):
    loads, built = pickle.loads, []
    monkeypatch.setattr(executors.pickle, "loads", lambda content: built.append(1) or loads(content))
    monkeypatch.setattr(executors, "_built", {})
    executor = elsewhere()
    executor.submit = lambda function, *arguments: _future(function(*arguments))
    problems.tiny_map().run(progress=False, executor=executor)
    problems.tiny_map().run(progress=False, executor=executor)
    assert len(built) == 1
    problems.tiny_map(iterations=5).run(progress=False, executor=executor)
    assert len(built) == 2


def _future(value):
    future = Future()
    future.set_result(value)
    return future


def test_lambdas_travel(elsewhere):
    pytest.importorskip("cloudpickle")
    trainability = problems.tiny_map(optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr), iterations=2)
    assert trainability.run(progress=False, executor=elsewhere()).complete


def test_what_cannot_be_pickled_is_named(elsewhere):
    generator = (number for number in range(3))
    trainability = problems.tiny_map(optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr * next(generator)))
    trainability.header = problems.tiny_map().header
    with pytest.raises(ValueError, match=r"can be pickled"):
        trainability.run(progress=False, executor=elsewhere())


def test_blocks_hold_one_seed_and_keep_the_order(monkeypatch):
    cells = [storage.Cell(seed, 0.1, beta) for seed in (0, 1) for beta in range(5)]
    monkeypatch.setattr(executors, "BLOCKS", 10)
    found = executors.blocks(cells)
    assert [len(block) for block in found] == [2, 2, 1, 2, 2, 1]
    assert [cell for block in found for cell in block] == cells


def test_another_version_is_refused(elsewhere, monkeypatch, tmp_path):
    found = executors.versions()
    answers = iter([found])
    monkeypatch.setattr(executors, "versions", lambda: next(answers, {**found, "torch": "1.0"}))
    with pytest.raises(RuntimeError, match=r"A worker has .*'torch': '1\.0'"):
        problems.tiny_map().run(tmp_path / "map.jsonl", progress=False, executor=elsewhere())
    assert not TrainabilityResult.load(tmp_path / "map.jsonl").cells


def test_threads_of_this_process_are_refused():
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="ThreadPoolExecutor computes in threads"):
        problems.tiny_map().run(progress=False, executor=pool)
    with pytest.raises(ValueError, match="computes in threads of this process"):  # also what does not say so
        problems.tiny_map().run(progress=False, executor=Elsewhere())
    with pytest.raises(ValueError, match="workers=2 with an executor"):
        problems.tiny_map().run(progress=False, executor=Elsewhere(), workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["loky", "distributed"])
def test_executors_of_other_libraries(whole, tmp_path, library):
    module = pytest.importorskip(library)
    if library == "loky":
        executor, close = module.get_reusable_executor(max_workers=2), module.get_reusable_executor().shutdown
    else:
        client = module.Client(n_workers=2, threads_per_worker=2, dashboard_address=None)
        executor, close = client.get_executor(), client.close
    try:
        problems.tiny_map().run(tmp_path / "map.jsonl", progress=False, executor=executor)
    finally:
        close()
    assert (tmp_path / "map.jsonl").read_bytes() == whole
