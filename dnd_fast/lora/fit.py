"""Whether an adapter can be put on a model, merged into it, and taken off again."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.adapter import PREFIX, Adapter, adapted_modules, weight_keys

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

# Entries of a configuration that layers do not depend on.
ABOUT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}
# Entries of which all effects are in the adapter's layers, or are put back here.
REVERSIBLE = ABOUT | {
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
# Initialisations that leave the base alone, and settings of such as need some.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
INITIALISATION = {
    "corda_config",
    "eva_config",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
}
REPLACED = "_replaced_base_weights"  # attribute of a PeftModel: pairs of parameter and own values


def require_bare(model: nn.Module) -> None:
    """Raise unless there is no adapter on the model."""
    if next(peft_layers(model), None):
        raise InvalidInput(
            "this base model already carries an adapter; call apply() with the PEFT model that "
            "the first apply() returned, and its adapter is replaced."
        )


def require_replaceable(live: PeftModel) -> None:
    """Raise unless the model has one LoRA adapter, active on all layers, that can be taken off."""
    if len(live.peft_config) != 1:
        raise InvalidInput(
            f"the model holds {len(live.peft_config)} adapters "
            f"({', '.join(live.peft_config)}), and apply() would have to choose; call "
            "delete_adapter() for all but the one to replace, or apply() with a plain base model."
        )
    config: Any
    ((name, config),) = live.peft_config.items()
    if config.peft_type != "LORA":
        raise InvalidInput(
            f"the model's adapter {name!r} is of type {config.peft_type}, and apply() replaces "
            "LORA only; call apply() with a plain base model."
        )
    require_reversible(config, f"the model's adapter {name!r}")
    if config.bias != "none" and REPLACED not in vars(live):
        raise InvalidInput(
            f"the model's adapter {name!r} has bias={config.bias!r}, and was not put on by "
            "apply(): PEFT has written it into the base, whose own values are lost. Call apply() "
            "with a base that is loaded again."
        )
    for where, layer in peft_layers(live):
        for wrong, what, remedy in (
            (layer.merged_adapters, "merged into the weights", "unmerge_adapter()"),
            (layer.disable_adapters, "switched off", "enable_adapter_layers()"),
            (layer.active_adapters != [name], "not active", f"set_adapter({name!r})"),
        ):
            if wrong:
                raise InvalidInput(
                    f"the model's adapter {name!r} is {what} in {where}, so that another in its "
                    f"place would do nothing or too much; call the model's {remedy} first."
                )


def require_reversible(config: LoraConfig, whose: str) -> None:
    """Raise where PEFT would change more than the layers that it adds, or these in ways unknown."""
    if config.init_lora_weights not in PLAIN_INITIALISATIONS:
        raise InvalidInput(
            f"{whose} has init_lora_weights={config.init_lora_weights!r}: PEFT changes weights of "
            "the base itself for it, which cannot be taken back. Convert it to a plain one (PEFT's "
            "save_pretrained with path_initial_model_for_weight_conversion), or load it by PEFT."
        )
    default = type(config)()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        known = field.name in REVERSIBLE | INITIALISATION
        if value and value != getattr(default, field.name) and not known:
            raise InvalidInput(
                f"{whose} has {field.name}={value!r}, which cannot be taken back from a model; "
                "load it by PEFT's PeftModel.from_pretrained."
            )


def require_weights(model: nn.Module, config: LoraConfig) -> None:
    """Raise unless all weights are there and, where they will be trained biases, can be set."""
    named = [*model.named_parameters(), *model.named_buffers()]
    if config.bias != "none" and any(tensor.is_inference() for _, tensor in named):
        raise InvalidInput(
            f"the adapter has bias={config.bias!r}, which cannot be written into a base that was "
            "made in torch.inference_mode(); make it in torch.no_grad()."
        )
    if absent := next((name for name, tensor in named if tensor.is_meta), None):
        raise InvalidInput(
            f"{absent} is on the meta device, without values: the model is offloaded in part, and "
            "an adapter would do nothing there. Load it without offloading to a disk or the CPU "
            "(device_map), or with a smaller dtype."
        )


def require_mergeable(live: PeftModel, layers: Mapping[str, Any]) -> None:
    """Raise unless every layer has a weight of its own to merge into, and a bias where needed."""
    from peft.tuners.lora import LoraLayer

    uses = Counter(
        id(parameter)
        for module in live.get_base_model().modules()
        for parameter in module._parameters.values()
    )
    for name, layer in layers.items():
        if not isinstance(layer, LoraLayer):
            continue
        base_layer = layer.get_base_layer()
        if any(uses[id(parameter)] > 1 for parameter in base_layer.parameters(recurse=False)):
            raise InvalidInput(
                f"{name.removeprefix(PREFIX)} shares its weight with another module, as heads do "
                "with embeddings, and merging would change both. Leave the adapter applied, or "
                "give the base a head of its own (tie_word_embeddings=False, and a copy)."
            )
        if any(layer.lora_bias.values()) and getattr(base_layer, "bias", None) is None:
            raise InvalidInput(
                f"{name.removeprefix(PREFIX)} has no bias, and the adapter adds one (lora_bias): "
                "it cannot be merged. Leave it applied."
            )


def check_fits(
    adapter: Adapter, config: LoraConfig, tensors: Mapping[str, Tensor], base: nn.Module
) -> None:
    """Raise unless the base has the adapted modules, in their sizes, and the targets are these."""
    from peft.tuners.tuners_utils import check_target_module_exists

    sizes = dict(_sizes(base))
    modules = adapted_modules(tensors)
    converted = tensors.keys() != adapter.tensors.keys()
    for module in modules:
        a, b = (tensors[key] for key in weight_keys(module))
        needed = [b.shape[0], a.shape[1]]
        # The tensors of routed experts are for parameters, which PEFT wraps by itself.
        holder = module.removesuffix(".base_layer")
        if (
            (converted or config.target_parameters)
            and module not in sizes
            and has_module(base, holder)
        ):
            continue
        if module not in sizes:
            raise InvalidInput(
                f"the adapter does not fit this {type(base).__name__}: it adapts {module}, "
                f"which the model does not have. It was made for "
                f"{adapter.config.get('base_model_name_or_path') or 'another base model'}."
            )
        if sizes[module] != needed:
            raise InvalidInput(
                f"the adapter does not fit this {type(base).__name__}: for {module} it needs "
                f"a weight of shape {needed}, found {sizes[module]}."
            )
    if converted or config.target_parameters or config.target_modules in (None, "all-linear"):
        return  # PEFT finds them
    targets = {name for name in sizes if check_target_module_exists(config, name)}
    if different := targets ^ set(modules):
        raise contradiction(different)


def _sizes(base: nn.Module) -> Iterator[tuple[str, list[int]]]:
    """Names of the layers that multiply by a matrix, and the matrices' [out, in]."""
    from transformers.pytorch_utils import Conv1D

    wrappers = {name for name, _ in peft_layers(base)}
    for name, module in base.named_modules():
        inside = re.search(r"\.(lora_|modules_to_save\.)", name)
        if name in wrappers or inside or isinstance(module, nn.Embedding):
            continue
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2:
            continue
        size = list(weight.shape)
        if isinstance(module, nn.Linear):  # a quantised one packs its weight
            size = [module.out_features, module.in_features]
        elif isinstance(module, Conv1D):
            size.reverse()
        yield re.sub(r"(\.token_adapter)?\.base_layer$|\.original_module$", "", name), size


