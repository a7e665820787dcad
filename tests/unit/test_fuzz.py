"""Whole configs and artifact headers, drawn at random: each is taken, or refused in one sentence; nothing else happens.

``HYPOTHESIS_PROFILE=long pytest tests/unit/test_fuzz.py`` draws forty times as many.
"""

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configs import DEFAULT
from hypothesis import given, settings
from hypothesis import strategies as st

from mkdt import artifacts
from mkdt.config import architectures, plan, registry, stages
from mkdt.config import loading as cfg
from mkdt.config.budgets import budget_words
from mkdt.config.catalogue import DATASETS
from mkdt.config.methods import METHODS, methods_that
from mkdt.config.schema import SCHEMA
from mkdt.config.sections import Config
from mkdt.config.set_checks import check_set, check_values_of
from mkdt.config.stages import STAGES
from mkdt.distill.synthetic_set import load_synthetic
from mkdt.errors import UserError
from mkdt.jobs import estimate_tables as resources
from mkdt.teacher.external_checkpoint import load_checkpoint

GRAMMAR: dict[str, Any] = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
TIMES = 40 if settings.default is not None and settings.default.max_examples > 25 else 1
Draw = Callable[[st.SearchStrategy[Any]], Any]


def of_schema(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that obey a node of the schema, numbers near their bounds; names and patterns are filled in later."""
    node = {**GRAMMAR["$defs"][node["$ref"].rsplit("/", 1)[1]], **node} if "$ref" in node else node
    if "enum" in node:
        return st.sampled_from(node["enum"])
    kinds = [node["type"]] if isinstance(node["type"], str) else node["type"]
    return st.one_of([of_kind(kind, node) for kind in kinds])


def of_kind(kind: str, node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """One of a node's types."""
    if kind == "object":
        known, other = node.get("properties", {}), node.get("additionalProperties")
        if isinstance(other, dict):
            return st.dictionaries(st.sampled_from(["a", "b-2", "C_3"]), of_schema(other), min_size=1)
        required = {key: of_schema(known[key]) for key in node.get("required", [])}
        return st.fixed_dictionaries(
            required, optional={key: of_schema(known[key]) for key in known if key not in required}
        )
    if kind == "array":
        least, most = node.get("minItems", 0), node.get("maxItems", node.get("minItems", 0) + 2)
        unique = repr if node.get("uniqueItems") else None
        return st.lists(of_schema(node["items"]), min_size=least, max_size=most, unique_by=unique)
    low = node.get("minimum", node.get("exclusiveMinimum", 0))
    return {
        "null": st.none(),
        "boolean": st.booleans(),
        "string": st.sampled_from(["auto"] if node.get("pattern") == "^auto$" else ["auto", "x", "Größe"]),
        "integer": st.integers(int(low) + ("exclusiveMinimum" in node), min(int(low) + 9, node.get("maximum", 10**9))),
        "number": st.floats(
            low,
            min(low + 9, node.get("maximum", node.get("exclusiveMaximum", 10**9))),
            exclude_min="exclusiveMinimum" in node,
            exclude_max="exclusiveMaximum" in node,
        ),
    }[kind]


def some(draw: Draw, values: list[Any], least: int = 1) -> list[Any]:
    """Some of the values, each once, in any order."""
    return draw(st.lists(st.sampled_from(values), min_size=least, max_size=4, unique=True))


@st.composite
def valid(draw: Draw) -> dict[str, Any]:
    """A whole config from the schema, in which what depends on other keys is put right: it must be taken."""
    config = draw(of_schema(GRAMMAR))
    config |= {"experiment": "fuzz", "options": {}}  # no extension is here to have options
    for name in list(config["datasets"]):
        facts = DATASETS[draw(st.sampled_from(sorted(DATASETS)))]
        kind = next(kind for kind in DATASETS if DATASETS[kind] is facts)
        config["datasets"][name] = {
            "kind": kind,
            "train": None,
            "validation": None if facts.validation else draw(st.sampled_from([0.1, 500])),
            "test": None if facts.test else 0.2,
            "image_size": draw(st.integers(32, 40)),
            "limit": None,
        }
    labelled = [name for name, entry in config["datasets"].items() if DATASETS[entry["kind"]].classes]
    if not labelled:
        config["datasets"]["digits"] = DEFAULT["datasets"]["digits"] | {"image_size": 32}
        labelled = ["digits"]
    config["source"] = draw(st.sampled_from(sorted(config["datasets"])))
    for name, entry in config["students"].items():
        complete = {"depth": 1, "width": 32, "norm": "instance", "blocks": [1]} | entry
        config["students"][name] = complete | {
            "architecture": draw(st.sampled_from(sorted(architectures.ARCHITECTURES)))
        }
        config["students"][name] |= {"depth": min(5, complete["depth"]), "width": min(32, complete["width"])}
    student = config["students"]["own"] = DEFAULT["students"]["convnet"] | {"norm": draw(st.sampled_from(["group", "instance", "none"]))}  # fmt: skip
    config["student"] = "own"
    assert student["depth"] <= 5
    config["pretrain"]["students"] = some(draw, sorted(config["students"]))
    config["krr_st"]["student"] = draw(st.sampled_from(sorted(config["students"])))
    config["teacher"]["backbone"] |= {"blocks": [1, 1], "width": 8}
    config["teacher"]["warmup_epochs"] = draw(st.integers(0, config["teacher"]["epochs"] - 1))
    config["teacher"] |= {"name": "t", "devices": 1}
    config["teacher"]["augment"]["crop_scale"].sort()
    config["teacher"]["checkpoint"] = dict.fromkeys(config["teacher"]["checkpoint"])
    config["targets"]["file"] = None
    config["targets"]["space"]["scale"] = draw(st.sampled_from(["none", "isotropic", 0.25, 1.0]))
    config["views"] = draw(st.sampled_from([["identity"], ["identity", "mirror", "shifts 2", "crop 0.5 centre"]]))
    config["methods"] = some(draw, sorted(METHODS))
    for section in ("distill", "krr_st", "bptt"):
        # Not one that a method of its own starts from, such as mkdt_random: both would make the same sets.
        config[section]["init"] = draw(
            st.sampled_from([name for name in methods_that(stage="subset") if name not in STARTS])
        )
    config["budgets"] = some(draw, [2, 9, 40, 0.02, 0.5])
    config["experts"]["epochs"] += config["distill"]["start_epochs"] + config["distill"]["match_epochs"]
    bptt = config["bptt"]
    bptt["window"] = draw(st.sampled_from([None, 1, bptt["steps"]]))
    bptt["curriculum"] = bptt["window"] is not None and draw(st.booleans())
    bptt["losses_at"] = [] if bptt["window"] or bptt["steps"] == 1 else draw(st.sampled_from([[], [1]]))
    config["distill"]["retain"] = draw(st.sampled_from(["auto", 0, 1, 99]))
    config["pretrain"]["steps"].sort()
    config["pretrain"]["rates"].sort()
    config["pretrain"]["batch"] = 10_007  # a prime: no set leaves a last batch of one image
    probe = config["probe"]
    probe |= {"selection": draw(st.sampled_from(labelled)), "downstream": some(draw, labelled)}
    probe |= {"label_fractions": some(draw, [0.05, 0.5, 1.0]), "knn": draw(st.sampled_from([None, 1, 5]))}
    probe["label_draws"] += probe["selection_draws"]
    return config


def evaluate_all(config: Config) -> None:
    """Everything that the Snakefile asks of a config that was taken."""
    for job in plan.jobs(config):
        names = job.wildcards
        json.dumps(STAGES[job.stage].slice(config, names), allow_nan=False)
        paths = list(stages.files(config, job))
        assert paths or job.stage == "report"
        for path in paths:
            assert "{" not in path
            artifact, found = stages.place(Path(path).relative_to("results")) or ("", {})
            sets = {artifact, job.stage} == {"subset", "distill"}  # which of the two depends on the method in the path
            assert artifact == STAGES[job.stage].artifact or sets
            assert names.items() <= found.items() | {"first": names.get("first"), "last": names.get("last")}.items()
    for budget, _ in (one for method in config["methods"] for one in plan.variants(config, method)):
        assert budget_words(budget)
    assert registry.names(config)
    assert resources.table(config).count("\n") > 5
    assert resources.total(config).count("|") == 6


@given(config=valid(), scale=st.sampled_from(["full", "smoke"]))
@settings(max_examples=40 * TIMES)
def test_a_config_drawn_from_the_schema_is_taken_and_planned(config: dict[str, Any], scale: str) -> None:
    """Whatever the schema and the conditions between keys allow gives settings, names, jobs and sizes for every rule."""
    evaluate_all(cfg.load(config | {"scale": scale}))


STARTS = {method.init for method in METHODS.values()}
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from([10**9, 10**30, 10**400, -(10**400), 1e308, float("nan"), float("inf"), 0.5, "", "null", "1e400", "a\nb", "a\0b", "../x", "file:"]),
        st.text(max_size=6),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.integers(0, 2), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in items for place in places(item, (*path, key))]


