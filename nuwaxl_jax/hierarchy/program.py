"""The compiled program of one level: many segments in one call, over the mesh, without collectives.

Items (a segment of a video) lie as [R, D b]: R rounds of D b items, D devices along ('data', 'fsdp'), b
the microbatch. `jax.shard_map` gives each device [R, b] and a loop makes one microbatch after another.

Every item has its own key, fold_in(fold_in(fold_in(key, video), level), segment), and nothing crosses the
batch axis or the devices. To keep an item's bits the same for any number of items, chunk size, order and
number of devices, the loop's body is the same computation in each of these programs: its shapes depend
on b alone, barriers keep the compiler from fusing it with what surrounds it, and the number of rounds is an
argument, so that a loop of one round is not unrolled and a part-filled call runs no empty rounds.
Tests show equal bits on CPU devices; on other hardware the compiler may pick kernels per program.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

SEGMENT_AXES = ("data", "fsdp")
Handover = Callable[[Any, jax.Array, jax.Array], jax.Array]


class SegmentsFn(Protocol):
    """Makes n segments of a level; a pure function.

    Args: params; keys, typed [n]; cond float32 [n, L, h, w, c], zeros where not given; cond_mask float32
    [n, L, h, w, 1], 1 = given; prompt_index int32 [n, L], into a table of text states in params; level, a
    Python int: the level of the networks. Returns x0 [n, L, h, w, c]. Example i may depend on its own inputs
    alone.
    """

    def __call__(
        self,
        params: Any,
        keys: jax.Array,
        cond: jax.Array,
        cond_mask: jax.Array,
        prompt_index: jax.Array,
        *,
        level: int,
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class LevelSpec:
    """What a level's program depends on, besides the shapes and shardings of the parameters.

    Attributes:
      sample_segments: the SegmentsFn. Pass the same object each time or the program is compiled anew.
      network_level: passed on to it.
      rounds: R, microbatches per device that fit in one call.
      microbatch: b, items a device makes at a time.
      segment_length: L.
      latent_shape: (h, w, c).
      mesh: a Mesh with axes 'data' and 'fsdp'.
      handover: (params, cond, cond_mask) -> cond, applied to the given latents before sampling, also where
        nothing is given; None hands latents over as they are.
      key_impl: PRNG of the key, as `jax.random.key_impl` gives it.
    """

    sample_segments: SegmentsFn
    network_level: int
    rounds: int
    microbatch: int
    segment_length: int
    latent_shape: tuple[int, ...]
    mesh: jax.sharding.Mesh
    handover: Handover | None
    key_impl: Any

    @property
    def batch(self) -> int:
        """D b: items made at the same time."""
        return segment_shards(self.mesh) * self.microbatch

    @property
    def capacity(self) -> int:
        """Items one call can make."""
        return self.rounds * self.batch


def idle_devices(items: int, devices: int, microbatch: int) -> str:
    """Why devices only repeat a segment that another makes, and the mend; '' where no setting would fill more of them.

    Args:
      items: segments of a level, of all videos.
      devices: that segments are spread over.
      microbatch: segments a device makes at a time.
    """
    used, smaller = -(-items // microbatch), max(1, items // devices)
    if used >= devices or smaller >= microbatch:
        return ""
    could = min(devices, -(-items // smaller))
    return (
        f"{items} segments, {microbatch} at a time on a device, fill {used} of {devices} devices, others repeat one; "
        f"--config.hierarchy.microbatch={smaller} fills {could} (bits are equal between equal microbatches alone)"
    )


@dataclasses.dataclass(frozen=True)
class CompiledLevel:
    """A level's executable and the seconds it took to compile."""

    spec: LevelSpec
    executable: jax.stages.Compiled
    seconds: float

    def place(self, params: Any) -> Any:
        """Moves what the program reads of params to where it wants it; the rest stays where it is.

        So the networks of other levels, or the decoder, take no memory of the devices during this level.
        """
        leaves, tree = jax.tree.flatten(params)
        wanted = tree.flatten_up_to(self.executable.input_shardings[0][0])  # None: not read
        read = [i for i, sharding in enumerate(wanted) if sharding is not None]
        moved = jax.device_put([leaves[i] for i in read], [wanted[i] for i in read])
        for i, leaf in zip(read, moved):
            leaves[i] = leaf
        return tree.unflatten(leaves)

    def __call__(self, params, key, level: int, items: dict[str, np.ndarray]) -> jax.Array:
        """Dispatches one call and does not wait for it.

        Args:
          params: as `place` or `place_params` gives them.
          key: typed key of the video set.
          level: level of the plan, part of the keys.
          items: `video`, `segment` int32 [n], `prompt` int32 [n, L], `given` bool [n, L], `cond` float32
            [n, L, h, w, c], with 1 <= n <= spec.capacity.

        Returns:
          float32 [R, D b, L, h, w, c] of which the first n items are meaningful: see `fetch`.
        """
        spec = self.spec
        n = len(items["video"])
        rounds = -(-n // spec.batch)
        everywhere, by_item = _shardings(spec.mesh)

        def fill(x: np.ndarray) -> jax.Array:
            filled = np.empty((spec.capacity, *x.shape[1:]), x.dtype)
            filled[:n], filled[n:] = x, x[-1]  # the last item again: no values a network has never seen
            return _put(filled.reshape(spec.rounds, spec.batch, *x.shape[1:]), by_item)

        scalars = [_put(np.int32(x), everywhere) for x in (level, rounds)]
        key_data = _put(np.asarray(jax.random.key_data(key)), everywhere)
        return self.executable(params, key_data, *scalars, jax.tree.map(fill, items))

    def fetch(self, out: jax.Array, n: int) -> np.ndarray:
        """The first n items of a call's result, on every host: float32 [n, L, h, w, c]."""
        if not out.is_fully_addressable:
            out = multihost_utils.process_allgather(out, tiled=True)
        out = np.asarray(out)
        return out.reshape(-1, *out.shape[2:])[:n]


def compile_level(spec: LevelSpec, params: Any) -> CompiledLevel:
    """Compiles a level's program ahead of its use, or finds it compiled.

    Safe to call from threads. `params` may be arrays or `jax.ShapeDtypeStruct`s.
    """
    leaves, tree = jax.tree.flatten(abstract_params(params, spec.mesh))
    return _compile(spec, tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves))


