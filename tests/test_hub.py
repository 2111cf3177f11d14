"""Names on the hub."""

from contextlib import suppress

import pytest

from dnd_fast import Generator, InvalidInput, TextEncoder, load_base
from dnd_fast import generator_config as generator_config_module
from dnd_fast.hub import split_revision


def test_revisions(tmp_path, monkeypatch):
    assert split_revision("org/name@v1.0") == ("org/name", "v1.0")
    assert split_revision("org/name") == ("org/name", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@home").mkdir()
    assert split_revision("me@home") == ("me@home", None)
    assert split_revision("me@home@v1") == ("me@home", "v1")


def test_a_generators_files_are_of_one_commit(good, monkeypatch):
    """By its name, or by an argument."""
    asked = []

    def download(name, **options):
        asked.append((name, options["revision"]))
        return str(good.folder / "generator")

    monkeypatch.setattr(generator_config_module, "snapshot_download", download)
    for name, options in (("a/b", {}), ("a/b@v1", {}), ("a/b", {"revision": "v2"})):
        Generator.from_pretrained(name, **options)
    assert asked == [("a/b", None), ("a/b", "v1"), ("a/b", "v2")]


def test_revisions_reach_transformers(monkeypatch):
    """Encoders and bases."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

    asked = []

    def refuse(*arguments, **options):
        name = arguments[0] if arguments else options["pretrained_model_name_or_path"]
        asked.append((name, options["revision"], options["trust_remote_code"]))
        raise OSError("offline")

    def describe(*arguments, **options):
        with suppress(OSError):
            refuse(*arguments, **options)
        return {}, {}

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", describe)
    for kind in (AutoConfig, AutoModel, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", refuse)
    with pytest.raises(OSError, match="offline"):
        load_base("a/base@v1")
    with pytest.raises(InvalidInput, match="no usable text encoder at 'a/encoder'"):
        TextEncoder.from_pretrained("a/encoder@v2#layer=-1")
    assert asked == [("a/base", "v1", False)] * 2 + [("a/encoder", "v2", False)] * 2
