"""Run generated Python code apart from this process, within limits.

What this is: a process of its own in an empty temporary folder, without environment variables or
input, with limits on processor time, memory, file size, open files and new processes, in its own
network and process namespaces where the system allows (Linux, util-linux' ``unshare``). What it is
not: a wall against an attacker. The code can read what the user can read, and write there.
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
FILE_SIZE = 1 << 20  # bytes of each file written, the output included

# Sets the limits in the new process, then becomes the program: no code of ours runs beside it.
LAUNCHER = """
import os, resource, sys
for name, value in zip(("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"), map(int, sys.argv[2:])):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
os.execv(sys.executable, [sys.executable, "-I", sys.argv[1]])
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
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="dnd-fast-", ignore_cleanup_errors=True) as folder:
        script, output = Path(folder) / "program.py", Path(folder) / "output"
        script.write_text(f"{program}\n\nprint()\nprint('{token}')\n", encoding="utf-8")
        limits = (int(seconds) + 1, memory, FILE_SIZE, 64, 1, 0)
        command = [sys.executable, "-I", "-c", LAUNCHER, str(script), *map(str, limits)]
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*namespaces(), *command],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            finally:
                _kill(process)
        last = output.read_bytes().rstrip().rpartition(b"\n")[2]
        return process.returncode == 0 and last == token.encode()


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
