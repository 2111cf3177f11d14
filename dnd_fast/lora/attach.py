"""An adapter put on a live model, replaced by another, or merged into it; or refused.

What can be checked is checked before anything is changed, see :mod:`dnd_fast.lora.fit`. What PEFT
then does is undone on any exception, so that the answers of the model, and of the base below it,
are as they were.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.adapter import PREFIX, Adapter
from dnd_fast.lora.fit import (
    ABOUT,
    INITIALISATION,
    REPLACED,
    check_fits,
    check_target,
    contradiction,
    has_module,
    peft_layers,
    require_bare,
    require_mergeable,
    require_replaceable,
    require_reversible,
    require_weights,
)
from dnd_fast.lora.snapshot import Snapshot, unchanged_on_error

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers import PreTrainedModel


def attach(adapter: Adapter, model: PreTrainedModel | PeftModel) -> PeftModel:
    """Put an adapter on a model; see :meth:`dnd_fast.lora.adapter.Adapter.apply`."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"a model is needed to put an adapter on; got a {type(model).__name__}.")
    with _errors_explained(), unchanged_on_error(model) as snapshot:
        return _attach(adapter, model, snapshot)


def require_fit(adapter: Adapter, model: nn.Module) -> None:
    """Raise unless the adapter fits a model, whose weights may be on the meta device.

    Raises:
        InvalidInput: a module is missing or of another size, or the configuration is unusable.
    """
    with _errors_explained():
        config = _peft_config(adapter.config)
        require_reversible(config, "the adapter")
        check_fits(adapter, config, _converted(adapter.tensors, config, model), model)


def merge(adapter: Adapter, model: PreTrainedModel) -> PreTrainedModel:
    """Merge an adapter; see :meth:`dnd_fast.lora.adapter.Adapter.merge_into`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    with _errors_explained(), unchanged_on_error(model) as snapshot:
        live = _attach(adapter, model, snapshot)
        layers: dict[str, Any] = {
            name: layer for name, layer in peft_layers(live) if isinstance(layer, BaseTunerLayer)
        }
        require_mergeable(live, layers)
        for layer in layers.values():  # on a copy of each weight, before any is written to
            before = Snapshot(layer)
            layer.merge(safe_merge=True)
            before.restore()
        try:
            return cast(Any, live).merge_and_unload()
        except BaseException:
            for layer in layers.values():
                if layer.merged:
                    layer.unmerge()
            raise


def _attach(adapter: Adapter, model: nn.Module, snapshot: Snapshot) -> PeftModel:
    from peft import PeftModel, get_peft_model

    config = _peft_config(adapter.config)
    require_reversible(config, "the adapter")
    config.init_lora_weights = False  # all values are loaded
    require_weights(model, config)
    live = model if isinstance(model, PeftModel) else None
    if live is None:
        require_bare(model)
    else:
        require_replaceable(live)
    base: nn.Module = model if live is None else live.get_base_model()
    tensors = _converted(adapter.tensors, config, base)
    check_fits(adapter, config, tensors, base)
    with torch.inference_mode(False):  # what is made in it could never be written to outside
        if live is None:
            config.base_model_name_or_path = None  # else PEFT warns of renaming it
            live = get_peft_model(cast("PreTrainedModel", model), config)
        else:
            _make_room(live, config, snapshot)
        _load(live, tensors, snapshot)
        return live.requires_grad_(False).eval()


def _make_room(live: PeftModel, config: LoraConfig, snapshot: Snapshot) -> None:
    """Have the model's layers be those of a configuration, whose values are then to be loaded."""
    name = live.active_adapter
    replaced = vars(live).pop(REPLACED, [])
    snapshot.keep(parameter for parameter, _ in replaced)
    with torch.no_grad():
        for parameter, values in replaced:
            parameter.copy_(values)
    fixed = any(p.is_inference() for key, p in live.named_parameters() if f".{name}" in key)
    if not fixed and _layer_settings(live.peft_config[name]) == _layer_settings(config):
        live.peft_config[name] = config
        return
    _unwrap(live.get_base_model())
    del live.peft_config[name]
    tuner: Any = live.base_model
    tuner.targeted_module_names, tuner.targeted_parameter_names = [], []
    live.add_adapter(name, config)