def default_mesh() -> jax.sharding.Mesh:
    """A mesh of this process's first device."""
    return jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.local_devices()[:1],
    )


def segment_shards(mesh: jax.sharding.Mesh) -> int:
    """D: the devices that segments are spread over.

    Raises:
      ValueError: if the mesh lacks an axis.
    """
    missing = [axis for axis in SEGMENT_AXES if axis not in mesh.shape]
    if missing:
        raise ValueError(f"mesh has axes {tuple(mesh.shape)}: add {missing}, of size 1 where unused")
    return int(np.prod([mesh.shape[axis] for axis in SEGMENT_AXES]))


def abstract_params(params: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and sampling shardings of params: whole on every segment shard, split over 'model' as given."""

    def abstract(x):
        spec = jax.P()
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, jax.NamedSharding) and sharding.mesh == mesh:
            spec = jax.P(*(_without_segment_axes(entry) for entry in sharding.spec))
        return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=jax.NamedSharding(mesh, spec))

    return jax.tree.map(abstract, params)


def abstract_items(spec: LevelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a call's items, as `CompiledLevel` fills them in."""
    _, by_item = _shardings(spec.mesh)
    shapes = {
        "video": ((), jnp.int32),
        "segment": ((), jnp.int32),
        "prompt": ((spec.segment_length,), jnp.int32),
        "given": ((spec.segment_length,), jnp.bool_),
        "cond": ((spec.segment_length, *spec.latent_shape), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct((spec.rounds, spec.batch, *shape), dtype, sharding=by_item)
        for name, (shape, dtype) in shapes.items()
    }


def place_params(params: Any, mesh: jax.sharding.Mesh) -> Any:
    """Moves params to where the programs want them (`abstract_params`); no copy where they are there already."""
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract_params(params, mesh)))


def _without_segment_axes(entry):
    kept = tuple(axis for axis in ((entry,) if isinstance(entry, str) else entry or ()) if axis not in SEGMENT_AXES)
    return kept or None


def _shardings(mesh: jax.sharding.Mesh) -> tuple[jax.NamedSharding, jax.NamedSharding]:
    return jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P(None, SEGMENT_AXES))


def _put(x: np.ndarray, sharding: jax.NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.lru_cache(maxsize=32)
def _compile(spec: LevelSpec, tree: Any, leaves: Sequence[tuple]) -> CompiledLevel:
    start = time.perf_counter()
    everywhere, by_item = _shardings(spec.mesh)
    params = tree.unflatten([jax.ShapeDtypeStruct(*x[:2], sharding=x[2]) for x in leaves])
    key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=spec.key_impl)))
    key_data = jax.ShapeDtypeStruct(key_data.shape, key_data.dtype, sharding=everywhere)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    fn = jax.jit(_level_fn(spec), out_shardings=by_item)
    executable = fn.lower(params, key_data, scalar, scalar, abstract_items(spec)).compile()
    return CompiledLevel(spec, executable, time.perf_counter() - start)


def _level_fn(spec: LevelSpec) -> Callable:
    def microbatch(params, key_data, level, x):
        key = jax.random.wrap_key_data(key_data, impl=spec.key_impl)
        fold = jax.random.fold_in
        keys = jax.vmap(lambda video, segment: fold(fold(fold(key, video), level), segment))(x["video"], x["segment"])
        given = x["given"][..., None, None, None]  # [b, L, 1, 1, 1]
        mask = jnp.broadcast_to(given.astype(jnp.float32), (*x["cond"].shape[:-1], 1))  # [b, L, h, w, 1]
        cond = x["cond"] if spec.handover is None else spec.handover(params, x["cond"], mask)
        x0 = spec.sample_segments(params, keys, cond, mask, x["prompt"], level=spec.network_level)
        return jnp.where(given, x["cond"], x0.astype(jnp.float32))  # [b, L, h, w, c]

    def level_fn(params, key_data, level, rounds, items):
        def one_round(r, out):
            x = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, r, keepdims=False), items)
            x = jax.lax.optimization_barrier(x)
            x0 = jax.lax.optimization_barrier(microbatch(params, key_data, level, x))
            return jax.lax.dynamic_update_index_in_dim(out, x0, r, 0)

        return jax.lax.fori_loop(0, rounds, one_round, jnp.zeros_like(items["cond"]))

    by_item = jax.P(None, SEGMENT_AXES)
    return jax.shard_map(
        level_fn,
        mesh=spec.mesh,
        in_specs=(jax.P(), jax.P(), jax.P(), jax.P(), by_item),
        out_specs=by_item,
        axis_names=set(SEGMENT_AXES),
        check_vma=False,
    )
