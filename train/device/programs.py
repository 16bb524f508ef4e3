"""Groups of variants that share programs, and the compiled programs of a group.

Variants that differ only in traced numbers share one compiled function. On accelerators it is vmapped over them; on a
CPU it is called for each in turn (`train.group`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from model.network import Network, path_of
from model.residual import rule_of
from model.sharding import BATCH_AXES

from ..config.load import Variant
from ..config.schema import RunConfig
from ..core.batch import BatchInput
from ..core.dispatch import run_dispatch
from ..core.evaluate import evaluate
from ..core.optimizer import HParams
from ..core.parameters import is_matrix
from ..core.state import State, hparams_of, initial_state, program_structure, stacked_hparams
from ..instruments.snapshot import read
from .mesh import laid_out, placed

# At optimization level 0 XLA's old CPU emitters compile in half the time of the new ones; jaxlib 0.11 removed them.
_ONCE: dict[str, Any] = {"xla_backend_optimization_level": 0}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _ONCE["xla_cpu_use_fusion_emitters"] = False


def compiled(
    function: Callable,
    arguments: tuple,
    donate: tuple[int, ...] = (),
    once: bool = False,
    mesh: Mesh | None = None,
    outputs: Any = None,
) -> Any:
    """Compiles `function` for `arguments` (arrays, or their shapes, dtypes and shardings).

    `outputs`: shardings of what it returns, over `mesh`.

    `once`: the program runs a few times at most, so it is compiled without optimization on a CPU. The initial draws
    then compile 3.5 times faster; their last bit may differ.
    """
    backend = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    options = _ONCE if once and backend == "cpu" else None
    with nullcontext() if mesh is None or mesh.size == 1 else jax.set_mesh(mesh):
        lowered = jax.jit(function, donate_argnums=donate, out_shardings=outputs).lower(*arguments)
        return lowered.compile(compiler_options=options)


def called_once(function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)`, run as a separate program that is compiled without optimization."""
    return compiled(function, arguments, once=True)(*arguments)


@dataclass(frozen=True)
class VariantGroup:
    """Variants that share compiled programs."""

    variants: tuple[Variant, ...]
    network: Network
    vmapped: bool
    mesh: Mesh

    @property
    def config(self) -> RunConfig:
        """Config of the first variant: all agree in the static fields."""
        return self.variants[0].config

    @cached_property
    def hparams(self) -> list[HParams]:
        return [hparams_of(variant.config, self.network.param_dtype) for variant in self.variants]

    @cached_property
    def flops(self) -> float:
        """FLOPs of training all variants to their last step."""
        return len(self.variants) * model_flops(self.network, self.config.data.batch) * self.config.train.steps


def grouped(variants: Sequence[Variant]) -> list[tuple[Variant, ...]]:
    """Groups variants of equal structure, in order of first appearance."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(program_structure(variant.config).model_dump_json(), []).append(variant)
    return [tuple(members) for members in groups.values()]


def model_flops(network: Network, batch: int) -> float:
    """Returns the FLOPs of the matmuls of one forward and backward pass of `batch` windows.

    6 a weight and token, 12 T D a token and layer for attention's two products (Chowdhery et al. 2022, 2204.02311,
    appendix B), and 3 times those that the residual rule adds to a forward pass.
    """
    shapes = network.shapes()
    leaves = jax.tree_util.tree_leaves_with_path(shapes["blocks"])
    matrices = [leaf for keys, leaf in leaves if is_matrix(path_of(keys))]
    tables = [shapes.get("head", shapes["embed"]), *([] if network.channels is None else [shapes["embed"]])]
    weights = sum(math.prod(leaf.shape) for leaf in [*matrices, *tables])
    attention = 12 * network.config.layers * network.config.width * network.context
    return float((6 * weights + attention + 3 * rule_of(network.config).flops) * batch * network.context)


def with_steps(batches: BatchInput, steps: int) -> BatchInput:
    """Returns shapes and dtypes of batches [steps, B, ...] like these of another number of steps."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape[1:]), leaf.dtype), batches)


