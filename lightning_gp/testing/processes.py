"""A function on several processes of this machine, which find each other as those of a distributed training do."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lightning_gp import checks

Result = TypeVar("Result")


def on_processes(function: Callable[[int], Result], count: int = 2, timeout: float = 600.0) -> list[Result]:
    """``[function(0), …, function(count − 1)]``, each called in a process of its own, all joined by gloo on the CPU.

    A ``Trainer(devices=count, strategy="ddp", accelerator="cpu")`` inside ``function`` is one of theirs. On Linux the
    processes are forks of this one, so that ``function`` may be a closure; elsewhere, and once CUDA is in use, it must
    be importable.

    Args:
        function: of the rank; its result must be picklable.
        count: number of processes, at least 1.
        timeout: seconds until all are given up.

    Raises:
        RuntimeError: with the traceback of the first process that failed, or if time was up.

    Example::

        def total(rank):
            value = torch.tensor(float(rank))
            torch.distributed.all_reduce(value)
            return value.item()

        on_processes(total)  # [1.0, 1.0]
    """
    checks.whole(1, count=count)
    checks.number(above=0, timeout=timeout)
    forks = sys.platform == "linux" and not torch.cuda.is_initialized()
    context: Any = mp.get_context("fork" if forks else "spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_run, args=(rank, count, port, function, sender), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    try:
        with warnings.catch_warnings():
            # The forks use one thread each, and none of the parent's.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*", category=DeprecationWarning)
            for process in processes:
                process.start()
        for _, sender in pipes:
            sender.close()
        return _collected([receiver for receiver, _ in pipes], timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collected(receivers: list[Connection], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = [each for rank, each in enumerate(receivers) if rank not in results]
        ready = wait(waiting, timeout)
        if not ready:
            raise RuntimeError(f"{len(waiting)} of {len(receivers)} processes gave no answer in {timeout:g} s.")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = receivers.index(receiver)
            try:
                worked, results[rank] = pickle.loads(receiver.recv_bytes())
            except EOFError:
                worked, results[rank] = False, "it ended without a word"
            if not worked:
                raise RuntimeError(f"Process {rank} of {len(receivers)} failed:\n{results[rank]}")
    return [results[rank] for rank in range(len(receivers))]


def _run(rank: int, count: int, port: int, function: Callable[[int], Result], sender: Connection) -> None:
    torch.set_num_threads(1)  # the threads of a fork's parent are not there
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        dist.init_process_group("gloo", rank=rank, world_size=count)
        answer = pickle.dumps((True, function(rank)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(answer)
    sender.close()