def _unwrap(base: nn.Module) -> None:
    """Take PEFT's layers off a base, and leave the base's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    outer = ""
    for name, layer in list(peft_layers(base)):
        if not outer or not name.startswith(f"{outer}."):
            is_tuner = isinstance(layer, BaseTunerLayer)
            base.set_submodule(name, layer.get_base_layer() if is_tuner else layer.original_module)
            outer = name


def _load(live: PeftModel, tensors: Mapping[str, Tensor], snapshot: Snapshot) -> None:
    """Copy an adapter's tensors into the model, after comparing names and shapes with it."""
    from peft import get_peft_model_state_dict

    state = live.state_dict(keep_vars=True)
    # The model's own tensors under the names that PEFT saves them by.
    targets: dict[str, Tensor] = get_peft_model_state_dict(
        live, state_dict=state, adapter_name=live.active_adapter, save_embedding_layers=False
    )
    # PEFT saves embeddings along that have been resized or are adapted.
    embeddings = {id(parameter) for parameter in _embedding_parameters(live.get_base_model())}
    for key in tensors.keys() - targets.keys():
        if id(state.get(key)) in embeddings:
            targets[key] = state[key]
    if different := targets.keys() ^ tensors.keys():
        raise contradiction(different)
    for key, target in targets.items():
        check_target(key, tensors[key], target)
    snapshot.keep(targets.values())
    # Biases, and embeddings that are saved along, are written into the base: its own are kept.
    vars(live)[REPLACED] = [
        (target, target.detach().clone())
        for key, target in targets.items()
        if key in state and not torch.equal(tensors[key].to(target), target)
    ]
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(tensors[key])


def _peft_config(entries: Mapping[str, Any]) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_peft_type(**{**copy.deepcopy(dict(entries)), "inference_mode": True})


def _converted(
    tensors: Mapping[str, Tensor], config: LoraConfig, base: nn.Module
) -> dict[str, Tensor]:
    """The tensors under the names that layers have in today's transformers.

    Those of experts, which have become parameters, are put together as PEFT does it.
    """
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers as convert,
    )

    renamed = {_current_name(key, base): tensor for key, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        raise InvalidInput(
            "the adapter has tensors for some modules twice, under an earlier name and today's."
        )
    return convert(
        model=base, peft_config=config, adapter_state_dict=renamed, adapter_name="default"
    )


def _current_name(key: str, base: nn.Module) -> str:
    """A tensor's name, in which layers of vision-language models may have earlier names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    name, mark, half = key.removeprefix(PREFIX).partition(".lora_")
    if not mark or has_module(base, name) or not hasattr(base, "config"):
        return key
    table = get_model_conversion_mapping(cast(Any, base))
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    renamed = rename_source_key(name, renamings, [])[0]
    return f"{PREFIX}{renamed}{mark}{half}" if has_module(base, renamed) else key


def _embedding_parameters(base: nn.Module) -> Iterator[nn.Parameter]:
    for get in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(base, get)() if hasattr(base, get) else None
        yield from layer.parameters() if layer is not None else ()


def _layer_settings(config: PeftConfig) -> dict[str, Any]:
    """All of a configuration that its layers depend on, alpha included."""
    entries = config.to_dict().items()
    return {key: value for key, value in entries if key not in ABOUT | INITIALISATION}


@contextmanager
def _errors_explained() -> Iterator[None]:
    """What PEFT raises for an unusable configuration, as InvalidInput."""
    try:
        yield
    except InvalidInput:
        raise
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        NotImplementedError,
        re.error,
    ) as error:
        raise InvalidInput(f"PEFT cannot use the adapter's configuration: {error}") from error