def laid_out_as(sharding: NamedSharding, tree: Any, lead: tuple[int, ...] = ()) -> Any:
    """Returns shapes and dtypes of arrays, with `lead` in front of each shape, in one layout."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding), tree)


Key: TypeAlias = tuple[Any, ...]  # of a program: its kind, and what tells those of one kind apart


@dataclass
class Programs:
    """The compiled programs of one group, each compiled once, in the background."""

    group: VariantGroup
    corpus: Any  # tokens, put on every device of the mesh; None if batches arrive whole
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    _compiled: dict[Key, Future] = field(default_factory=dict)
    inputs: dict[Key, Any] = field(default_factory=dict)  # of each program, after the state, numbers and corpus

    def __post_init__(self) -> None:
        if isinstance(self.corpus, np.ndarray):
            self.corpus = placed(self.corpus, self.layout())

    def prepare(
        self,
        key: Key,
        function: Callable,
        arguments: tuple,
        outputs: Any,
        donate: tuple[int, ...] = (),
        once: bool = False,
    ) -> Future:
        """Starts compiling `function` for `arguments`, unless `key` was prepared before; see `compiled`."""
        if key not in self._compiled:
            mesh = self.group.mesh
            self._compiled[key] = self._pool.submit(compiled, function, arguments, donate, once, mesh, outputs)
            self.inputs[key] = arguments[3:]
        return self._compiled[key]

    def run(self, key: Key, function: Callable, *arguments: Any, once: bool = True) -> Any:
        """Returns `function(*arguments)`, compiled at the first call with this key."""
        return self.prepare(key, function, arguments, None, once=once).result()(*arguments)

    @property
    def ready(self) -> dict[Key, tuple[Any, Any]]:
        """Compiled programs with their inputs, by key; waits for pending ones."""
        return {key: (future.result(), self.inputs[key]) for key, future in self._compiled.items()}

    def abandon(self) -> None:
        """Cancels pending compilations without waiting for running ones, which cannot be stopped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def abstract_state(self) -> State:
        """Shapes and dtypes of one call's state: [variants, ...] when vmapped."""
        return laid_out(self.group.mesh, jax.eval_shape(self._init, self.hparams[0]), self.group.vmapped)

    @property
    def shardings(self) -> State:
        """Layout of one call's state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def layout(self, *axes: Any) -> NamedSharding:
        """Returns the layout of arrays whose leading axes lie over these axes of the mesh; of none: on each device."""
        return NamedSharding(self.group.mesh, P(*axes))

    @property
    def _init(self) -> Callable:
        return self._mapped(partial(initial_state, self.group.network, self.group.config))

    def _mapped(self, function: Callable, in_axes: Any = 0) -> Callable:
        return jax.vmap(function, in_axes, spmd_axis_name="variants") if self.group.vmapped else function

    @cached_property
    def hparams(self) -> list[HParams]:
        """One HParams a call, kept on the device so that it is not uploaded again every call."""
        group = self.group
        if group.vmapped:
            return placed([stacked_hparams(group.hparams)], self.layout("variants"))
        return placed(group.hparams, self.layout())

    @property
    def calls(self) -> int:
        """Number of calls that advance the whole group: 1 when vmapped, else one a variant."""
        return 1 if self.group.vmapped else len(self.group.variants)

    def init(self) -> list[State]:
        """Returns the initial state of each call."""
        program = self.prepare_init().result()
        return [program(self.hparams[index]) for index in range(self.calls)]

    def prepare_init(self) -> Future:
        return self.prepare(("init",), self._init, (self.hparams[0],), self.shardings, once=True)

    def prepare_dispatch(self, batches: BatchInput, watched: bool) -> Future:
        """Prepares a dispatch of as many steps as one variant's `batches` have: [K, B, ...], or shapes and dtypes."""
        every = self.group.config.watch.every if watched else 0
        key = ("dispatch", *(leaf.shape for leaf in jax.tree.leaves(batches)), watched)
        function = partial(run_dispatch, self.group.network, self.group.config, every)
        return self._prepare_on_batches(
            key, function, batches, (self.shardings, self.layout(), self.layout()), donate=(0,)
        )

    def dispatch(self, states: list[Any], batches: list[BatchInput], watched: bool) -> tuple[list[Any], list[Any]]:
        """Runs a dispatch of every variant. Returns the new states and the measurements, both still on the device.

        batches: leaves [K, B, ...], one entry a variant. `states` are donated. Here and in the methods below a state
        of None is skipped and its measurement is None.
        """
        program = self.prepare_dispatch(batches[0], watched).result()
        states, measured = list(states), list[Any]([None] * len(states))
        for index, batch in self._placed_batches(states, batches):
            states[index], *results = program(states[index], self.hparams[index], self.corpus, batch)
            measured[index] = tuple(results)
        return states, measured

    def prepare_instrument(self, name: str, batches: BatchInput) -> Future:
        """Prepares an instrument for one variant's batches, [instrument's batches, B, ...], or shapes and dtypes."""
        function = partial(read, name, self.group.network, self.group.config)
        return self._prepare_on_batches(("instrument", name), function, batches, self.layout())

    def instrument(self, name: str, states: list[Any], batches: list[BatchInput]) -> list[Any]:
        """Returns an instrument's readings of every variant, still on the device; `batches` as for `dispatch`."""
        program, readings = self.prepare_instrument(name, batches[0]).result(), list[Any]([None] * len(states))
        for index, batch in self._placed_batches(states, batches):
            readings[index] = program(states[index], self.hparams[index], self.corpus, batch)
        return readings

    def _prepare_on_batches(
        self, key: Key, function: Callable, batches: BatchInput, outputs: Any, donate: tuple[int, ...] = ()
    ) -> Future:
        """Prepares a function of (state, numbers, corpus, batches); `batches` are those of one variant."""
        lead = (len(self.group.variants),) if self.group.vmapped else ()
        inputs = laid_out_as(self._batch_layout, batches, lead)
        arguments = (self.abstract_state, self.hparams[0], self.corpus, inputs)
        return self.prepare(key, self._mapped(function, (0, 0, None, 0)), arguments, outputs, donate)

    @property
    def _batch_layout(self) -> NamedSharding:
        """Layout of a call's batches [K, B, ...], or [variants, K, B, ...]."""
        return self.layout(*["variants"] * self.group.vmapped, None, BATCH_AXES)

    def _placed_batches(self, states: list[Any], batches: list[BatchInput]) -> Iterator[tuple[int, Any]]:
        """Yields the index and the batches, on their devices, of each call whose state is not None."""
        if self.group.vmapped:
            batches = [jax.tree.map(lambda *leaves: np.stack(leaves), *batches)]
        for index, (state, batch) in enumerate(zip(states, batches, strict=True)):
            if state is not None:
                yield index, placed(batch, self._batch_layout)

    def prepare_evaluation(self, corpus: Any, batches: BatchInput, weights: np.ndarray) -> Future:
        network = dataclasses.replace(self.group.network, unroll=1)  # shorter to compile, and there is no backward pass
        inputs = laid_out_as(self.layout(None, BATCH_AXES), (batches, weights))
        arguments = (self.abstract_state.params, self.hparams[0].model, corpus, *inputs)
        mapped = self._mapped(partial(evaluate, network), (0, 0, None, None, None))
        return self.prepare(("evaluate",), mapped, arguments, self.layout())

    def evaluate(
        self, states: list[Any], corpus: Any, batches: BatchInput, weights: np.ndarray, averaged: bool = False
    ) -> list[Any]:
        """Returns held-out scores of the parameters or their moving averages, one entry a call, still on the device."""
        program = self.prepare_evaluation(corpus, batches, weights).result()
        batches, weights = placed((batches, weights), self.layout(None, BATCH_AXES))

        def scores(index: int, state: State | None) -> Any:
            if state is None:
                return None
            return program(state.ema if averaged else state.params, self.hparams[index].model, corpus, batches, weights)

        return [scores(index, state) for index, state in enumerate(states)]

    @property
    def abstract_single(self) -> State:
        """Shapes and dtypes of one variant's state."""
        lead = int(self.group.vmapped)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype), self.abstract_state)

    def each(self, fetched: list[Any]) -> list[Any]:
        """Splits host arrays that have one entry a call into one entry a variant."""
        if not self.group.vmapped:
            return fetched
        count = len(self.group.variants)
        return [jax.tree.map(lambda leaf, index=index: leaf[index], fetched[0]) for index in range(count)]

    def joined(self, states: list[State]) -> list[Any]:
        """Returns the states of calls, on their devices, from those of single variants; the inverse of `each`."""
        states = [jax.tree.map(lambda *leaves: np.stack(leaves), *states)] if self.group.vmapped else states
        return [placed(state, self.shardings) for state in states]
