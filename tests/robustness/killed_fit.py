"""Kills ``lightning-gp fit`` again and again, resumes it each time, and reports how each attempt ended.

Run as a process: ``python -m tests.robustness.killed_fit FOLDER KILLS SEED [--processes]``. Attempts are forked from
this process, which saves the seconds that imports take; with ``--processes`` each is a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lightning_gp.cli import main

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


def start(words: list[str], log: Path, processes: bool) -> int:
    """The process id of ``lightning-gp`` with these words."""
    if processes:
        with log.open("w") as file:
            command = [sys.executable, "-m", "lightning_gp.cli", *words]
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT).pid
    pid = os.fork()
    if pid:
        return pid
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 70  # an error of its own, whose traceback is in the log
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait(pid: int, seconds: float, journal: Path, until: int) -> int | None:
    """The exit status, or None if it still runs when the journal has ``until`` lines or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and lines(journal) < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def kill_until_done(folder: Path, kills: int, seed: int, processes: bool) -> list[dict[str, object]]:
    """How each attempt ended; the last one finishes."""
    rng = random.Random(seed)
    journal = folder / "journal.jsonl"
    words = ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"]
    attempts: list[dict[str, object]] = []
    for attempt in itertools.count():
        pid = start(words, folder / f"attempt-{attempt}.log", processes)
        before, sent = lines(journal), None
        killed = sum(entry["signal"] is not None for entry in attempts)
        if killed < kills:
            until = before + rng.randint(1, 16)
            # One in five is killed before it trains: while it imports, builds or loads.
            early = rng.random() < 0.2
            seconds = rng.uniform(0, 3.0 if processes else 0.3) if early else 600.0
            status = wait(pid, seconds, journal, until)
            if status is None:
                time.sleep(rng.uniform(0, 0.02))
                sent = SIGNALS[killed % len(SIGNALS)]
                os.kill(pid, sent)
        else:
            status = None
        if status is None:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        attempts.append({"signal": sent, "status": status, "lines": lines(journal) - before})
        if status == 0 or attempt > 3 * kills + 3:
            return attempts
    raise AssertionError("not reached")


if __name__ == "__main__":
    import lightning_gp.commands.training  # noqa: F401  # before the first fork

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would forks
    folder, kills, seed = sys.argv[1:4]
    print(json.dumps(kill_until_done(Path(folder), int(kills), int(seed), "--processes" in sys.argv)))
