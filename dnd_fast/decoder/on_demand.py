"""A decoder that is prepared when it is first needed."""

from __future__ import annotations

import logging
import threading
from typing import Any

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.decoder.planning import default_memory
from dnd_fast.decoder.prepared import Layout, PreparedDecoder, version

logger = logging.getLogger(__name__)


class PreparedOnDemand:
    """Keeps a prepared decoder, and makes it anew when what it was made from has changed.

    It may be used from several threads: one prepares, the others wait. A copy is empty but for the
    options, so that what has an object of this class can be copied and pickled.

    Attributes:
        options: those of :meth:`dnd_fast.decoder.model.HyperConvDecoder.prepare`.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        self.options = options or {}
        self._prepared: PreparedDecoder | None = None
        self._state: tuple[Any, ...] = ()
        self._lock = threading.Lock()

    def prepare(self, decoder: HyperConvDecoder, layout: Layout, **options: Any) -> PreparedDecoder:
        """Prepare now, and with these options from now on; nothing changes where that fails."""
        with self._lock:
            prepared = prepare(decoder, layout, **options)
            self._prepared, self._state = prepared, _state(decoder, layout)
            self.options = options
            return prepared

    def get(self, decoder: HyperConvDecoder, layout: Layout) -> PreparedDecoder:
        """The decoder, ready to run; made anew after any change of its parameters or of the
        layout's statistics."""
        with self._lock:
            state = _state(decoder, layout)
            if self._prepared is None or self._state != state:
                self._prepared = prepare(decoder, layout, **self.options)
                self._state = state
            return self._prepared

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedOnDemand, (self.options,)


def prepare(
    decoder: HyperConvDecoder,
    layout: Layout,
    *,
    memory: float | None = None,
    batch: int = 1,
    **options: Any,
) -> PreparedDecoder:
    """Prepare within the default budget of memory, unless another is given; logs what will run."""
    if memory is None:
        memory = default_memory(decoder, batch)
    prepared = decoder.prepare(memory=memory, batch=batch, layout=layout, **options)
    logger.info("%s", prepared.describe())
    return prepared


def _state(decoder: HyperConvDecoder, layout: Layout) -> tuple[Any, ...]:
    """Another value after any change of what a prepared decoder is made from."""
    tensors = [*decoder.parameters(), layout.mean, layout.std]
    return tuple(
        (tensor.data_ptr(), version(tensor), tensor.dtype, tensor.device)
        for tensor in tensors
        if tensor is not None
    )
