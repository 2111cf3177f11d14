"""What a generator is built from, and where its two files are: a folder, or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import read_json, read_safetensors, read_unchanged
from dnd_fast.hub import require_buildable, split_revision
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import ConditionSpec, DecoderSpec, Recipe, from_table

PACKAGE = Path(__file__).parent
DEMO_MODELS = PACKAGE / "demo" / "models"
# Where generators of the package are, and what to do where one is missing.
SHIPPED = {
    "demo": (
        DEMO_MODELS / "generator",
        "install dnd-fast again, or rebuild it: dnd-fast demo --tiny --retrain",
    ),
    "smollm2": (
        PACKAGE / "generators" / "smollm2",
        "install dnd-fast again, or train it as docs/real-model.md says",
    ),
}
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class GeneratorConfig:
    """The content of a generator's ``config.json``."""

    condition: ConditionSpec
    decoder: DecoderSpec
    layout: dict[str, Any]
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> GeneratorConfig:
        """Derive the layout from the recipe's base model.

        Raises:
            InvalidInput: the base's config is unknown to transformers, or unusable.
        """
        from transformers import AutoConfig

        require_buildable(recipe.base.config, f"recipe {recipe.name}")
        try:
            base = AutoConfig.for_model(**recipe.base.config)
            layout = TokenLayout.for_model(
                base,
                recipe.lora.rank,
                lora_alpha=recipe.lora.alpha,
                scale=recipe.lora.scale,
                layers=recipe.lora.layers,
            )
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise InvalidInput(f"recipe {recipe.name}: the base's config: {error}") from error
        layout.base_model = recipe.base.id
        return cls(recipe.condition, recipe.decoder, layout.to_dict())

    @classmethod
    def read(cls, file: Path) -> GeneratorConfig:
        """Read a ``config.json``.

        Raises:
            InvalidInput: it is damaged, or of another format.
        """
        content = read_json(file)
        version = content.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise InvalidInput(
                f"{file}: format version {version!r}; this dnd-fast reads {FORMAT_VERSION}. "
                "Update dnd-fast."
            )
        return from_table(cls, content, str(file))


def find_files(name: str, *, revision: str | None = None, **hub: Any) -> tuple[Path, Path]:
    """The config and the weights of a generator.

    Args:
        name: ``"demo"`` or another of ``SHIPPED``, a folder, or a hub id; of that ``id@revision``
            is one revision.
        revision: the same, apart from the name.
        hub: other arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: a folder without the two files, or an unknown hub id.
    """
    folder, remedy = SHIPPED.get(name, (Path(name), ""))
    if name not in SHIPPED and not folder.is_dir():
        place, named = split_revision(name)
        try:  # both files of one commit, whatever is pushed meanwhile
            folder = Path(
                snapshot_download(
                    place,
                    revision=revision or named,
                    allow_patterns=[CONFIG_FILE, WEIGHTS_FILE],
                    **hub,
                )
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise FileNotFoundError(
                f"there is no generator folder {name!r}, and the hub gives none: {error}"
            ) from error
    files = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    missing = next((file.name for file in files if not file.is_file()), None)
    if missing is None:
        return files
    if name in SHIPPED:
        raise FileNotFoundError(
            f"the embedded generator {name!r} is missing at {folder}: {remedy}."
        )
    raise FileNotFoundError(f"{folder} is no generator: {missing} is missing.")


def read_files(config_file: Path, weights_file: Path) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Read a generator's two files, neither of them older or newer than the other.

    Raises:
        InvalidInput: one of them is damaged.
    """
    return read_unchanged(
        config_file.parent,
        lambda: (
            GeneratorConfig.read(config_file),
            read_safetensors(weights_file, unchecked="warn"),
        ),
    )