def check_target(key: str, tensor: Tensor, target: Tensor) -> None:
    """Raise unless a tensor can be copied into the model's."""
    if tensor.shape != target.shape:
        raise InvalidInput(
            f"the adapter does not fit the model: {key} has shape {list(tensor.shape)}, needed is "
            f"{list(target.shape)}. If it is for a larger or smaller vocabulary, call the base's "
            "resize_token_embeddings() first."
        )
    if target.is_inference():
        raise InvalidInput(
            f"{key} cannot be written into a base that was made in torch.inference_mode(); make it "
            "in torch.no_grad()."
        )
    narrower = torch.finfo(target.dtype).max < torch.finfo(tensor.dtype).max
    if narrower and not tensor.to(target.dtype).isfinite().all():
        raise InvalidInput(
            f"{key} has values too large for the model's {target.dtype}; load it in another dtype."
        )


def peft_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's layers with their names, those within others after these."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield name, module


def has_module(base: nn.Module, name: str) -> bool:
    """Whether there is a module of a name, be it one of PEFT's."""
    try:
        base.get_submodule(name)
    except AttributeError:
        return False
    return True


def contradiction(names: set[str]) -> InvalidInput:
    """The error for names that an adapter's tensors and its configuration do not agree on."""
    return InvalidInput(
        f"the adapter contradicts its configuration: {min(names)} is in one only; see "
        "target_modules."
    )
