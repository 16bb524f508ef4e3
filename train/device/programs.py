"""Variants grouped by program shape, and the compiled programs of a group.

Variants that differ only in traced numbers share one compiled function. On accelerators it is vmapped over them; on a
CPU it is called for each in turn (`train.group`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from model.network import Network
from model.residual import rule_of

from ..config.load import Variant
from ..config.schema import RunConfig
from ..core.batch import BatchInput
from ..core.compile import compiled
from ..core.evaluate import evaluate
from ..core.optimizer import HParams
from ..core.parameters import is_matrix, path_of
from ..core.state import State, hparams_of, initial_state, stacked_hparams, structure_of
from ..core.window import run_window
from ..instruments.snapshot import read


@dataclass(frozen=True)
class Group:
    """Variants of one program shape."""

    variants: tuple[Variant, ...]
    network: Network
    vmapped: bool

    @property
    def config(self) -> RunConfig:
        """Any member's config speaks for the fields that are static."""
        return self.variants[0].config

    @cached_property
    def hparams(self) -> list[HParams]:
        return [hparams_of(variant.config, self.network.param_dtype) for variant in self.variants]


def grouped(variants: Sequence[Variant], key_of: Callable[[Variant], Any] | None = None) -> list[tuple[Variant, ...]]:
    """Variants of equal structure together, in the order in which each structure first appears."""
    groups: dict[Any, list[Variant]] = {}
    for variant in variants:
        key = structure_of(variant.config).model_dump_json() if key_of is None else key_of(variant)
        groups.setdefault(key, []).append(variant)
    return [tuple(members) for members in groups.values()]


def model_flops(network: Network, batch: int) -> float:
    """FLOPs of the matmuls of one forward and backward pass of `batch` windows (6 a weight and token, 12 T D a
    token and layer for attention's two products: Chowdhery et al. 2022, 2204.02311, appendix B; and 3 times those
    that the residual rule adds to a forward pass)."""
    shapes = network.shapes()
    leaves = jax.tree_util.tree_leaves_with_path(shapes["blocks"])
    matrices = [leaf for keys, leaf in leaves if is_matrix(path_of(keys))]
    tables = [shapes.get("head", shapes["embed"]), *([] if network.channels is None else [shapes["embed"]])]
    weights = sum(math.prod(leaf.shape) for leaf in [*matrices, *tables])
    attention = 12 * network.config.layers * network.config.width * network.context
    return float((6 * weights + attention + 3 * rule_of(network.config).flops) * batch * network.context)


