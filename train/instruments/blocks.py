"""Instruments inside the blocks: attention, hidden units, sublayers, delta's two ways, losses, rules, Jacobians."""

import jax
import jax.numpy as jnp

from model.residual import rule_of
from model.residual.attnres import AttnRes
from model.residual.streams import Streams

from ..gradflow import jacobian as jacobians
from ..gradflow import mixing, per_block
from .readings import Matrix, Reading
from .snapshot import Snapshot


def attention(snapshot: Snapshot) -> dict[str, Reading]:
    """Entropy, largest logit and weight of the first token, over the heads and of each; the stream's largest entry."""
    readings = per_block.observed(snapshot.anatomy(), {"attn/scores": per_block.attention, "stream": per_block.peak})
    of = readings["attn/scores"]
    return {
        "attn/entropy": {"layer": jnp.mean(of.entropy, axis=1), "head": of.entropy},
        "attn/logit_max": {"layer": jnp.max(of.logit_max, axis=1), "head": of.logit_max},
        "attn/sink": {"layer": jnp.mean(of.sink, axis=1), "head": of.sink},
        "act/peak": readings["stream"],
    }


def units(snapshot: Snapshot) -> dict[str, Reading]:
    """Share of MLP units that are exactly 0 for every token."""
    dead = per_block.observed(snapshot.anatomy(), {"mlp/hidden": per_block.dead_units})
    return {"act/dead_units": dead["mlp/hidden"]}


def ledger(snapshot: Snapshot) -> dict[str, Reading]:
    """Size and direction of each sublayer's output against the stream that it reads, and delta at that output."""
    anatomy = snapshot.anatomy()
    of = per_block.ledger(anatomy, snapshot.loss_at(anatomy))
    return {f"ledger/{part}_{key}": value for part, stats in of.items() for key, value in stats._asdict().items()}


def depth_loss(snapshot: Snapshot) -> dict[str, Reading]:
    """The loss with the head at each depth, and without each block."""
    anatomy = snapshot.anatomy()
    of = per_block.depth_loss(anatomy, snapshot.loss_at(anatomy))
    return {f"depth_loss/{key}": value for key, value in of._asdict().items()}


def split(snapshot: Snapshot) -> dict[str, Reading]:
    """Delta past the sublayers of each block and through them."""
    anatomy = snapshot.anatomy()
    parts = per_block.split(anatomy, snapshot.loss_at(anatomy))
    return {"split/skip": parts.skip, "split/branch": parts.branch, "split/cosine": parts.cosine}


def jacobian(snapshot: Snapshot) -> dict[str, Reading]:
    """Singular values for the first example of the batch: examples do not touch one another."""
    of = jacobians.jacobians(snapshot.anatomy(examples=1), jax.random.key(0))
    blocks = {f"jacobian/{key}": value for key, value in of.block._asdict().items()}
    return blocks | {f"jacobian/stack_{key}": value for key, value in of.stack._asdict().items()}


def residual(snapshot: Snapshot) -> dict[str, Reading]:
    """The rule's own parameters, and its mixing weights as matrices."""
    own, rule = mixing.own_parameters(snapshot.params), rule_of(snapshot.config.model)
    growth = snapshot.config.model.rule.growth
    pictures = mixing.matrices(own, [name for name, kind in growth.items() if kind == "scalar"])
    if isinstance(rule, Streams):
        pictures = mixing.stream_mixing(rule, snapshot.params["blocks"]["residual"])
    if isinstance(rule, AttnRes):
        pictures = {"mixing": mixing.depth_mixing(rule, snapshot.anatomy(), own, snapshot.hp.model["norm_eps"])}
    readings: dict[str, Reading] = {f"residual/{name}": values for name, values in mixing.sizes(own).items()}
    return readings | {f"residual/{name}/matrix": Matrix(values) for name, values in pictures.items()}
