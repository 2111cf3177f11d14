"""Run generated Python code apart from this process, within limits.

What this is: a process of its own in an empty temporary folder, without environment variables or
input, with limits on processor time, memory, file size, open files and new processes, in its own
network and process namespaces where the system allows (Linux, util-linux' ``unshare``). What it is
not: a wall against an attacker. The code can read what the user can read, and write there; it
reaches servers behind Unix sockets that are files; and the limit of processes does not bind root.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 10.0
MEMORY = 1 << 30  # bytes of address space
FILE_SIZE = 1 << 20  # bytes of each file written

# Runs the program as __main__, and says back what it was told only where that comes to its end.
# What it was told is in no file, argument, environment variable or stream that the program has.
RUNNER = """
import os, resource, sys, types

def run(script, limits, write=os.write, streams=(0, 1)):
    told, report = os.read(0, 64), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(nothing, stream)
    os.close(nothing)
    with open(script, encoding="utf-8") as file:
        code = compile(file.read(), script, "exec")
    for name, value in zip(("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"), limits):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__, sys.argv = script, [script]
    exec(code, vars(main))
    write(report, told)

run(sys.argv[1], map(int, sys.argv[2:]))
"""


def succeeds(program: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a Python program runs to its end, without an exception and within the limits.

    A program that exits early, with whatever status, has not run to its end.

    Args:
        program: Source of the program.
        seconds: Limit of processor time, and of time on the clock.
        memory: Limit of the address space in bytes.

    Raises:
        OSError: no process can be started, or the temporary folder cannot be written.
    """
    token = secrets.token_bytes(16)
    with tempfile.TemporaryDirectory(prefix="dnd-fast-", ignore_cleanup_errors=True) as folder:
        script = Path(folder) / "program.py"
        script.write_text(program, encoding="utf-8")
        limits = (int(seconds) + 1, memory, FILE_SIZE, 64, 1, 0)
        process = subprocess.Popen(
            [*namespaces(), sys.executable, "-I", "-c", RUNNER, str(script), *map(str, limits)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdout as report:
            with process.stdin as told, contextlib.suppress(BrokenPipeError):
                told.write(token)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            finally:
                _kill(process)
            os.set_blocking(report.fileno(), False)  # a process that got away may hold it open
            return process.returncode == 0 and report.read() == token


@functools.cache
def namespaces() -> tuple[str, ...]:
    """Return the command that starts others without a network; empty where there is none."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: a program may have left others behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
