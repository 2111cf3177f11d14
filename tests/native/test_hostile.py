"""Damaged and hostile folders, under AddressSanitizer and UBSan: an error that names the thing."""

import copy
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

HUGE = 18446744073709551615


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Packages are unpacked here, and nothing of them stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert not list(folder.iterdir())


def results(sanitized, folders):
    """What comes of each folder; the sanitizers find nothing."""
    result = subprocess.run(
        [sanitized / "tests/native/load_folders", *folders],
        capture_output=True,
        text=True,
        # Not libtorch's own leaks, nor its allocations that are refused.
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(folders)
    return lines


def test_unit_tests_under_sanitizers(sanitized):
    result = subprocess.run([sanitized / "tests/native/unit_test"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


LIES = {
    "format_version": [(2, "format_version is 2, expected 1; export the generator again")],
    "torch": [
        ("2.5.1", 'torch is "2.5.1", expected'),
        (None, "torch is null"),
        ("", 'torch is ""'),
    ],
    "device": [("tpu", 'device is "tpu"'), ("cuda", "cannot be loaded")],
    "cpu_capability": [
        ("AVX1024", 'cpu_capability is "AVX1024"'),
        (None, "cpu_capability is null"),
    ],
    "batch": [
        (0, "batch is 0"),
        (-1, "batch is -1"),
        (HUGE, f"batch is {HUGE}"),
        (1e300, "batch is"),
    ],
    "prompts": [(1 << 31, "the condition has more than 2^40"), ("8", 'prompts is "8"')],
    "length": [(None, "length is null"), ([], "length is []")],
    "width": [(1.5, "width is 1.5"), (True, "width is true")],
    "padding": [(3, "padding is 3"), ("left", 'padding is "left"')],
    "slice_length": [(0, "slice_length is 0")],
    "tokenizer": [
        ([], "tokenizer is of type array"),
        ({}, "no key 'embeddings'"),
        ({"embeddings": 9}, "no key 'clean_text'"),
    ],
    "tensors": [
        ([], "there are no tensors"),
        ({}, "tensors is {}"),
        ([7], "tensors[0] is of type number"),
        ([{"name": "a", "shape": [2, 3], "offset": 1}], "offset is 1, expected 0"),
        ([{"name": "a", "shape": [2, 3], "offset": -6}], "offset is -6"),
        ([{"name": "a", "shape": [2, 3], "offset": HUGE}], f"offset is {HUGE}"),
        ([{"name": "a", "shape": [2, 0], "offset": 0}], "shape is [2,0], expected positive sizes"),
        ([{"name": "a", "shape": [6], "offset": 0}], "shape is [6], expected two sizes"),
        ([{"name": "a", "shape": [1 << 30, 1 << 30], "offset": 0}], "more than 2^40 elements"),
        ([{"name": 3, "shape": [1, 1], "offset": 0}], "name is 3"),
        (
            [
                {"name": "a", "shape": [2, 3], "offset": 0},
                {"name": "b", "shape": [1, 1], "offset": 5},
            ],
            "tensors[1]: offset is 5, expected 6",
        ),
        (
            [{"name": name, "shape": [1, 1], "offset": i} for i, name in enumerate("aa")],
            'tensors[1]: name is "a", expected another than before',
        ),
    ],
    "adapter_config": [
        ("{}", "adapter_config is of type string"),
        (None, "adapter_config is of type"),
    ],
    "files": [
        ({}, "no key 'decoder.pt2'"),
        ({"decoder.pt2": "00", "encoder.pt2": "00", "vocab.txt": "00"}, "decoder.pt2 is damaged"),
        ({"decoder.pt2": 7}, "decoder.pt2 is 7"),
        ("..", "files is of type string"),
    ],
}


def test_manifests_that_lie(sanitized, unloadable):
    folders, messages = [unloadable("true")], ["encoder.pt2 cannot be loaded"]
    for key, lies in LIES.items():
        for value, message in lies:
            folders.append(unloadable(f"{key} {len(folders)}", **{key: value}))
            messages.append(message)
    for found, message in zip(results(sanitized, folders), messages, strict=True):
        assert message in found


def test_path_names_in_a_manifest(sanitized, unloadable, tmp_path):
    """No file but the three is looked at, whatever a manifest names."""
    folder = unloadable("names")
    manifest = json.loads((folder / "generator.json").read_text())
    (tmp_path / "secret").write_text("x")
    folders = []
    for name in ("../secret", "/etc/passwd", "a\0b", "..", ""):
        files = manifest["files"] | {name: hashlib.sha256(b"x").hexdigest()}
        folders.append(unloadable(f"path {len(folders)}", files=files))
    for found in results(sanitized, folders):
        assert "names other files than decoder.pt2, encoder.pt2 and vocab.txt" in found


def test_settings_of_the_tokenizer_that_lie(sanitized, unloadable):
    settings = json.loads((unloadable("true") / "generator.json").read_text())["tokenizer"]
    folders, messages = [], []
    for key, value, message in (
        ("unknown", 10**6, "unknown is 1000000"),
        ("embeddings", 4, "has 18 tokens, more than the encoder has embeddings, 4"),
        ("start", -1, "start is -1"),
        ("max_word_length", 0, "max_word_length is 0"),
        ("lowercase", 1, "lowercase is 1"),
        ("truncation_side", "up", 'truncation_side is "up"'),
        ("special_tokens", {"": 1}, "special_tokens has an empty token"),
        ("special_tokens", {"x": 1 << 40}, "special_tokens: x is"),
        ("special_tokens", {"x": 18}, "x is 18, expected an integer from 0 to 17"),
    ):
        folders.append(unloadable(f"{key} {len(folders)}", tokenizer=settings | {key: value}))
        messages.append(message)
    for found, message in zip(results(sanitized, folders), messages, strict=True):
        assert message in found


def test_manifests_that_are_none(sanitized, unloadable, tmp_path):
    folders, messages = (
        [tmp_path / "no", tmp_path],
        ["there is no exported generator", "generator.json"],
    )
    for content, message in (
        (b"", "not valid JSON"),
        (b"[]", "holds JSON of type array"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 1_000_000, "nests deeper than"),
        (b'{"a":' * 1_000_000, "nests deeper than"),
        (b"\0" * 4096, "not valid JSON"),
        (None, "does not exist or is no file"),
    ):
        folder = unloadable(f"none {len(folders)}")
        file = folder / "generator.json"
        file.unlink()
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content)
        folders.append(folder)
        messages.append(message)
    for name in ("encoder.pt2", "vocab.txt"):
        folder = unloadable(f"without {name}")
        (folder / name).unlink()
        folders.append(folder)
        messages.append(f"{name} does not exist")
    for found, message in zip(results(sanitized, folders), messages, strict=True):
        assert message in found


def test_manifests_changed_at_random(sanitized, unloadable):
    """No change makes anything but an error of this runtime."""
    rng = random.Random(0)
    whole = json.loads((unloadable("whole") / "generator.json").read_text())
    values = [
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        HUGE,
        1e308,
        "",
        "\0",
        "x" * 999,
        [],
        {},
        [[0]],
        {"a": 1},
    ]
    folders = []
    for _ in range(300):
        manifest = copy.deepcopy(whole)
        for _ in range(rng.randrange(1, 4)):
            parent = manifest
            while True:
                keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
                if not keys:
                    break
                key = rng.choice(keys)
                if isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.8:
                    parent = parent[key]
                    continue
                parent[key] = rng.choice(values)
                break
        folder = unloadable(f"random {len(folders)}")
        (folder / "generator.json").write_text(json.dumps(manifest))
        folders.append(folder)
    text = json.dumps(whole).encode()
    for _ in range(100):
        folder = unloadable(f"random {len(folders)}")
        broken = bytearray(text)
        for _ in range(rng.randrange(1, 8)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (folder / "generator.json").write_bytes(broken[: rng.randrange(len(broken)) or None])
        folders.append(folder)
    for found in results(sanitized, folders):
        assert found != "generated"


@pytest.fixture
def packages_changed(tiny, tmp_path):
    """A function that copies an export, changes a package, and has the manifest agree."""

    def make(name, change, honest=False):
        folder = tmp_path / f"{name} {len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny[1], folder)
        file = folder / name
        file.write_bytes(change(file.read_bytes()))
        manifest = json.loads((folder / "generator.json").read_text())
        if not honest:
            manifest["files"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
            (folder / "generator.json").write_text(json.dumps(manifest))
        return folder

    return make


def test_truncated_packages(sanitized, packages_changed):
    folders, messages = [], []
    for name in ("encoder.pt2", "decoder.pt2", "vocab.txt"):
        folders.append(packages_changed(name, lambda whole: whole[: len(whole) // 2], honest=True))
        messages.append(f"{name} is damaged: its SHA-256 is")
    for name in ("encoder.pt2", "decoder.pt2"):
        for share in (0.0, 0.5, 0.9, 0.999):
            folders.append(
                packages_changed(name, lambda whole, s=share: whole[: int(s * len(whole))])
            )
            messages.append(f"{name} cannot be loaded")
    folders.append(packages_changed("vocab.txt", lambda whole: whole + b"more\n"))
    messages.append("vocab.txt has 19 tokens, more than the encoder has embeddings, 18")
    for found, message in zip(results(sanitized, folders), messages, strict=True):
        assert message in found


def test_names_within_a_package_that_lead_out_of_it(sanitized, packages_changed, tmp_path):
    def with_escape(whole):
        file = io.BytesIO(whole)
        with zipfile.ZipFile(file, "a") as package:
            package.writestr("decoder/data/../../../../../../../tmp/escaped", b"x")
        return file.getvalue()

    (found,) = results(sanitized, [packages_changed("decoder.pt2", with_escape)])
    assert "decoder.pt2 cannot be loaded" in found
    assert "tmp/escaped' in it leads out of it" in found
    assert not Path("/tmp/escaped").exists()


def test_the_whole_way_under_sanitizers(sanitized, tiny):
    assert results(sanitized, [tiny[1]]) == ["generated"]


def test_packages_of_another_generator(sanitized, tiny, tmp_path):
    """Compiled code reads as much as it was compiled for, whatever it is given."""
    folders, messages = [], []
    refused = "cannot be loaded: it is of another generator, and takes"
    encoder, decoder = ("up to 8 ids below 18", "conditions 2 x 3 x 20 x 16")
    for key, value, message in (
        ("slice_length", 7, f"encoder.pt2 {refused} {encoder}, not up to 7 ids"),
        ("prompts", 2, f"decoder.pt2 {refused} {decoder}, not conditions 2 x 2 x"),
        ("batch", 1, "not conditions 1 x 3 x 20 x 16"),
        ("length", 19, "not conditions 2 x 3 x 19 x 16"),
        ("width", 8, "not conditions 2 x 3 x 20 x 8"),
        ("tensors", [{"name": "a", "shape": [1, 1], "offset": 0}], "give one tensor [2, 1]"),
    ):
        folder = tmp_path / key
        shutil.copytree(tiny[1], folder)
        manifest = json.loads((folder / "generator.json").read_text())
        (folder / "generator.json").write_text(json.dumps(manifest | {key: value}))
        folders.append(folder)
        messages.append(message)
    for found, message in zip(results(sanitized, folders), messages, strict=True):
        assert message in found
