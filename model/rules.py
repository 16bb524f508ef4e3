"""Declarations of residual rules and activations: options, defaults, and what a config or an optimizer must know.

The config's keys, their documentation and checks, and muP's factors derive from `RULES` and `ACTIVATIONS`. No JAX here;
each declaration names the class or function that implements it. To add a rule, set `RULES[name]` before the config's
schema is imported, and an activation in `ACTIVATIONS`:

    RULES["scaled"] = Rule("my_rules:Scaled", {"factor": Option("factor of F", 0.5)})
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Real
from typing import Any, Literal, NamedTuple

# How a parameter's shape grows with the width (train/core/mup.py).
Growth = Literal["hidden", "vector", "readout", "scalar"]
Mixing = Literal["sinkhorn", "identity", "circulant", "lite"]  # of mhc


class DeclarationError(ValueError):
    """A declaration of a rule, an option, an instrument or an optimizer that cannot be used; one line."""


def object_at(code: str, package: str) -> Any:
    """The class or function at module:name; a leading dot is `package`. Raises DeclarationError."""
    module_name, _, name = code.partition(":")
    try:
        module = import_module(module_name, package)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise DeclarationError(f"{code}: {type(error).__name__}: {first} on import") from error
    value = getattr(module, name, None)
    if not callable(value):
        raise DeclarationError(f"{code}: module {module_name} has no class or function {name!r}")
    return value


class Activation(NamedTuple):
    """An activation of the MLP: `module:name` of its function, and whether it acts on a gate that scales the values."""

    code: str
    gated: bool = False

    def function(self) -> Any:
        """Array -> Array of the same shape; imports JAX. Raises DeclarationError."""
        return object_at(self.code, "model")


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation("jax.nn:gelu"),  # the tanh form, Hendrycks & Gimpel 2016, 1606.08415
    "relu": Activation("jax.nn:relu"),
    "relu2": Activation(".mlp:relu2"),
    "silu": Activation("jax.nn:silu"),
    # Shazeer 2020, 2002.05202, eqs. 5 and 6.
    "swiglu": Activation("jax.nn:silu", gated=True),
    "geglu": Activation("jax.nn:gelu", gated=True),
    "linear": Activation("jax.nn:identity"),
}


@dataclass(frozen=True)
class Option:
    """An option of one rule: a key of `model.residual`, null for the rule's own default."""

    meaning: str
    default: Any  # a value, or a function of the model's config
    kind: Any = float  # float: traced; int, bool, a Literal of names: part of the program
    bounds: Mapping[str, Any] = field(default_factory=dict)  # pydantic's ge, gt, le, lt
    shown: str = ""  # the default in words, where it is not a value
    needs: str | None = None  # another option, which must be true

    def __post_init__(self) -> None:
        if not self.shown and not isinstance(self.default, Real | str):
            raise DeclarationError(
                f"Option {self.meaning!r}: `shown` is needed, the default in words, where it is no number"
            )


@dataclass(frozen=True)
class Rule:
    """One residual rule."""

    code: str  # module:Class; a leading dot is model/residual
    options: Mapping[str, Option] = field(default_factory=dict)
    growth: Mapping[str, Growth] = field(default_factory=dict)  # its parameters, by pattern of paths in blocks/residual
    skip_only: tuple[str, ...] = ()  # patterns of parameters that act through the skip alone: no gradient at s = 0
    additive: bool = True  # the skip scale applies, so the counterfactual s = 0 exists
    draws: bool = False  # its training depends on a random key
    skip_scale: float | None = None  # fixed by the rule
    derivative: bool = True  # what passes down is the derivative of the loss
    check: Callable[[Any], Iterator[tuple[str, str]]] | None = None  # model's config -> problems, see `problems`
    program: str | None = None  # the rule whose program it runs, with other numbers
    meaning: str = ""  # where it is not the class's docstring

    def implementation(self) -> Any:
        """The subclass of `model.residual.Residual`; imports JAX. Raises DeclarationError."""
        return object_at(self.code, __name__.replace(".rules", ".residual"))

    def default(self, option: str, config: Any) -> Any:
        """The value of an option that the config leaves null; `config` is the model's."""
        value = self.options[option].default
        return value(config) if callable(value) else value