def shapes_of(feed: BatchInput, *lead: int) -> BatchInput:
    """Shapes and dtypes of host arrays, with `lead` in place of as many leading axes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[len(lead) :]), leaf.dtype), feed)


@dataclass
class Programs:
    """The compiled programs of one group; each is compiled once, in the background from the moment it is asked for."""

    group: Group
    corpus: Any  # device array, or None when batches arrive whole
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    _compiled: dict[Any, Future] = field(default_factory=dict)
    feeds: dict[Any, Any] = field(default_factory=dict)  # what a call is given besides the state, numbers and corpus

    def prepare(
        self, key: Any, function: Callable, arguments: tuple, donate: tuple[int, ...] = (), once: bool = False
    ) -> Future:
        """Starts to compile `function` for `arguments` unless `key` was prepared before."""
        if key not in self._compiled:

            def build():
                return compiled(function, arguments, donate, once)

            self._compiled[key] = self._pool.submit(build)
            self.feeds[key] = arguments[3:]
        return self._compiled[key]

    def wait(self) -> None:
        """Returns when all that was prepared is compiled."""
        for future in self._compiled.values():
            future.result()

    @property
    def ready(self) -> dict[Any, tuple[Any, Any]]:
        """Each program with its feed; waits for those that are being compiled."""
        return {key: (future.result(), self.feeds[key]) for key, future in self._compiled.items()}

    def abandon(self) -> None:
        """Nothing more is compiled; what is being compiled cannot be stopped, and is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def abstract_state(self) -> State:
        """Shapes and dtypes of one call's state: [variants, ...] when vmapped."""
        return jax.eval_shape(self._init, self._hp(0))

    @property
    def _init(self) -> Callable:
        return self._mapped(partial(initial_state, self.group.network, self.group.config))

    def _mapped(self, function: Callable, in_axes: Any = 0) -> Callable:
        return jax.vmap(function, in_axes) if self.group.vmapped else function

    def _hp(self, index: int) -> HParams:
        return self._hparams[index]

    @cached_property
    def _hparams(self) -> list[HParams]:
        """Of each call, on the device: as numpy scalars each would be copied again at every call."""
        group = self.group
        return jax.device_put([stacked_hparams(group.hparams)] if group.vmapped else group.hparams)

    @property
    def calls(self) -> int:
        """Calls that advance the whole group: 1 when vmapped, one a variant when called in turn."""
        return 1 if self.group.vmapped else len(self.group.variants)

    def init(self) -> list[State]:
        """The initial state of each call."""
        program = self.prepare_init().result()
        return [program(self._hp(index)) for index in range(self.calls)]

    def prepare_init(self) -> Future:
        return self.prepare("init", self._init, (self._hp(0),), once=True)

    def prepare_window(self, batches: BatchInput, watched: bool) -> Future:
        """`batches`: shapes and dtypes of one call's batches."""
        config = self.group.config
        every = config.watch.every if watched else 0
        function = partial(run_window, self.group.network, config, every)
        arguments = (self.abstract_state, self._hp(0), self.corpus, batches)
        mapped = self._mapped(function, (0, 0, None, 0))
        return self.prepare(
            ("window", tuple(leaf.shape for leaf in jax.tree.leaves(batches)), watched), mapped, arguments, donate=(0,)
        )

    def window(self, states: Sequence[Any], batches: list[BatchInput], watched: bool) -> tuple[list[Any], list[Any]]:
        """Runs a window of every variant. Returns the new states and the measurements, both still on the device.

        batches: leaves [K, B, ...], one entry a variant. `states` are donated. A state of None rests, here and in the
        methods below: its measurement is None.
        """
        if self.group.vmapped:
            batches = [jax.tree.map(lambda *leaves: np.stack(leaves), *batches)]
        after, measured = [], []
        for index, (state, batch) in enumerate(zip(states, batches, strict=True)):
            results = None
            if state is not None:
                program = self.prepare_window(shapes_of(batch), watched).result()
                state, *results = program(state, self._hp(index), self.corpus, jax.device_put(batch))
            after.append(state)
            measured.append(results)
        return after, measured

    def prepare_instrument(self, name: str, batches: BatchInput) -> Future:
        """`batches`: shapes and dtypes of one call's batches, [instrument's batches, B, ...] behind the lead."""
        function = partial(read, name, self.group.network, self.group.config)
        mapped = self._mapped(function, (0, 0, None, 0))
        return self.prepare(("instrument", name), mapped, (self.abstract_state, self._hp(0), self.corpus, batches))

    def instrument(self, name: str, states: list[Any], batches: list[BatchInput]) -> list[Any]:
        """What an instrument reads of every variant, still on the device; `batches` as for `window`."""
        if self.group.vmapped:
            batches = [jax.tree.map(lambda *leaves: np.stack(leaves), *batches)]
        program = self.prepare_instrument(name, shapes_of(batches[0])).result()
        return [
            None if state is None else program(state, self._hp(index), self.corpus, jax.device_put(batch))
            for index, (state, batch) in enumerate(zip(states, batches, strict=True))
        ]

    def prepare_evaluation(self, corpus: Any, batches: BatchInput, weights: np.ndarray) -> Future:
        network = dataclasses.replace(self.group.network, unroll=1)  # short to compile, and forwards only
        arguments = (self.abstract_state.params, self._hp(0).model, corpus, batches, weights)
        mapped = self._mapped(partial(evaluate, network), (0, 0, None, None, None))
        return self.prepare("evaluate", mapped, arguments)

    def evaluate(
        self, states: list[Any], corpus: Any, batches: BatchInput, weights: np.ndarray, averaged: bool = False
    ) -> list[Any]:
        """Held-out scores of the parameters, or of their moving averages; on the device, one entry a call."""
        program = self.prepare_evaluation(corpus, batches, weights).result()
        batches, weights = jax.device_put((batches, weights))

        def scores(index: int, state: State | None) -> Any:
            if state is None:
                return None
            return program(state.ema if averaged else state.params, self._hp(index).model, corpus, batches, weights)

        return [scores(index, state) for index, state in enumerate(states)]

    @property
    def abstract_single(self) -> State:
        """Shapes and dtypes of one variant's state."""
        like = self.abstract_state
        if not self.group.vmapped:
            return like
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), like)

    def each(self, fetched: list[Any]) -> list[Any]:
        """One entry a variant, from host arrays that have one entry a call."""
        if not self.group.vmapped:
            return fetched
        count = len(self.group.variants)
        return [jax.tree.map(lambda leaf, index=index: leaf[index], fetched[0]) for index in range(count)]

    def joined(self, states: list[State]) -> list[Any]:
        """The inverse of `each`: the states of single variants as those of calls."""
        return [jax.tree.map(lambda *leaves: np.stack(leaves), *states)] if self.group.vmapped else states
