"""Batches on their way to the device: the next one is read while a step runs."""

from typing import Any

import jax

from nuwaxl_jax import partitioning


class Batches:
    """Batches on the device, one read ahead; `position` is that of the batch `take` returns next."""

    def __init__(self, iterator: Any, fields: tuple[str, ...], mesh: jax.sharding.Mesh):
        self._iterator, self._fields, self._mesh = iterator, fields, mesh
        self._ready: tuple[dict[str, jax.Array], Any] | None = None
        self.position = iterator.get_state()

    def read(self) -> None:
        """Reads the next batch, unless one is ready."""
        if self._ready is None:
            self.position = self._iterator.get_state()
            batch = next(self._iterator)
            on_device = partitioning.put_batch({name: batch[name] for name in self._fields}, self._mesh)
            self._ready = on_device, batch.get("episode")

    def peek(self) -> dict[str, jax.Array]:
        """The fields of the next batch, which `take` will return too."""
        self.read()
        return self._ready[0]

    def take(self) -> tuple[dict[str, jax.Array], Any]:
        """(fields on the device, episode numbers or None) of the next batch."""
        self.read()
        ready, self._ready = self._ready, None
        self.position = self._iterator.get_state()
        return ready
