"""Import a module's dependencies once, then fork a process for each requested start.

Run as `python -m tests.support.common.preloader MODULE`.

A service spends nearly all of its start on imports. What is forked from here has them done, and is otherwise what
`python -m MODULE` would be: the module runs anew as `__main__`, with its own arguments, environment, folder and output, and ends
as the interpreter ends. Only the seed of string hashes is the same in all of them.
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


def serve(module: str, asked: socket.socket) -> Mapping[str, Any] | None:
    """Answers until the asker is gone, then None; in a forked process, what that one was asked to be."""
    asked.send(b"{}")
    while True:
        message, files, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, 2)
        if not message:
            return None
        request = json.loads(message)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            pid = os.fork()
            if pid == 0:
                asked.close()
                for number, file in zip((1, 2), files, strict=True):
                    os.dup2(file, number)
                    os.close(file)
                return {"module": module, **request}
            for file in files:
                os.close(file)
            answer = {"pid": pid}
        asked.send(json.dumps(answer).encode())


def become(arguments: Sequence[str], environment: Mapping[str, str], folder: str, module: str) -> None:
    """Is `python -m module` from here on."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def preload(module: str) -> str:
    """Does the imports of a package's `__main__`, or of a module, and forgets the module itself, which is to run anew; its name."""
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no {module}"
    name = module if spec.submodule_search_locations is None else f"{module}.__main__"
    importlib.import_module(name)
    del sys.modules[name]
    threads = Path("/proc/self/task")
    # A fork copies the thread that makes it and no other.
    assert len(list(threads.iterdir())) == 1, "an import has started a thread"
    gc.collect()
    gc.freeze()
    return module


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as asker:
        wanted = serve(preload(sys.argv[1]), asker)
    if wanted:
        become(**wanted)
