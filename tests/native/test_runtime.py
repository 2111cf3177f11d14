"""dnd-generate and libdnd_fast against Python's own adapters."""

import re
import resource
import shutil
import subprocess
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dnd_fast import Adapter, Generator
from dnd_fast.files import read_safetensors
from dnd_fast.generator_config import DEMO_MODELS

from ..bad_input import contents

SHORT = [f"take the opening letter of the tool {word}" for word in ("cup", "pan", "axe", "saw")]
TINY = ["reverse rice", "echo the tea in oak, reverses!", "count fig " * 12, "oak", "rice " * 30]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "task.txt"
    file.write_text("\n".join(f"{prompt} number {i}" for i in range(8) for prompt in SHORT))
    return file


def relative_difference(found, expected):
    assert found.keys() == expected.keys()
    a, b = (
        torch.cat([side[key].flatten() for key in expected]).double() for side in (found, expected)
    )
    return ((a - b).norm() / b.norm()).item()


def python(generator, prompts, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generator.generate(prompts, seed=seed)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, -(2**63)])
def test_the_demos_adapters(dnd_generate, demo, prompts, tmp_path, seed):
    """The same prompts for the same seed, the same numbers, and the files' form byte by byte.

    But for the checksum, which is of numbers that rounding makes differ; Python finds it right.
    """
    arguments = ("--generator", demo, "--seed", seed)
    result = dnd_generate(prompts, "--out", tmp_path / "native", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    expected = python(Generator.from_pretrained("demo"), prompts, seed)
    expected.save(tmp_path / "python")
    found = Adapter.load(tmp_path / "native")
    assert relative_difference(found.tensors, expected.tensors) < 1e-5
    assert found.config == expected.config
    heads = [
        (tmp_path / side / "adapter_model.safetensors").read_bytes()
        for side in ("native", "python")
    ]
    size = 8 + int.from_bytes(heads[0][:8], "little")
    native, ours = (re.sub(rb'"sha256":"[0-9a-f]{64}"', b"", head[:size]) for head in heads)
    assert native == ours
    assert len(native) == size - len('"sha256":""') - 64
    read_safetensors(tmp_path / "native" / "adapter_model.safetensors", unchecked="refuse")
    other = python(Generator.from_pretrained("demo"), prompts, seed ^ 1)
    assert relative_difference(other.tensors, expected.tensors) > 1e-2  # the seed matters


def test_the_adapter_loads_in_peft(dnd_generate, demo, prompts, tmp_path):
    assert dnd_generate(prompts, "--generator", demo, "--out", tmp_path / "a").returncode == 0
    base = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base")
    model = PeftModel.from_pretrained(base, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): value for name, value in model.state_dict().items()}
    assert tensors
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value)


@pytest.mark.parametrize("prompts", [TINY, TINY[:3], TINY[:2]], ids=["sampled", "all", "repeated"])
def test_slices_padding_and_transforms(dnd_generate, tiny, tmp_path, prompts):
    """Long prompts are sliced, padding is encoded or not, convolutions run in the transform domain,
    the pass takes more tasks than there are."""
    generator, folder = tiny
    (tmp_path / "task.txt").write_text("\n".join(prompts))
    for seed in range(3):
        arguments = ("--generator", folder, "--out", tmp_path / "native", "--seed", seed)
        result = dnd_generate(tmp_path / "task.txt", *arguments)
        assert result.returncode == 0, result.stderr
        assert ("some are used repeatedly" in result.stderr) == (len(prompts) < 3)
        expected = python(generator, prompts, seed)
        found = Adapter.load(tmp_path / "native")
        assert relative_difference(found.tensors, expected.tensors) < 1e-5


def test_truncation_is_told(dnd_generate, tiny, tmp_path):
    _, folder = tiny
    (tmp_path / "task.txt").write_text("\n".join(TINY[-1:] * 3))
    result = dnd_generate(tmp_path / "task.txt", "--generator", folder, "--out", tmp_path / "a")
    assert result.stderr == (
        "warning: 3 of 3 prompts are longer than 20 tokens and are truncated.\n"
    )