def holder(config: Any, path: tuple[Any, ...]) -> Any:
    """What the last key of a path is looked up in."""
    for key in path[:-1]:
        config = config[key]
    return config


@st.composite
def mutated(draw: Draw) -> dict[str, Any]:
    """A config with one to three faults: another value, one of another place, none, one too many."""
    config = copy.deepcopy(draw(st.sampled_from([DEFAULT, *TAKEN])))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        found = places(config)
        path = draw(st.sampled_from(found))
        inside = holder(config, path)
        fault = draw(st.sampled_from(["value", "moved", "removed", "added"]))
        if fault == "removed":
            del inside[path[-1]]
        elif fault == "added" and isinstance(inside, dict):
            inside[draw(st.text(max_size=4) | st.integers())] = draw(JUNK)
        elif fault == "moved":
            other = draw(st.sampled_from(found))
            inside[path[-1]] = copy.deepcopy(holder(config, other)[other[-1]])
        else:
            inside[path[-1]] = draw(JUNK)
    return config


TAKEN = [
    DEFAULT | {"methods": sorted(METHODS.keys() - {"mkdt_random", "bptt_kmeans"}), "scale": "smoke"},
    DEFAULT | {"students": DEFAULT["students"] | {"other": {"architecture": "vgg11"}}},
]


