"""The scripts of the studies: tables, texts and figures from made-up and from committed scores."""

import itertools
import math
from pathlib import Path
from typing import Any

import architectures
import digits
import equal_bytes
import fashion
import numpy as np
import pandas as pd
import protocols
import pytest
import shared as studies
import ssl_trajectories
import torch
import what_matters
import yaml
from configs import settings_of
from hypothesis import given
from hypothesis import strategies as st
from score_tables import runs
from torch import Tensor

from mkdt import artifacts
from mkdt.config.budgets import budget_label
from mkdt.config.loading import load, merge, read
from mkdt.distill.experts import train_expert
from mkdt.distill.mtt_ssl import mtt_ssl_expert
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.networks.divergence import Diverged
from mkdt.report import tables as report

REPOSITORY = Path(__file__).parents[3]


def scores(
    method: str, student: str, accuracy: float, split: str = "test", seeds: tuple[int, ...] = (0, 1)
) -> pd.DataFrame:
    """Rows of rule probe, or of select, at one chosen point; a label draw changes all methods equally."""
    rows = []
    budget = "all" if method in {"none", "full"} else "1pct"
    for distill_seed in seeds if method in {"random", "kmeans", "mkdt"} else (0,):
        for seed in (0, 1):
            for draw in (0, 1):
                who = {"method": method, "student": student, "budget": budget, "downstream": "digits", "split": split}
                run = {"distill_seed": distill_seed, "seed": seed, "label_draw": draw, "label_fraction": 0.02}
                point = {
                    "rate": 0.1,
                    "steps": 20,
                    "chosen": True,
                    "chosen_at_steps": True,
                    "at_edge": student == "alexnet",
                }
                value = {
                    "evaluation": "linear",
                    "accuracy": accuracy + 3 * draw + seed,
                    "gradient": 0.0,
                    "finetune_rate": None,
                }
                rows.append(who | run | point | value)
    return pd.DataFrame(rows).assign(source="digits")


@pytest.fixture
def two_students() -> pd.DataFrame:
    """k-means is the best subset on test; for the AlexNet validation prefers random."""
    level = {"none": 70.0, "random": 74.0, "kmeans": 75.0, "mkdt": 78.0, "full": 80.0}
    parts = []
    for student in ("convnet", "alexnet"):
        for method, accuracy in level.items():
            parts.append(scores(method, student, accuracy))
            shown = 60.0 if (student, method) == ("alexnet", "kmeans") else accuracy
            parts.append(scores(method, student, shown, "validation"))
    return pd.concat(parts, ignore_index=True)


def test_the_best_subset_is_the_one_that_validation_prefers(two_students: pd.DataFrame) -> None:
    """A choice on test would favour the subsets."""
    best = report.against_best_subset(two_students, report.accuracies(two_students, ["1pct"]))
    preferred = best.set_index("student")[["method", "subset", "difference"]]
    assert preferred.loc["convnet"].tolist() == ["mkdt", "kmeans", 3.0]
    assert preferred.loc["alexnet"].tolist() == ["mkdt", "random", 4.0]