def _mhc(config: Any) -> Iterator[tuple[str, str]]:
    options = config.residual
    if options.mixing == "lite" and options.streams is not None and options.streams > 6:
        yield (
            "residual.streams",
            f"mixing: lite weighs all permutations of them (n!); expected at most 6, got {options.streams}",
        )
    if options.mixing not in (None, "sinkhorn") and options.rounds is not None:
        yield "residual.rounds", f"an option of mixing: sinkhorn; residual.mixing is {options.mixing}"


def _attnres(config: Any) -> Iterator[tuple[str, str]]:
    if config.residual.heads is not None and config.width % config.residual.heads:
        yield "residual.heads", f"expected a divisor of width {config.width}, got {config.residual.heads}"


_ALPHA = Option("alpha at the start", 0.0)
_STREAMS = Option("copies of the stream, n", 4, int, {"ge": 2, "le": 64})
_GATE = "factor of the dynamic part at the start"

RULES: dict[str, Rule] = {
    "pre_ln": Rule(".base:Residual"),
    "post_ln": Rule(".scaled:PostLN"),
    "none": Rule(
        ".base:Residual",
        skip_scale=0.0,
        program="pre_ln",
        meaning="x <- F(N(x)): pre_ln at s = 0, and the same compiled program.",
    ),
    "mix_ln": Rule(
        ".scaled:MixLN",
        {"share": Option("share of the blocks, from the first, that are post_ln", 0.25, bounds={"ge": 0, "le": 1})},
    ),
    "keel": Rule(".scaled:Keel", {"alpha": Option("alpha", lambda config: 2.0 * config.layers, shown="2L")}),
    "sandwich": Rule(".scaled:Sandwich"),
    "res_post_norm": Rule(".scaled:ResPostNorm"),
    "lns": Rule(".scaled:LayerNormScaling"),
    "completep": Rule(
        ".scaled:CompleteP", {"base_layers": Option("L_base, the depth that the rate is right for", 2, int, {"ge": 1})}
    ),
    "orthogonal": Rule(".scaled:Orthogonal"),
    "gpas": Rule(".scaled:GPAS", {"gate": Option("g at the start", 0.0)}, {"gate": "scalar"}, derivative=False),
    "siamese": Rule(".streams:Siamese"),
    "denseformer": Rule(
        ".mixed:DenseFormer",
        {"dynamic": Option("weights that depend on the token", False, bool)},
        {"alpha": "scalar", "dynamic/hidden": "readout", "dynamic/out": "scalar"},
    ),
    "rezero": Rule(".scaled:ReZero", {"alpha": _ALPHA}, {"alpha_*": "scalar"}),
    "skipinit": Rule(".scaled:SkipInit", {"alpha": _ALPHA}, {"alpha_*": "scalar"}),
    "layerscale": Rule(
        ".scaled:LayerScale",
        {
            "scale": Option(
                "lambda at the start",
                lambda config: 0.1 if config.layers <= 18 else 1e-5 if config.layers <= 24 else 1e-6,
                shown="0.1, 1e-5 or 1e-6 by depth",
            )
        },
        {"lambda_*": "vector"},
    ),
    "deepnorm": Rule(
        ".scaled:DeepNorm",
        {"alpha": Option("alpha", lambda config: (2 * config.layers) ** 0.25, shown="(2L)^(1/4)")},
    ),
    "gpt2_scaled": Rule(".scaled:GPT2Scaled", program="pre_ln"),
    "value_residual": Rule(".mixed:ValueResidual", {"mix": Option("lambda at the start", 0.5)}, {"lambda": "scalar"}),
    "x0_lambda": Rule(".mixed:X0Lambda", {"mix": Option("lambda_1 at the start", 0.0)}, {"lambda_*": "scalar"}),
    "stochastic_depth": Rule(
        ".scaled:StochasticDepth",
        {"keep": Option("survival probability of the last block", 0.5, bounds={"gt": 0, "le": 1})},
        draws=True,
    ),
    "highway": Rule(
        ".scaled:Highway",
        {"bias": Option("the gate's bias at the start", -1.0)},
        {"gate_*/kernel": "hidden", "gate_*/bias": "vector"},
        additive=False,
    ),
    "hyper_connections": Rule(
        ".streams:HyperConnections",
        {
            "streams": _STREAMS,
            "dynamic": Option("mixing weights that depend on the token", False, bool),
            "gate": Option(_GATE, 0.01, needs="dynamic"),
        },
        {
            "dynamic_*/kernel": "readout",
            "dynamic_*/scale": "scalar",
            "read_*": "scalar",
            "across_*": "scalar",
            "write_*": "scalar",
        },
        skip_only=("across_*", "dynamic_across_*"),
    ),
    "mhc": Rule(
        ".streams:ManifoldHyperConnections",
        {
            "streams": _STREAMS,
            "gate": Option(_GATE, 0.01),
            "mixing": Option("how H_res is made doubly stochastic", "sinkhorn", Mixing),
            "rounds": Option("rounds of Sinkhorn", 20, int, {"ge": 1, "le": 1000}),
        },
        {"*/kernel": "readout", "*/bias": "scalar", "*/gate": "scalar"},
        skip_only=("across_*",),
        check=_mhc,
    ),
    "attnres": Rule(
        ".attnres:AttnRes",
        {
            "block": Option("blocks whose outputs are summed into one source", None, int, {"ge": 1}, "none are"),
            "heads": Option("parts of the width, each with weights of its own", 1, int, {"ge": 1}),
        },
        {"query_*": "readout"},
        additive=False,
        check=_attnres,
    ),
    "value_skipinit": Rule(
        ".mixed:ValueSkipInit",
        {"alpha": Option("alpha at the start", 1.0)},
        {"alpha": "scalar", "beta": "scalar"},
        additive=False,
    ),
}


