"""Configs that were made, or damaged, to break their reader: one line a problem, in time, and never anything else."""

import random

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.faults import configs, hostile
from train.config.fields import FIELDS, SECTIONS
from train.config.load import MAX_BYTES, ConfigError, load

QUIET = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_every_mutation_changes_something_and_the_seed_decides():
    content = b"name: x\nmodel: {layers: 2, width: 8}\ndata:\n  context: 4\n"
    made = [hostile.mutate(random.Random(n), content) for n in range(100)]
    assert sum(each != content for each in made) > 80 and len(set(made)) > 80
    assert configs.case(0, 5) == configs.case(0, 5) != configs.case(1, 5)


def test_bombs_are_as_large_as_they_say():
    """A loader that follows aliases builds all of it."""
    small = yaml.safe_load(hostile.bomb(levels=3, width=4))
    assert str(small["a3"]).count("lol") == 4**3
    assert len(yaml.safe_load(hostile.merge_bomb(levels=4))["m4"]) == 6
    sizes = {name: len(content) for name, content in hostile.crafted().items()}
    assert [name for name, size in sizes.items() if size > MAX_BYTES] == ["too large"]
    assert sum(size > 0.8 * MAX_BYTES for size in sizes.values()) > 40


KEYS = st.sampled_from([*FIELDS, *(key for key in SECTIONS if key), "variants", "sweep", "expect", "with"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "pre_ln", "markov", "auto", "x:Y"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS | st.text(max_size=6), VALUES, max_size=6), st.lists(st.tuples(KEYS, VALUES), max_size=2))
@QUIET
def test_any_structure_is_a_config_or_config_errors(tmp_path_factory, mapping, overrides):
    path = tmp_path_factory.getbasetemp() / "structure.yaml"
    content = yaml.safe_dump({"name": "x"} | mapping, allow_unicode=True).encode("utf-8", "surrogatepass")
    given = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in overrides]
    configs.check_load(path, content, given)


PIECES = st.sampled_from(
    [
        *(b": ", b"- ", b"? ", b"[", b"]", b"{", b"}", b"\n", b"  ", b"&a ", b"*a", b"!!int ", b"<<: ", b"'", b'"'),
        *(b"|", b">-", b"---\n", b"...\n", b"...", b"%YAML ", b"\\U", b"\t", b"1" * 30, b"\xff", b"null", b"\xc2\x85"),
        *(b"name", b".", b"\r"),
    ]
)


@given(
    st.binary(max_size=300)
    | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(PIECES | st.binary(max_size=3), max_size=30).map(b"".join),
    st.lists(st.text(max_size=20) | st.tuples(KEYS, st.text(max_size=20)).map("=".join), max_size=2),
)
@QUIET
def test_any_bytes_are_a_config_or_config_errors(tmp_path_factory, content, overrides):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    configs.check_load(path, content, overrides)


def test_a_sweep_of_a_thousand_million_points_is_refused_at_once(tmp_path, wording):
    assert configs.check_load(tmp_path / "a.yaml", hostile.exploding().encode())[0] == "refused"
    path = tmp_path / "b.yaml"
    path.write_text(hostile.exploding(), encoding="utf-8")
    with wording.raises(ConfigError) as caught:
        load(path)
    assert [problem.key for problem in caught.value.problems] == ["sweep"]