def test_the_table_of_architectures(two_students: pd.DataFrame) -> None:
    """Each student has a row, in the given order; a star marks the edge of the grid, a dash a method without scores."""
    two_students = two_students[(two_students["student"] == "convnet") | (two_students["method"] != "none")]
    accuracy = report.accuracies(two_students, ["1pct"])
    summary = report.summarise(accuracy, ["none", "random", "kmeans", "mkdt", "full"])
    ordered = summary.sort_values("student", ascending=False)
    text = architectures.as_text(ordered, report.against_best_subset(two_students, accuracy)).splitlines()
    assert text[0] == "| student | none | random | kmeans | mkdt | full |"
    assert text[2:4] == [
        "| convnet | 72.0 | 76.0 | 77.0 | 80.0 | 82.0 |",
        "| alexnet | - | 76.0* | 77.0* | 80.0* | 82.0* |",
    ]
    assert text[7] == "| student | best subset | mkdt | recovered |"
    assert text[9:] == [
        "| convnet | kmeans | +3.0 | 80 % |",
        "| alexnet | random | +4.0 | - |",
    ]
    (axis,) = architectures.plot(ordered, ["none", "random", "kmeans", "mkdt", "full"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["convnet", "alexnet"]


def test_tables_are_made_from_the_scores_that_exist(
    two_students: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods and budgets without scores are left out; no scores at all are an error."""
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    config = {
        "experiment": "e",
        "source": "digits",
        "budgets": [0.005, 0.01],
        "methods": ["none", "sas", "random", "full"],
        "pretrain": {"students": ["convnet", "alexnet"], "protocol": "fair"},
    }
    with pytest.raises(UserError, match="no scores yet"):
        studies.tables(config)
    others = two_students[two_students["method"].isin(["none", "random", "full"])]
    for (student, method, budget), rows in two_students.drop(columns="source").groupby(["student", "method", "budget"]):
        for stage, split in (("select", "validation"), ("probe", "test")):
            path = tmp_path / "e" / stage / str(student) / str(method) / f"{budget}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            mine = rows[rows["split"] == split]
            report.save_table(path, mine)
            if method == "random":  # of a budget that the config had once
                report.save_table(path.with_name("3pct.csv"), mine.assign(budget="3pct"))
    scores, accuracy, summary = studies.tables(config)
    assert len(scores) == len(others), "what the config does not name is left out"
    assert set(accuracy["budget"]) == {"1pct"}
    for _, rows in summary.groupby("student"):
        assert list(rows["method"]) == ["none", "random", "full"]
    made = studies.save(tmp_path / "page", config)
    assert list(dict.fromkeys(made["curve"]["method"])) == ["none", "random", "full"]
    files = {"accuracy", "summary", "curve", "grid", "runs_by_steps", "against_best_subset"}
    assert {file.stem for file in (tmp_path / "page").glob("*.csv")} == files
    points = pd.read_csv(tmp_path / "page/grid.csv")
    assert points[points["method"] == "full"]["validation"].tolist() == [82.0, 82.0]  # 80, the means of draws and seeds


def test_the_table_of_protocols(two_students: pd.DataFrame) -> None:
    """Each protocol and evaluation has a column; a dash means no scores; the configs differ in protocol and batch only."""
    linear = two_students[two_students["student"] == "convnet"]
    knn = linear.assign(evaluation="knn", accuracy=linear["accuracy"] - 1)
    methods = ["none", "random", "mkdt"]
    fair = report.summarise(report.accuracies(pd.concat([linear, knn]), ["1pct"]), methods)
    paper = report.summarise(report.accuracies(linear, ["1pct"]), methods)
    text = protocols.as_text(pd.concat([fair.assign(protocol="fair"), paper.assign(protocol="paper")])).splitlines()
    names = " | ".join(f"{p}, {name}" for p in ("fair", "paper") for name in report.EVALUATIONS.values())
    assert text[0] == text[6] == f"| method | {names} |"
    assert text[4] == "| mkdt | 80.0 | 79.0 | - | 80.0 | - | - |"
    assert text[9].startswith("| random | - | - | - | - | - | - |")
    assert text[10].startswith("| mkdt | +4.0 | +4.0 |")
    configs = [read([REPOSITORY / file for file in files]) for files in protocols.CONFIGS.values()]
    for config in configs:
        assert config["probe"]["finetune"]
        config["experiment"] = ""
        for key in ("protocol", "batch"):
            del config["pretrain"][key]
    assert configs[0] == configs[1]


def test_differences_at_equal_steps(two_students: pd.DataFrame) -> None:
    """They are paired run by run at each number of steps; a method without a budget is compared at every budget."""
    one = two_students[(two_students["student"] == "convnet") & (two_students["split"] == "test")]
    more = one.assign(steps=80, accuracy=one["accuracy"] + (one["method"] == "mkdt"))
    runs = studies.runs_by_steps(pd.concat([one, more, one.assign(steps=80, accuracy=0.0, chosen_at_steps=False)]))
    table = studies.at_equal_steps(runs, [("mkdt", "random"), ("full", "mkdt")], ["1pct"], [20, 80])
    assert table["difference"].tolist() == [4.0, 5.0, 2.0, 1.0]
    text = studies.differences_as_text(table, "steps").splitlines()
    assert text[0] == "| steps | mkdt - random | full - mkdt |"
    assert text[3].startswith("| 80 | +5.0 |")


def test_the_figure_of_budgets(two_students: pd.DataFrame) -> None:
    """A method with a budget has a line over the share of images; the others are horizontal."""
    one = two_students[two_students["student"] == "convnet"]
    larger = one[one["budget"] != "all"].assign(budget="5pct", accuracy=lambda table: table["accuracy"] + 1)
    accuracy = report.accuracies(pd.concat([one, larger]), ["1pct", "5pct"])
    (axis,) = digits.plot(accuracy, ["none", "random", "mkdt", "full"], {"1pct": 0.01, "5pct": 0.05}).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1 %", "5 %"]
    _, names = axis.get_legend_handles_labels()
    assert sorted(names) == ["full", "mkdt", "none (no pre-training)", "random"]
    lines = {tuple(line.get_ydata()) for line in axis.get_lines()}
    assert (76.0, 77.0) in lines  # random: 74 and the means over seeds and draws
    assert (82.0, 82.0) in lines  # full


TINY: dict[str, Any] = {
    "base": {
        "datasets": {"digits": {"kind": "digits", "train": 60, "validation": 40, "test": 397, "image_size": None}},
        "teacher": {
            "epochs": 2,
            "warmup_epochs": 1,
            "batch": 30,
            "projector": [8, 8],
            "backbone": {"blocks": [1], "width": 8},
        },
        "students": {"convnet": {"width": 4}},
        "experts": {"count": 2, "per_job": 2, "epochs": 2},
        "krr_st": {"iterations": 2, "students": 1, "student_steps": 2, "batch": 10},
        "budgets": [10],
        "distill_seeds": [0, 1],
        "distill": {"iterations": 2, "steps": 2, "retain": 2, "start_epochs": 1},
        "pretrain": {"seeds": [0, 1], "rates": [0.05], "steps": [2, 4]},
        "probe": {"label_fractions": [0.5], "label_draws": 2, "selection_draws": 2},
    },
    "defaults": {"teacher": {"method": "vicreg"}},
    "levels": [
        {"factor": "teacher", "level": "VICReg", "methods": ["none", "teacher", "random", "full", "mkdt"]},
        {"factor": "initialisation", "level": "kmeans", "methods": ["kmeans", "mkdt"], "init": "kmeans"},
        {"factor": "N", "level": 1, "config": {"distill": {"steps": 1, "retain": 1}}},
        {"factor": "classes", "level": 2, "methods": ["sas", "krr_st"], "config": {"sas": {"classes": 2}}},
    ],
}


def test_the_reference_of_a_level_has_the_same_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 20 images the default and the random subset of 10 are no references; `none` and `full` are for both."""
    monkeypatch.setattr(what_matters, "RUNS", tmp_path)
    study: dict[str, Any] = {
        "base": {"budgets": [10]},
        "levels": [
            {"factor": "teacher", "level": "VICReg", "accuracies": {"none": 50, "full": 90, "random": 60, "mkdt": 70}},
            {"factor": "20 images", "level": "default", "accuracies": {"random": 71, "mkdt": 75}},
            {"factor": "20 images", "level": "rate 50", "accuracies": {"mkdt": 78}},
        ],
    }
    for entry in study["levels"][1:]:
        entry["config"] = {"budgets": [20]}
    for entry in study["levels"]:
        rows = [
            {
                "method": method,
                "distill_seed": d,
                "seed": s,
                "label_draw": 0,
                "rate": 0.1,
                "steps": 2,
                "accuracy": value,
            }
            for method, value in entry["accuracies"].items()
            for d in (0, 1)
            for s in (0, 1)
        ]
        pd.DataFrame(rows).to_csv(what_matters.run_file(entry), index=False)
    table = what_matters.summarise(study).set_index(["level", "method"])
    assert table.loc[("rate 50", "mkdt"), ["vs_random", "vs_reference", "recovered"]].tolist() == [7, 3, 0.7]
    assert table.loc[("default", "mkdt"), "vs_random"] == 4
    assert table.loc[[("VICReg", "mkdt"), ("default", "mkdt")], "vs_reference"].isna().all()


def test_a_method_that_diverged_or_is_missing_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured once, and its file says why it has no accuracy; no other level takes its place as the reference."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(what_matters, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(what_matters, "RUNS", tmp_path / "runs")
    (tmp_path / "cache").mkdir()

    def rows(level: Any, method: str, init: str) -> list[dict[str, Any]]:
        if method == "mkdt" and level.config["distill"]["steps"] == 3:
            raise Diverged("distill: diverged, in iteration 288.")
        where = {"method": method, "distill_seed": 0, "label_draw": 0, "rate": 0.1, "steps": 2}
        return [where | {"seed": seed, "accuracy": level.config["distill"]["steps"]} for seed in (0, 1)]

    monkeypatch.setattr(what_matters.Level, "rows", rows)
    levels = [{"factor": "N", "level": n, "config": {"distill": {"steps": n, "retain": 0}}} for n in (3, 2, 4)]
    levels[0] |= {"methods": ["random", "mkdt"]}
    study = TINY | {"levels": levels}
    what_matters.measure(study)
    kept = pd.read_csv(tmp_path / "runs/N_3.csv").set_index("method")
    assert kept.loc["mkdt", "diverged"] == "distill: diverged, in iteration 288."
    assert kept.loc["random", "accuracy"].tolist() == [3, 3]
    table = what_matters.summarise(study)
    compared = table[["level", "method", "accuracy", "vs_random"]].fillna(0).to_numpy().tolist()
    assert compared == [[3, "random", 3.0, 0], [2, "mkdt", 2.0, -1], [4, "mkdt", 4.0, 1]]
    assert not any(column.startswith(("vs_reference", "recovered")) for column in table)
    (tmp_path / "runs/N_3.csv").unlink()
    assert what_matters.summarise(study)[["level", "accuracy"]].to_numpy().tolist() == [[2, 2.0], [4, 4.0]]


def test_a_point_of_the_grid_at_which_students_diverged_is_not_chosen() -> None:
    """The accuracy of the other students there does not matter."""
    rows = pd.DataFrame({"method": "mkdt", "steps": 2, "rate": [0.1, 0.1, 0.3], "accuracy": [60.0, 62.0, 90.0]})
    assert what_matters.chosen(rows, "mkdt")["accuracy"].tolist() == [60, 62]


@pytest.mark.slow
def test_what_matters_from_the_levels_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level is measured once, with the seeds that its methods have; the first level is the reference."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(what_matters, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(what_matters, "RUNS", tmp_path / "runs")
    (tmp_path / "cache").mkdir()
    what_matters.measure(TINY | {"levels": TINY["levels"][:2]})
    runs = {path.name: path.read_bytes() for path in (tmp_path / "runs").iterdir()}
    assert set(runs) == {"teacher_VICReg.csv", "initialisation_kmeans.csv"}
    first = pd.read_csv(tmp_path / "runs/teacher_VICReg.csv")
    # Two label draws for each network: the teacher; two students, untrained; at two points of the grid; and for two subsets.
    assert first["method"].value_counts().to_dict() == {"teacher": 2, "none": 4, "full": 8, "random": 16, "mkdt": 16}
    what_matters.measure(TINY)  # the others alone are missing
    assert {name: (tmp_path / "runs" / name).read_bytes() for name in runs} == runs
    table = what_matters.summarise(TINY)
    assert table["factor"].tolist() == ["teacher"] * 5 + ["initialisation"] * 2 + ["N"] + ["classes"] * 2
    line = table.set_index("method").loc["full"]
    assert line["recovered"] == 1
    text = what_matters.as_text(table).splitlines()
    assert len(text) == 12
    assert text[-3].startswith("| N | 1 | mkdt | 0.05, ")
    assert text[-2].startswith("| classes | 2 | sas | 0.05, ")
    assert text[-1].startswith("| classes | 2 | krr_st | 0.05, ")
    for widest in (1e-3, 1e3):  # an interval that is wider is named, and does not stretch the axis
        monkeypatch.setattr(what_matters, "WIDEST", widest)
        (axis,) = what_matters.plot(table).axes
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert [label.split(" (")[0] for label in labels] == ["initialisation: kmeans", "N: 1"]
        assert ("beyond the axis" in labels[0]) == (widest < 1)
        assert max(map(abs, axis.get_xlim())) <= widest


@pytest.fixture
def ssl_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl_trajectories.Source:
    """The artifacts of study 3 at the smallest size, and loops of one or two rounds."""
    for name, value in {
        "RUNS": 2,
        "EPOCHS": 1,
        "BATCH": 12,
        "BATCHES": 2,
        "VIEWS": 2,
        "SIZES": [8],
        "DRAWS": 2,
    }.items():
        monkeypatch.setattr(ssl_trajectories, name, value)
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    raw = merge(raw, yaml.safe_load((REPOSITORY / "config/studies/ssl_trajectories.yaml").read_text()))
    raw = merge(
        raw, TINY["base"] | {"teacher": {}, "datasets": {}, "distill_seeds": [0], "mtt_ssl": {"projector": [4, 4]}}
    )
    config = load(raw)
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=stream, dtype=torch.uint8)
    mean, std = torch.tensor([0.5]), torch.tensor([0.3])
    normal = (images.float() / 255 - 0.5) / 0.3
    targets = torch.tanh(normal.flatten(1) @ torch.randn(64, 3, generator=stream) / 8)

    def keep(path: str, **tensors: Tensor) -> None:
        artifacts.save(
            Path("results") / path, tensors, stage="made", rows=["trajectory"] if "trajectory" in tensors else []
        )

    keep("digits_tuning/data.safetensors", train_images=images, train_labels=torch.arange(24) % 10, mean=mean, std=std)
    keep("digits_tuning/barlow_twins/targets.safetensors", targets=targets)
    for k in range(2):
        settings = settings_of(config, "experts")
        expert = train_expert(normal, targets, settings["student"], settings, seed=0, expert=k)
        keep(f"digits_tuning/barlow_twins/convnet/experts/{k:03d}.safetensors", **expert)
        settings = settings_of(config, "method_experts", method="mtt_ssl") | {"batch": 12}
        expert = mtt_ssl_expert(
            Source(images, mean, std), settings["student"], settings, seed=0, expert=k, device=torch.device("cpu")
        )
        keep(f"ssl_trajectories/experts/mtt_ssl/{k:03d}.safetensors", **expert)
    made = SyntheticSet(normal[:10], targets[:10], torch.tensor(0.1), mean, std, torch.arange(10))
    keep("ssl_trajectories/sets/random/10img/0.safetensors", **made.tensors())
    return ssl_trajectories.Source(config)


def test_all_objectives_start_from_the_same_backbone(ssl_source: ssl_trajectories.Source) -> None:
    """Only the heads differ, so the noise of the objectives can be compared."""
    first, *others = (ssl_source.model(objective)[0] for objective in ssl_trajectories.NAMES)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_the_noise_comes_from_what_is_drawn(ssl_source: ssl_trajectories.Source) -> None:
    """With one expert and one epoch, regression has no noise; SSL has the noise of its views."""
    weights, gradients, hypergradients = ssl_trajectories.measure(ssl_source)
    assert len(weights) == 5 * 2  # objectives and rates, one epoch
    assert weights["noise_share"].between(0, 2).all()  # of two draws
    without = gradients["objective"].isin(["supervised", "kd"])
    assert (gradients.loc[without, "views"] == 0).all()
    assert (gradients.loc[~without, "views"] > 0).all()
    share = hypergradients.set_index(["method", "drawn"])["noise_share"]
    assert share["mkdt", "views"] == pytest.approx(0, abs=1e-6)
    assert share["mtt_ssl", "views"] > 1e-3
    left, right = ssl_trajectories.plot(weights, gradients).axes
    assert len(left.get_lines()) == 10
    assert len(right.get_lines()) == 5 + 3  # and the part of the views, where there are any


def test_the_figure_of_the_matching_loss() -> None:
    """Each method has a panel, each start epoch a line of means over 20 iterations."""
    rows = [
        {"method": method, "start_epoch": epoch, "step": step, "loss": float(epoch)}
        for method in ("mkdt", "mtt_ssl")
        for epoch in (0, 1)
        for step in range(1, 41)
    ]
    for axis in ssl_trajectories.plot_matching(pd.DataFrame(rows)).axes:
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert list(lines["from epoch 1"].get_xdata()) == [10, 30]
        assert list(lines["from epoch 1"].get_ydata()) == [1.0, 1.0]


STUDIES = REPOSITORY / "docs/studies"


def table_rows(text: str) -> list[str]:
    """Return the rows of all Markdown tables in a text."""
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_table_in_the_readme_is_that_of_the_demo() -> None:
    """It is made from the committed summary.csv of `make demo`, with the same digits."""
    summary = pd.read_csv(STUDIES / "what_matters/demo_summary.csv")
    rows = table_rows(report.as_text(summary[summary["evaluation"] == "linear"], "fair"))
    assert "\n".join(rows) in (REPOSITORY / "README.md").read_text()


def test_the_table_of_budgets_in_the_results_is_that_of_the_study() -> None:
    """Bold only where the interval of the difference to random is above zero."""
    summary = pd.read_csv(STUDIES / "digits/summary.csv")
    budgets = yaml.safe_load((REPOSITORY / "config/studies/digits.yaml").read_text())["budgets"]
    text = digits.as_text(summary, {budget_label(budget): budget for budget in budgets})
    assert text == (STUDIES / "digits/table.md").read_text()
    assert text in (REPOSITORY / "docs/results.md").read_text()
    linear = summary[summary["evaluation"] == "linear"]
    assert text.count("**") == 2 * (linear["low"] > 0).sum()


def test_the_tables_of_the_pages_are_those_of_their_csvs() -> None:
    """A page has the text that its script writes from the committed CSV files."""
    matters = what_matters.as_text(pd.read_csv(STUDIES / "what_matters/table.csv"))
    assert matters == (STUDIES / "what_matters/table.md").read_text()
    assert matters in (STUDIES / "what_matters.md").read_text()
    steps = (STUDIES / "fashion/steps.md").read_text()
    curve = pd.read_csv(STUDIES / "fashion/curve.csv")
    here = curve[curve["downstream"] == "fashion_mnist_16"]
    parts = [fashion.as_text(here[here["label_fraction"] == fraction]) for fraction in (0.005, 0.01)]
    assert steps == "\n".join(parts)
    assert parts[0] in (STUDIES / "fashion.md").read_text()
    grids, runs = (
        [pd.read_csv(STUDIES / f"fashion/{rates}{name}.csv") for rates in ("", "rates_")]
        for name in ("grid", "runs_by_steps")
    )
    chosen = fashion.best_of(grids, [table[table["downstream"] == table["source"]] for table in runs])
    parts = [chosen[chosen["label_fraction"] == fraction] for fraction in (0.005, 0.01)]
    equal = [studies.at_equal_steps(part, fashion.PAIRS, ["50img"], [20, 80, 320]) for part in parts]
    written = {
        "rates": [fashion.rates_as_text(part) for part in parts],
        "rates_equal_steps": [studies.differences_as_text(part, "steps") for part in equal],
    }
    for name, texts in written.items():
        assert (STUDIES / f"fashion/{name}.md").read_text() == "\n".join(texts)
        assert texts[0] in (STUDIES / "fashion.md").read_text()
    assert (STUDIES / "digits/equal_steps.md").read_text() in (STUDIES / "digits.md").read_text()
    for study, left in (("digits", set()), ("architectures", {"mkdt", "mkdt_kmeans", "krr_st"})):
        written = pd.read_csv(STUDIES / study / "holm.csv")
        made = (pd.read_csv(STUDIES / study / f"{name}.csv") for name in ("accuracy", "against_best_subset"))
        methods = written.loc[written["family"] == "random", "method"].unique().tolist()
        pd.testing.assert_frame_equal(studies.corrected(*made, methods), written)
        assert set(written.loc[(written["holm"] < 0.05) & (written["difference"] > 0), "method"]) == left
    for study in ("digits", "fashion"):
        equal, runs = (pd.read_csv(STUDIES / study / f"{name}.csv") for name in ("equal_steps", "runs_by_steps"))
        row = equal[equal["steps"] == 320].iloc[0]
        runs = runs[
            (runs["downstream"] == runs["source"]) & (runs["label_fraction"] == row.get("label_fraction", 0.02))
        ]
        again = studies.at_equal_steps(runs, [(row["method"], row["baseline"])], [row["budget"]], [320])
        assert again["difference"].iloc[0] == pytest.approx(row["difference"])
    for study in ("architectures", "protocols"):
        assert (STUDIES / study / "table.md").read_text() in (STUDIES / f"{study}.md").read_text()
    both = protocols.as_text(pd.read_csv(STUDIES / "protocols/summary.csv"))
    assert both == (STUDIES / "protocols/table.md").read_text()
    for study in ("architectures", "digits", "fashion", "ssl_trajectories"):
        written = (STUDIES / study / "summary.md").read_text()
        accuracy = pd.read_csv(STUDIES / study / "accuracy.csv")
        methods = list(dict.fromkeys(pd.read_csv(STUDIES / study / "summary.csv")["method"]))
        assert table_rows(written) == table_rows(report.as_text(report.summarise(accuracy, methods), "fair")), study


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_rule(values: list[float]) -> None:
    """For every alpha, corrected p values up to alpha are those that Holm's rule rejects."""
    corrected = studies.holm(pd.Series(values))
    assert ((corrected >= values) & (corrected <= 1)).all()
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for k, row in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
            if values[row] * (len(values) - k) > alpha:
                break
            rejected.add(row)
        assert {values[i] for i in rejected} == {values[i] for i in corrected.index[corrected <= alpha]}
    padded = studies.holm(pd.Series([math.nan, *values, math.nan]))  # equal runs have no p, and are no comparison
    assert padded.dropna().tolist() == corrected.tolist()
    assert len(padded) == len(values) + 2


def test_p_is_below_five_per_cent_where_the_interval_excludes_zero() -> None:
    """This holds for all differences to the best subset of study 1."""
    table = pd.read_csv(STUDIES / "digits/holm.csv")
    best = pd.read_csv(STUDIES / "digits/against_best_subset.csv").set_index(["budget", "method"])
    for row in table[table["family"] == "best subset"].to_dict("records"):
        wanted = best.loc[(row["budget"], row["method"])]
        assert (row["p"] < 0.05) == (wanted["low"] > 0 or wanted["high"] < 0)
        assert row["difference"] == pytest.approx(wanted["difference"])


def test_the_table_of_steps() -> None:
    """Each method that is trained has a row, each number of steps a column."""
    rows = [("random", 20, 64.0), ("random", 80, 65.5), ("mkdt", 80, 68.2), ("none", 0, 60.0)]
    text = fashion.as_text(pd.DataFrame(rows, columns=["method", "steps", "mean"])).splitlines()
    assert text[0] == "| method | 20 | 80 |"
    assert text[2:] == ["| random | 64.0 | 65.5 |", "| mkdt | - | 68.2 |"]


def test_the_better_of_two_grids() -> None:
    """Each method and number of steps comes from the grid with the higher validation accuracy, averaged over label fractions."""

    def tables(rate: float, validation: dict[tuple[str, int], tuple[float, float]]) -> list[pd.DataFrame]:
        rows = [
            {"method": method, "steps": steps, "rate": rate, "label_fraction": fraction, "validation": value}
            for (method, steps), values in validation.items()
            for fraction, value in zip((0.01, 0.02), values, strict=True)
        ]
        grid = pd.DataFrame(rows)
        return [grid, grid.assign(accuracy=100 * grid["label_fraction"] + rate).drop(columns="validation")]

    low = tables(
        0.1, {("random", 20): (60, 70), ("random", 80): (70, 70), ("mkdt", 20): (70, 70), ("random", 320): (1, 1)}
    )
    high = tables(1.0, {("random", 20): (59, 72), ("random", 80): (69, 70), ("mkdt", 20): (69, 70)})
    chosen = fashion.best_of([low[0], high[0]], [low[1], high[1]])
    rates = chosen.groupby(["method", "steps"])["rate"].unique().map(list).to_dict()
    assert rates == {("random", 20): [1.0], ("random", 80): [0.1], ("mkdt", 20): [0.1]}
    assert len(chosen) == 6
    text = fashion.rates_as_text(chosen[chosen["label_fraction"] == 0.01]).splitlines()
    assert text[0] == "| method | 20 | 80 |"
    assert text[2:] == ["| mkdt | 1.1 (0.1) | - |", "| random | 2.0 (1) | 1.1 (0.1) |"]


def test_the_ladder_of_equal_bytes_takes_the_methods_of_its_configs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every rung is compared with the best real subset; the gain of all images is 100 %."""
    monkeypatch.chdir(REPOSITORY)
    accuracies, grids = [], []
    for k, (rung, file) in enumerate(equal_bytes.RUNGS.items()):
        config = read([equal_bytes.BASE, file] if file else [equal_bytes.BASE])
        for method, budget in itertools.product(config["methods"], map(budget_label, config["budgets"])):
            level = {"none": 70.0, "full": 90.0, "kmeans": 80.0 + k}.get(method, 75.0)
            part = runs(method, [0, 1], level + np.arange(12.0).reshape(2, 3, 2) / 7, budget=budget)
            accuracies.append(part.assign(rung=rung, evaluation="linear"))
            point = {"rung": rung, "method": method, "budget": budget, "chosen": True, "validation": level}
            grids.append(pd.DataFrame([point]))
    known = pd.DataFrame(
        [{"rung": "5 views of them", "budget": "2KB", "method": "kmeans", "images": 4, "bytes": 972, "seconds": 9.6}]
    )
    table = equal_bytes.ladder(pd.concat(accuracies), pd.concat(grids), known)
    assert set(table["best"]) == {"kmeans, 5 views of them"}
    last = table[table["rung"] == "5 views of them"].set_index(["budget", "method"])
    assert last.loc[("2KB", "full"), "recovered"] == pytest.approx(1)
    assert last.loc[("2KB", "bptt_kmeans"), "difference"] == pytest.approx(-8)
    assert "| 4 | 972 | 10 |" in equal_bytes.as_text(table)