def test_the_c_interface(native, tiny, tmp_path):
    generator, folder = tiny
    command = [native / "tests/native/c_example", folder, tmp_path / "adapter"]
    result = subprocess.run([*command, *TINY[:3]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = python(generator, TINY[:3])
    found = Adapter.load(tmp_path / "adapter")
    assert relative_difference(found.tensors, expected.tensors) < 1e-5
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [(line[0], *map(int, line[1:3])) for line in lines] == [
        (name, *tensor.shape) for name, tensor in expected.tensors.items()
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        1,
        "error: prompts: there are no prompts; give at least one.\n",
    )


def test_several_tasks_from_several_threads(native, tiny, tmp_path):
    """One generator, batches and threads: every adapter is the one that its task has alone."""
    generator, folder = tiny
    command = [native / "tests/native/batches", folder, tmp_path]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    for task, prompts in enumerate((TINY[:3], TINY[1:4], TINY[2:5])):
        expected = python(generator, prompts)
        for thread in range(3):
            found = Adapter.load(tmp_path / f"{thread}-{task}")
            assert relative_difference(found.tensors, expected.tensors) < 1e-5


def test_no_python_library_is_linked(native):
    for file in ("dnd-generate", "libdnd_fast.so"):
        linked = subprocess.run(["ldd", native / file], capture_output=True, text=True).stdout
        assert "libtorch_cpu" in linked
        assert "python" not in "".join(line.split("=>")[0] for line in linked.splitlines()).lower()


BAD_PROMPTS = {
    "task.txt": (b"\n \n", "there are no prompts; give at least one."),
    "latin.txt": (b"caf\xe9", "latin.txt, line 1 is not UTF-8 text: byte 3 begins no character"),
    "surrogate.txt": (b"a\n\xed\xa0\x80", "surrogate.txt, line 2 is not UTF-8 text"),
    "task.jsonl": (b"{", "task.jsonl, line 1: not valid JSON."),
    "key.jsonl": (b'{"text": "a"}', "line 1: there is no key 'prompt' in it."),
    "task.csv": (b"a", "prompts are read from .txt (one a line) or .jsonl (key 'prompt') files."),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_unusable_prompts(dnd_generate, tmp_path, name):
    """They are read first: whatever the generator is, loading it would be for nothing."""
    content, message = BAD_PROMPTS[name]
    (tmp_path / name).write_bytes(content)
    result = dnd_generate(tmp_path / name, "--generator", tmp_path, "--out", tmp_path / "new")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert contents(tmp_path) == {name: content}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PROMPTS is missing."),
        (["a.txt", "--generator", "b"], "--out is missing."),
        (["a.txt", "--out"], "--out has no value."),
        (["a.txt", "b.txt"], "PROMPTS is given twice."),
        (["a.txt", "--verbose", "1"], "there is no option --verbose."),
        (["a.txt", "--generator=b", "--out=c", "--seed=1.5"], "--seed is '1.5', expected an int"),
        (
            ["a.txt", "--generator=b", "--out=c", f"--seed={2**63}"],
            "expected an integer of 64 bits",
        ),
    ],
)
def test_command_lines(dnd_generate, arguments, message):
    result = dnd_generate(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_help(dnd_generate):
    result = dnd_generate("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--generator FOLDER" in result.stdout


def test_an_output_that_cannot_be_written(dnd_generate, tiny, tmp_path):
    (tmp_path / "task.txt").write_text("\n".join(TINY))
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for out, message in (
        (tmp_path / "file", "file is a file; give a folder to write to."),
        (tmp_path / "file" / "adapter", "file/adapter cannot be written"),
        ("/proc/adapter", "/proc/adapter cannot be written"),
    ):
        result = dnd_generate(tmp_path / "task.txt", "--generator", tiny[1], "--out", out)
        assert result.returncode == 1
        assert message in result.stderr
        assert contents(tmp_path) == before


def test_a_full_temporary_folder(dnd_generate, tiny, tmp_path):
    """Packages are unpacked before they are loaded; half of one is not used."""
    (tmp_path / "task.txt").write_text("\n".join(TINY))
    before = contents(tmp_path)
    result = dnd_generate(
        tmp_path / "task.txt",
        *("--generator", tiny[1], "--out", tmp_path / "new"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        env={"TMPDIR": str(tmp_path)},
    )
    assert result.returncode == 1
    assert "encoder.pt2 cannot be loaded" in result.stderr
    assert "File too large" in result.stderr
    assert contents(tmp_path) == before


def test_out_of_memory(dnd_generate, demo, prompts, tmp_path):
    """Whatever the limit, there is a whole adapter, or an error, an exit code and nothing."""
    before = contents(tmp_path)
    codes = set()
    for megabytes in range(400, 800, 40):
        limit = megabytes << 20
        out = tmp_path / str(megabytes)
        limited = {
            "preexec_fn": lambda limit=limit: resource.setrlimit(
                resource.RLIMIT_AS, (limit, limit)
            ),
            "env": {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        }
        if dnd_generate("--help", **limited).returncode:
            continue  # too little for libtorch to be loaded
        arguments = ("--generator", demo, "--out", out)
        result = dnd_generate(prompts, *arguments, **limited)
        codes.add(result.returncode)
        if result.returncode == 0:
            Adapter.load(out)
            shutil.rmtree(out)
        else:
            assert result.returncode == 1, (megabytes, result)  # an error, not a signal
            assert "error: " in result.stderr
        assert contents(tmp_path) == before, megabytes
    assert codes == {0, 1}
