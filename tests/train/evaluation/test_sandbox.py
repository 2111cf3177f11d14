"""Generated programs: kept within limits, and successful only where they come to their end."""

import os
import time

import pytest

from dnd_fast.train.evaluation.sandbox import namespaces, succeeds


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "x = bytearray(3 << 30)",
        "while True: print('x' * 1000)",
        "input()",
        "open('x', 'wb').write(b'0' * (2 << 20))",
        "files = [open(__file__) for _ in range(100)]",
        "1 / 0",
        "def f(:",
    ],
)
def test_the_sandbox_ends_it(code):
    start = time.perf_counter()
    assert not succeeds(code, seconds=1)
    assert time.perf_counter() - start < 5


def test_the_sandbox_is_apart(tmp_path):
    """No environment, an empty folder of its own, nothing left behind."""
    os.environ["A_SECRET"] = "42"
    try:
        assert succeeds("import os; assert 'A_SECRET' not in os.environ")
    finally:
        del os.environ["A_SECRET"]
    record = tmp_path / "folder"
    assert succeeds(f"import os\nopen({str(record)!r}, 'w').write(os.getcwd())\nopen('x', 'w')")
    assert not os.path.exists(record.read_text())


def test_no_network():
    if not namespaces():
        pytest.skip("this system lets no user make a network namespace")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = (
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        )
        exec(connect)  # from here it works
        assert not succeeds(connect)


@pytest.mark.parametrize(
    "code",
    [
        "x = 1",
        "print('no newline', end='')",
        "import sys; sys.stdout = sys.stderr = None; print = exit = len = None",
        "import os; os.write = None; os.closerange(3, 3)",
        "if __name__ == '__main__': x = 1\nassert x == 1",
        "import __main__; y = 2\nassert __main__.y == 2",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\nassert A().x",
        "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))",
        "import inspect\ndef f(): return 1\nassert 'return 1' in inspect.getsource(f)",
        "def f(): return g()\ndef g(): return 1\nassert f() == 1",
        "import sys; assert len(sys.argv) == 1",
        "x = 'é\u2028'",
    ],
)
def test_programs_that_come_to_their_end(code):
    """Run as a file is, whatever they print or replace."""
    assert succeeds(code)


FOUND = """
import glob, os, sys
def found():
    for name in [__file__, *glob.glob("/proc/self/*"), *glob.glob("*")]:
        try:
            yield open(name, "rb").read(1 << 16)
        except OSError:
            pass
    for descriptor in range(64):
        try:
            os.set_blocking(descriptor, False)
            yield os.read(descriptor, 1 << 16)
        except OSError:
            pass
    yield repr((globals(), vars(sys), dict(os.environ))).encode()
pieces = list(found())
"""


@pytest.mark.parametrize(
    "report",
    [
        "",
        "for fd in range(64):\n    try: os.write(fd, b'done')\n    except OSError: pass",
        # The end of the program's own file was the token once.
        'print(pieces[0].decode().rsplit("print(\'", 1)[-1][:32], flush=True)',
        "for fd in range(1, 64):\n    try: os.write(fd, pieces[0][-16:])\n    except OSError: pass",
    ],
)
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "raise SystemExit"])
def test_a_program_cannot_say_that_it_came_to_its_end(report, end):
    """By what it finds in files, arguments, environment, streams or its module; it exits early."""
    assert not succeeds(f"{FOUND}{report}\n{end}\nassert False")


def test_what_tells_the_end_is_nowhere_to_be_found(tmp_path, monkeypatch):
    """In none of these places is the token itself."""
    token = b"0123456789abcdef"
    monkeypatch.setattr("secrets.token_bytes", lambda size: token)
    record = tmp_path / "found"
    assert succeeds(f"{FOUND}open({str(record)!r}, 'wb').write(b''.join(pieces))")
    assert len(record.read_bytes()) > 1000
    assert token not in record.read_bytes()
    assert token not in FOUND.encode()