@given(config=mutated())
@settings(max_examples=150 * TIMES)
def test_a_faulty_config_is_one_sentence_or_a_plan(config: dict[str, Any]) -> None:
    """Never another exception, and nothing that is taken fails later in the Snakefile."""
    try:
        taken = cfg.load(config)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    evaluate_all(taken)


def framed(header: Any, content: bytes) -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def sealed(record: dict[str, Any]) -> str:
    """The project's header with a digest that fits it: a forger can reckon it too."""
    record.pop("check", None)
    try:
        return json.dumps(record | {"check": artifacts.digest(record)})
    except (ValueError, TypeError):  # no canonical form
        return json.dumps(record | {"check": ""})


KINDS = ["F32", "I32", "U8", "BOOL", "F64", "BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "X1", 3]
WRONG = JUNK | st.sampled_from([[], [""], {"x": []}, {"x": 3, "y": "0"}, {"x": ["0"] * 3, "y": ["1"]}, [0, 48], [2**63, 2**64], [-1, 4]])  # fmt: skip


@st.composite
def forged(draw: Draw, content: bytes) -> bytes:
    """A file that was altered in its bytes, its frame, its tensors' entries, or its own record."""
    length = struct.unpack("<Q", content[:8])[0]
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    fault = draw(st.sampled_from(["bytes", "cut", "length", "text", "tensor", "metadata", "record", "record"]))
    if fault == "bytes":
        return draw(st.binary(max_size=64))
    if fault == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if fault == "length":
        return (
            struct.pack("<Q", draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])))
            + content[8:]
        )
    if fault == "text":
        return framed(draw(st.sampled_from([b"", b"[]", b"3", b"{", b"\xff", b"[" * 99_999, b'{"a":' * 9_999])), rest)
    if fault == "tensor":
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        value = (
            draw(st.sampled_from(KINDS))
            if key == "dtype"
            else draw(WRONG | st.lists(st.integers(0, 2**40), max_size=3))
        )
        header[draw(st.sampled_from(["x", "y"]))][key] = value
    elif fault == "metadata":
        header["__metadata__"] = draw(WRONG | st.fixed_dictionaries({artifacts.HEADER_KEY: WRONG.map(json.dumps)}))
    else:
        record = json.loads(header["__metadata__"][artifacts.HEADER_KEY])
        key = draw(st.sampled_from(sorted(record)))
        if draw(st.booleans()):
            record[key] = draw(WRONG)
        else:
            del record[key]
        header["__metadata__"][artifacts.HEADER_KEY] = sealed(record)
    return framed(header, rest)


TENSORS = {"x": torch.arange(12.0).reshape(3, 4), "y": torch.tensor(2)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact as it should be."""
    path = tmp_path_factory.mktemp("fuzz") / "whole.safetensors"
    artifacts.save(path, TENSORS, stage="teacher", rows=["x"], inputs={"data": "0"}, notes={"place": "a"})
    return path


@given(data=st.data())
@settings(max_examples=200 * TIMES)
def test_a_forged_artifact_is_one_sentence_or_what_was_written(data: st.DataObject, whole: Path) -> None:
    """Every way to read it, rows too: the tensors that its record promises, or a sentence that names the file."""
    path = whole.with_name("forged.safetensors")
    path.write_bytes(data.draw(forged(whole.read_bytes())))
    config = cfg.load(DEFAULT)
    readers = (
        read_artifact,
        load_synthetic,
        lambda path: load_checkpoint(path, NO_OPTIONS, 1, 8),
        lambda path: (check_set(config, "methods.0", path), check_values_of("methods.0", path)),
    )
    for read in readers:
        try:
            read(path)
        except UserError as error:
            assert "forged.safetensors" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


NO_OPTIONS = dict.fromkeys(("model", "sha256", "image_size", "mean", "std", "padding"))


def read_artifact(path: Path) -> None:
    """All that a stage asks of an artifact."""
    file = artifacts.Artifact(path)
    assert isinstance(file.header.get("notes", {}).get("skipped", []), list)
    assert file.header["stage"] + file.header["code"] + file.identity
    for name in file.names:
        shape, tensor = file.shape(name), file.tensor(name)
        assert tuple(tensor.shape) == shape
        if isinstance(file.header["digests"][name], list):
            for row in range(len(tensor)):
                assert torch.equal(file.row(name, row), tensor[row])
        if name in TENSORS and tensor.dtype == TENSORS[name].dtype:
            assert torch.equal(tensor, TENSORS[name])