def options() -> dict[str, dict[str, Option]]:
    """Each option as the rules that have it declare it."""
    by_key: dict[str, dict[str, Option]] = {}
    for name, rule in RULES.items():
        for key, option in rule.options.items():
            by_key.setdefault(key, {})[name] = option
    return by_key


def meanings(rules: Mapping[str, Option]) -> str:
    """Returns an option in words, once for rules that share them: `rezero, skipinit: alpha at the start; null = 0`."""
    by_text: dict[str, list[str]] = {}
    for name, option in rules.items():
        shown = option.shown or (f"{option.default:g}" if option.kind in (int, float) else str(option.default).lower())
        by_text.setdefault(f"{option.meaning}; null = {shown}", []).append(f"{option.needs or ''} {name}".strip())
    return ". ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items())


def problems(config: Any) -> Iterator[tuple[str, str]]:
    """Problems of the rule's options and of the skip scale in a model's config, as (key of the section, message)."""
    residual, skip_scale = config.residual, config.skip_scale
    name, rule = residual.rule, RULES[residual.rule]
    for key, owners in options().items():
        if getattr(residual, key) is None:
            continue
        if name not in owners:
            yield f"residual.{key}", f"an option of {', '.join(owners)}; residual.rule is {name}"
        elif (needs := owners[name].needs) and not getattr(residual, needs):
            yield f"residual.{key}", f"an option of {needs} {name}; residual.{needs} is false"
    yield from rule.check(config) if rule.check else ()
    if not rule.additive and skip_scale != 1.0:
        yield "skip_scale", f"{name} has none; leave it at 1, got {skip_scale}"
    if rule.skip_scale is not None and skip_scale not in (rule.skip_scale, 1.0):
        usual = f"use {rule.program}" if rule.program else "another rule"
        meant = f"residual: {name} means skip_scale {rule.skip_scale:g}"
        yield "skip_scale", f"{meant}; leave it out or {usual}, got {skip_scale}"
