"""Preloader: imports a module's dependencies once, then forks a process for each requested start.

Run it as `python -m tests.support.common.preloader MODULE SOCKET_FD`.

A service spends nearly all of its start on imports. A forked process has them done and is otherwise like `python -m MODULE`: the
module runs as `__main__`, with its own arguments, environment, folder and output, and ends as the interpreter ends. Only the seed
of string hashes is the same in all forked processes.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 1 << 20


def serve(module: str, requests: socket.socket) -> Mapping[str, Any] | None:
    """Answers requests until the requesting process ends, then returns None. In a forked process, returns that process's request."""
    requests.send(b"{}")
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 2)
        if not message:
            return None
        request = json.loads(message)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            pid = os.fork()
            if pid == 0:
                requests.close()
                for number, file in zip((1, 2), files, strict=True):
                    os.dup2(file, number)
                    os.close(file)
                return {"module": module, **request}
            for file in files:
                os.close(file)
            answer = {"pid": pid}
        requests.send(json.dumps(answer).encode())


def become(arguments: Sequence[str], environment: Mapping[str, str], folder: str, module: str) -> None:
    """Turns this process into `python -m module arguments` with this environment and folder."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def preload(module: str) -> str:
    """Imports a module, or the `__main__` of a package, and unloads it again, so that only its imports stay. Returns `module`."""
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no {module}"
    name = module if spec.submodule_search_locations is None else f"{module}.__main__"
    importlib.import_module(name)
    del sys.modules[name]
    threads = Path("/proc/self/task")
    # A fork copies only the thread that makes it, so a second thread would be lost.
    assert len(list(threads.iterdir())) == 1, "an import has started a thread"
    gc.collect()
    gc.freeze()
    return module


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as requests:
        wanted = serve(preload(sys.argv[1]), requests)
    if wanted:
        become(**wanted)
