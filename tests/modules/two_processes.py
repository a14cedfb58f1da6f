"""Runs a function on two gloo processes and returns what each of them returned."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank, port, function, queue):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    queue.put((rank, function(rank)))
    dist.barrier()
    dist.destroy_process_group()


def on_two_processes(function):
    """``[function(0), function(1)]``; the function must be importable and return plain Python objects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.spawn(_run, args=(port, function, queue), nprocs=2)
    return [value for _, value in sorted(queue.get() for _ in range(2))]
