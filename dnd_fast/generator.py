"""The generator: prompts in, LoRA adapters out, in one forward pass."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from dnd_fast.decoder.host_buffer import HostBuffer
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.decoder.on_demand import PreparedOnDemand, prepare
from dnd_fast.decoder.planning import WeightChoice, one_pass
from dnd_fast.decoder.prepared import PreparedDecoder
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, check_weights, write_json, write_safetensors
from dnd_fast.generator_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    GeneratorConfig,
    find_files,
    read_files,
)
from dnd_fast.kernels.conv2d import Impl
from dnd_fast.kernels.planner.cost_model import DecoderPlan
from dnd_fast.lora.adapter import Adapter
from dnd_fast.stages import StageTimes
from dnd_fast.svf.layout import layout_from_dict
from dnd_fast.text.encoder import TextEncoder
from dnd_fast.text.prompt_encoder import PromptEncoder, move
from dnd_fast.text.prompts import read_prompts, sample_prompts
from dnd_fast.text.whitening import Whitening

Device = str | torch.device
ENCODER_LOCK = threading.Lock()  # many threads load an encoder once


class Generator(
    nn.Module,
    ModelHubMixin,
    library_name="dnd-fast",
    tags=["lora", "peft", "weight-generation"],
    license="apache-2.0",
):
    """Condition, decoder and layout together.

    The text encoder is frozen, is loaded when first needed, and is not part of the saved weights.
    The decoder is prepared for its device when an adapter is first generated, and again when
    weights, device or dtype have changed since.

    Any number of threads may generate, encode and save at once, and each gets what it would get
    alone; the first of them loads the encoder and prepares. Not while another thread trains, moves
    or converts the generator, fits its layout, or moves its encoder, which generators on one
    device may share.

    Args:
        config: what to build; weights are random until trained or loaded.
        encoder: a text encoder to use instead of the one that the config names.

    Attributes:
        decoder: the hyper-convolutional decoder.
        layout: tokens <-> LoRA tensors, with the collection's statistics.
        whitening: what embeddings pass through on their way to the decoder, or None.

    Raises:
        InvalidInput: condition, decoder and layout do not fit together.
    """

    def __init__(self, config: GeneratorConfig, *, encoder: PromptEncoder | None = None) -> None:
        super().__init__()
        self.config = config
        condition = config.condition
        projection = None
        if condition.projected_length is not None:
            projection = LengthProjection(
                condition.length, condition.projected_length, mode=condition.projection
            )
        self.decoder = HyperConvDecoder(
            config.decoder.features, config.decoder.kernel_size, projection=projection
        )
        self.layout = layout_from_dict(config.layout)
        width = self.decoder.features[0][2]
        self.whitening = Whitening(width) if condition.whitening else None
        if not isinstance(encoder, PromptEncoder | None):
            raise InvalidInput(
                f"encoder is a {type(encoder).__name__}; load one by TextEncoder.from_pretrained()."
            )
        self._encoder = encoder
        self._times = StageTimes()
        self._ready = PreparedOnDemand()
        self._host_buffer = HostBuffer()
        first, last = self.decoder.features[0], self.decoder.features[-1]
        wanted = (condition.prompts, condition.projected_length or condition.length)
        if first[:2] != wanted:
            raise InvalidInput(
                f"the decoder takes {first[0]} prompts of length {first[1]}, the condition has "
                f"{wanted[0]} of length {wanted[1]}."
            )
        tokens = (self.layout.num_tokens, *self.layout.token_shape)
        if last != tokens:
            raise InvalidInput(f"the decoder gives tokens {last}, the layout needs {tokens}.")
        self.eval()

    @property
    def encoder(self) -> PromptEncoder:
        """The frozen text encoder, loaded on first use, on the generator's device.

        Raises:
            InvalidInput: it cannot be loaded or its width is not the decoder's.
        """
        with ENCODER_LOCK:
            if self._encoder is None:
                self._encoder = TextEncoder.from_pretrained(self.config.condition.encoder)
        width = self.decoder.features[0][2]
        if self._encoder.width != width:
            raise InvalidInput(
                f"the encoder {self.config.condition.encoder} gives embeddings of width "
                f"{self._encoder.width}, the decoder takes {width}."
            )
        self._encoder.to(self.device)
        return self._encoder

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of each stage of this thread's last :meth:`generate`."""
        return self._times.seconds

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return self.decoder.device

    def encode(self, tasks: Sequence[Sequence[str]], *, cache: Path | None = None) -> Tensor:
        """Embed N prompts for each task, as the decoder takes them: ``[tasks, N, L, C]`` float32.

        Raises:
            InvalidInput: a task has not exactly N prompts, or one is unusable.
        """
        spec = self.config.condition
        for task in tasks:
            if len(task) != spec.prompts:
                raise InvalidInput(
                    f"a task has {len(task)} prompts, the condition takes {spec.prompts}; see "
                    "dnd_fast.text.prompts.sample_prompts."
                )
        flat = [prompt for task in tasks for prompt in task]
        hidden = self.encoder.encode(flat, spec.length, padding=spec.padding, cache=cache)
        condition = hidden.unflatten(0, (len(tasks), spec.prompts))
        return condition if self.whitening is None else self.whitening(condition)

    def prepare(
        self,
        plan: DecoderPlan | Literal["auto", "direct", "fft"] = "auto",
        *,
        batch: int = 1,
        memory: float | None = None,
        weights: WeightChoice = "auto",
        impl: Impl = "auto",
        compile: bool = False,
    ) -> PreparedDecoder:
        """Choose how adapters are generated from now on, and get ready for it.

        Without this call the first :meth:`generate` does it with the defaults.

        Args:
            memory: bytes that preparing and a pass may take beside the generator's own weights; by
                default those of the environment variable ``DND_FAST_MEMORY`` (``8e9``, ``8GB``),
                else half of the device's free memory.
            plan, batch, weights, impl, compile: see
                :meth:`dnd_fast.decoder.model.HyperConvDecoder.prepare`.

        Returns:
            The prepared decoder, whose ``describe()`` says what will run.

        Raises:
            InvalidInput: nothing fits into ``memory``, an implementation that was named cannot run,
                the plan is for another decoder, or a word is unknown.
        """
        return self._ready.prepare(
            self.decoder,
            self.layout,
            plan=plan,
            batch=batch,
            memory=memory,
            weights=weights,
            impl=impl,
            compile=compile,
        )

    @property
    def prepared(self) -> PreparedDecoder:
        """The decoder, ready to run; prepared now if it is not, or no longer."""
        return self._ready.get(self.decoder, self.layout)

    def forward(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` float32 embeddings -> ``[B, Nw, Lw, Cw]`` tokens; differentiable."""
        return self.decoder(condition.to(self.decoder.dtype))

    @overload
    def generate(
        self, prompts: str | os.PathLike[str] | list[str], *, seed: int = 0, device: Device = "cpu"
    ) -> Adapter: ...
    @overload
    def generate(
        self, prompts: list[list[str]], *, seed: int = 0, device: Device = "cpu"
    ) -> list[Adapter]: ...

    def generate(
        self,
        prompts: str | os.PathLike[str] | list[str] | list[list[str]],
        *,
        seed: int = 0,
        device: Device = "cpu",
    ) -> Adapter | list[Adapter]:
        """Generate an adapter for a task from its unlabelled prompts.

        Args:
            prompts: one task: a list of strings, a ``.txt`` file with one prompt a line, or a
                ``.jsonl`` file with the key ``prompt``. Or a list of such lists: several tasks,
                decoded in one batched forward pass.
            seed: of the choice among more prompts than the generator takes. The same prompts and
                seed give the same adapter, bit by bit, on the same machine with the same plan.
            device: where the adapters' tensors shall be; those that stay on the generator's own
                GPU need no copy.

        Returns:
            One adapter, or one per task, in float32. With a layout of SVF experts
            (:class:`dnd_fast.svf.layout.SvfLayout`), experts.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInput: prompts are missing, empty or of the wrong type, ``seed`` is, or the
                device cannot be used.
        """
        return self._generate(prompts, self.prepared, seed, device)

    @torch.no_grad()
    def _generate(
        self,
        prompts: str | os.PathLike[str] | list[str] | list[list[str]],
        prepared: PreparedDecoder,
        seed: int,
        device: Device,
    ) -> Adapter | list[Adapter]:
        several = isinstance(prompts, list) and any(isinstance(task, list) for task in prompts)
        tasks = [read_prompts(task) for task in cast(list, prompts if several else [prompts])]
        count = self.config.condition.prompts
        clock = [time.perf_counter()]
        condition = self.encode([sample_prompts(task, count, seed) for task in tasks])
        clock.append(self._synchronized_time())
        weights = prepared.weights(condition.to(prepared.dtype))
        clock.append(self._synchronized_time())
        tensors = self.layout.unpack(self._host_buffer.moved(weights, device))
        clock.append(time.perf_counter())
        stages = ("encode", "decode", "detokenize")
        seconds = map(float.__sub__, clock[1:], clock)
        self._times.seconds = dict(zip(stages, seconds, strict=True))
        adapters = [
            self.layout.to_adapter({key: value[i] for key, value in tensors.items()})
            for i in range(len(tasks))
        ]
        return adapters if several else adapters[0]

    def _synchronized_time(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``config.json`` and ``model.safetensors``; all or nothing.

        Other arguments are those of ``huggingface_hub.ModelHubMixin.save_pretrained``.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
            InvalidInput: the layout has no statistics yet.
        """
        if self.layout.scale == "static" and self.layout.mean is None:
            raise InvalidInput("the layout has no mean and std: call layout.fit() before saving.")
        if kwargs.get("push_to_hub"):
            return super().save_pretrained(save_directory, **kwargs)
        with atomic_folder(save_directory) as folder:
            super().save_pretrained(folder, **kwargs)
            if (Path(save_directory) / "README.md").exists():
                (folder / "README.md").unlink()  # the model card is the user's
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        write_safetensors(save_directory / WEIGHTS_FILE, self.state_dict())
        write_json(save_directory / CONFIG_FILE, dataclasses.asdict(self.config))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        encoder: PromptEncoder | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Generator:
        """Load a generator: one that comes with the package, or from a folder or the hub.

        Args:
            pretrained_model_name_or_path: ``"demo"``, ``"smollm2"``, a folder, or a hub id; of that
                ``id@revision`` is one revision.
            encoder: a text encoder to use instead of the one that the config names.
            dtype: of the decoder's weights in memory, whatever it is on disk.

        The other arguments are those of ``huggingface_hub.snapshot_download``.

        Raises:
            FileNotFoundError: a folder without the two files, or an unknown hub id.
            InvalidInput: a file is damaged or does not fit the other, or ``dtype`` is unusable.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InvalidInput(f"dtype={dtype!r}: it must be a floating-point torch.dtype.")
        config_file, weights_file = find_files(
            str(pretrained_model_name_or_path),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config, tensors = read_files(config_file, weights_file)
        try:
            with torch.device("meta"):
                generator = cls(config, encoder=encoder)
        except InvalidInput as error:
            raise InvalidInput(f"{config_file}: {error}") from error
        generator._load(tensors, str(weights_file))
        return generator.to(dtype)

    def _load(self, tensors: dict[str, Tensor], where: str) -> None:
        """Take over all weights and statistics, or raise and name what is wrong."""
        check_weights(tensors, f"{where}: ")
        statistics = {name: tensors.pop(f"layout.{name}", None) for name in ("mean", "std")}
        if "decoder.criterion_weight" in tensors:
            shape = (1, self.layout.num_tokens, 1, 1)
            self.decoder.criterion_weight = torch.empty(shape, device="meta")
        expected = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in tensors.items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                raise InvalidInput(
                    f"{where} does not fit its config: {key} has shape "
                    f"{found.get(key, 'missing')}, expected {expected.get(key, 'nothing')}."
                )
        mean, std = statistics["mean"], statistics["std"]
        if self.layout.scale == "static":
            if mean is None or std is None:
                raise InvalidInput(f"{where}: the layout's mean or std is missing.")
            self.layout.set_statistics(mean, std)
        self.load_state_dict(tensors | self._statistics(), assign=True)

    def _statistics(self) -> dict[str, Tensor]:
        return {f"layout.{key}": value for key, value in self.layout.state_dict().items()}


def generate(
    prompts: str | os.PathLike[str] | list[str],
    generator: str | Path | Generator = "demo",
    *,
    device: str | torch.device | None = None,
    impl: Impl = "auto",
    compile: bool = False,
    memory: float | None = None,
    seed: int = 0,
) -> Adapter:
    """Prompts in, adapter out: the one-call form.

    Args:
        prompts: a list of strings, or a ``.txt`` or ``.jsonl`` file; see
            :meth:`Generator.generate`.
        generator: ``"demo"``, ``"smollm2"``, a folder, a hub id, or a loaded generator (keep one to
            call often), which is not changed.
        device: where to run; by default where the generator is, and for one that is loaded here a
            CUDA device if there is one.
        impl, compile: how the decoder runs; see
            :meth:`dnd_fast.decoder.model.HyperConvDecoder.prepare`.
        memory: bytes that the decoder may take beside its weights; see :meth:`Generator.prepare`.
        seed: of the choice among the prompts.

    Returns:
        The adapter, in float32 on the CPU.

    Raises:
        FileNotFoundError: no such generator or file of prompts.
        InvalidInput: unusable prompts, generator, device or ``impl``.
    """
    options: dict[str, Any] = {"impl": impl, "compile": compile, "memory": memory}
    if not isinstance(generator, Generator):
        generator = Generator.from_pretrained(generator)
        move(generator, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    elif device is not None and str(device) not in (generator.device.type, str(generator.device)):
        generator = copy.deepcopy(generator)
        move(generator, device)
    elif options == {"impl": "auto", "compile": False, "memory": None}:
        return generator.generate(prompts, seed=seed)
    options |= one_pass(generator.decoder)
    prepared = prepare(generator.decoder, generator.layout, **options)
    return cast(Adapter, generator._generate(prompts, prepared, seed, "cpu"))
