"""The card of an exported folder: what it is, how to load it, from which data, how it was made, how good it is."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mkdt.artifacts import Artifact
from mkdt.config.catalogue import DATASETS
from mkdt.jobs.lineage import Family, Place, recipe
from mkdt.config.methods import SET_RULES
from mkdt.report.statistics import interval, paired
from mkdt.report.tables import with_interval
from mkdt.config.schema import flat
from mkdt.distill.synthetic_set import SyntheticSet

PAPERS = {
    "distill": "Joshi, Ni and Mirzasoleiman, *Dataset Distillation via Knowledge Distillation: Towards Efficient\n"
    "Self-Supervised Pre-Training of Deep Networks*, ICLR 2025, [arXiv 2410.02116](https://arxiv.org/abs/2410.02116).",
    "krr": "Lee et al., *Self-Supervised Dataset Distillation for Transfer Learning*, ICLR 2024,\n"
    "[arXiv 2310.06511](https://arxiv.org/abs/2310.06511).",
}
LIBRARIES = {"torchvision_resnet": "torchvision", "vgg11": "torchvision", "mobilenet": "torchvision", "timm": "timm"}
STUDENT = {"architecture": "convnet", "depth": 2, "width": 32, "norm": "instance"}  # of the example, for real subsets
UNTIL_NOW = "when this was exported"


def of_set(tiny: SyntheticSet, file: Artifact, place: Place | None, family: Family | None) -> str:
    """The card of a training set, as Markdown.

    Args:
        tiny: the set.
        file: its artifact.
        place, family: where it lies in the results, and the artifacts there; None outside of them.
    """
    measured = _measured(file, place)
    count, channels, height, width = tiny.images.shape
    dimension, real = tiny.targets.shape[1], file.header["stage"] == "subset"
    spec = (file.header["parameters"] or {}).get("student", STUDENT)
    noun, verb = ("real", "is") if real else ("distilled", "started from")
    step_size = "a start value, nothing learned" if real else "the student's SGD step size in distillation"
    beyond = "" if real else "; a distilled one may go beyond"
    return f"""# {count:,} {noun} images

{count:,} {noun} images with their targets, for self-supervised pre-training: a network learns to predict the targets
(a teacher's representation, {dimension} numbers) from the images, and is then used as an encoder. There are no labels.

![The images](images.png)

| `set.safetensors` | dtype, shape | |
|---|---|---|
| `images` | float32 [{count}, {channels}, {height}, {width}] | normalised: (pixel - mean) / std, of pixels in [0, 1] |
| `targets` | float32 [{count}, {dimension}] | what to predict |
| `step_size` | float32 [] | {float(tiny.step_size):.4g}: {step_size} |
| `mean`, `std` | float32 [{channels}] | {_numbers(tiny.mean.tolist())}; {_numbers(tiny.std.tolist())}: of the source's training pixels |
| `init_index` | int64 [{count}] | the training image that each one {verb} |

`images.png` shows them clamped and rounded to 8 bits: look at it, do not train on it.

## Load it

With torch and safetensors, in this folder:

```python
from load import load

tiny = load()
images, targets = tiny["images"], tiny["targets"]  # normalised: train on these
pixels = tiny["pixels"]  # the same images where 0 is black and 1 is white{beyond}
```

Normalise whatever else the network is to see with the same `mean` and `std`. With the package `mkdt`, which also checks
the digests:

```python
import mkdt

tiny = mkdt.load_synthetic("set.safetensors")  # tiny.images, tiny.targets, tiny.pixels() as uint8
student = mkdt.pretrain(tiny, {json.dumps(spec)}, {_point(measured[1], place)})
features = student.backbone(tiny.images)
```

{_source(file, family)}
{_settings("How it was made", file.header["parameters"])}
{_accuracy(measured, place)}
{_provenance(file, place)}"""


def of_encoder(
    network: Mapping[str, Any], view: Mapping[str, Any], trained: str, file: Artifact, place: Place, family: Family
) -> str:
    """The card of an encoder, as Markdown.

    Args:
        network: its config entry.
        view: ``channels``, ``size``, ``mean``, ``std`` of its images.
        trained: how, the end of a sentence that begins with "the weights of an encoder".
        file: the artifact that it was taken from.
        place, family: where that lies in the results, and the artifacts there.
    """
    library = LIBRARIES.get(network["architecture"])
    needs = f"torch, safetensors and {library}" if library else "torch and safetensors"
    accuracy = _accuracy(_measured(file, place), place) + "\n" if file.header["stage"] == "pretrain" else ""
    return f"""# An encoder of images

`encoder.safetensors` holds the weights of an encoder {trained}. The network:
`{json.dumps(network)}`. It takes images of {view["channels"]}x{view["size"]}x{view["size"]}, normalised: (pixel - mean) / std,
of pixels in [0, 1], with mean {_numbers(view["mean"])} and std {_numbers(view["std"])}.

## Load it

With {needs}, in this folder:

```python
import torch
from load import load

encoder, view = load()
pixels = torch.rand(8, view["channels"], view["size"], view["size"])  # yours, in [0, 1]
images = (pixels - view["mean"][:, None, None]) / view["std"][:, None, None]
features = encoder(images)  # float32 [n, D]
```

With the package `mkdt`:

```python
import mkdt

encoder, view = mkdt.load_encoder("encoder.safetensors")
```

{_source(file, family)}
{_settings("How it was trained", file.header["parameters"])}
{accuracy}{_provenance(file, place)}"""


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _source(file: Artifact, family: Family | None) -> str:
    """The source data with its terms, and the teacher."""
    data = family.ancestor(file.header, "data") if family else None
    if data is None or family is None:
        return f"## From which data\n\nNot known: the data set was not in the results {UNTIL_NOW}.\n"
    kind, count = data.header["parameters"]["kind"], data.shape("train_images")[0]
    if kind in DATASETS:
        facts = DATASETS[kind]
        where = f"<{facts.source}>" if "://" in facts.source else facts.source
        text = f"{count:,} training images of `{kind}`, {where}. Terms, as far as they are known for sure:\n{facts.licence}."
    else:
        text = (
            f"{count:,} training images of a folder (`{data.path.parent.name}`). Terms: its owner decides; write here under\n"
            "which ones this may be passed on."
        )
    text += "\nWhat was made of images may be bound by their terms; this is no legal advice.\n"
    initial = family.ancestor(file.header, "subset")
    if file.header["stage"] in set(SET_RULES) - {"subset"} and initial is not None:
        text += f"\nDistillation started from a subset of them (`{initial.path.parts[-3]}`).\n"
    if file.header["stage"] != "teacher":
        text += f"\n{_teacher(family.ancestor(file.header, 'teacher'))}\n"
    return f"## From which data\n\n{text}"


def _teacher(teacher: Artifact | None) -> str:
    if teacher is None:
        return f"The teacher was not in the results {UNTIL_NOW}; its representations were."
    parameters = teacher.header["parameters"]
    network = f"`{json.dumps(parameters['backbone'])}`"
    if "method" not in parameters:
        return f"The teacher: {network}, brought as a checkpoint ({parameters['format']})."
    return (
        f"The teacher: {network}, trained on these images by {parameters['method']} for {parameters['epochs']} epochs."
    )


def _settings(title: str, parameters: Mapping[str, Any]) -> str:
    rows = "".join(f"| `{key}` | `{json.dumps(value)}` |\n" for key, value in flat(parameters))
    return f"## {title}\n\n| setting | value |\n|---|---|\n{rows}"


def _measured(file: Artifact, place: Place | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The report's accuracies at the set's budget, and of them its method's; none where the report is older than the file."""
    names = place.names if place else {}
    table = pd.DataFrame({"method": []})
    if place is not None:
        report = place.results / names["experiment"] / "report" / "accuracy.csv"
        if report.is_file() and report.stat().st_mtime >= file.path.stat().st_mtime:
            table = pd.read_csv(report)
    mine = table[table["method"] == names.get("method")]
    if names.get("budget") != "all" and len(mine):
        table, mine = (part[part["budget"] == names["budget"]] for part in (table, mine))
    return table, mine


def _point(mine: pd.DataFrame, place: Place | None) -> str:
    """Arguments of ``pretrain``: the point that validation chose for this set, or some steps at its own step size.

    Args:
        mine: the method's rows, as from ``_measured``.
    """
    if place is not None and len(mine):
        this = mine[mine["distill_seed"] == int(place.names["distill_seed"])]
        if this["student"].nunique() == 1:  # of several it is not clear whose point is the example's
            return f"steps={this['steps'].iloc[0]}, rate={this['rate'].iloc[0]:g}"
    return "steps=80"


def _accuracy(measured: tuple[pd.DataFrame, pd.DataFrame], place: Place | None) -> str:
    """The report's accuracies of the method, from ``_measured``."""
    text, names = "## Accuracy\n\n", place.names if place else {}
    table, mine = measured
    if mine.empty:
        return f"{text}Not measured: there was no report on it {UNTIL_NOW}.\n"
    seeds = ", ".join(str(seed) for seed in sorted(mine["distill_seed"].unique()))
    text += f"""Test accuracy in per cent, on encoders pre-trained on it. *All sets*: those of method `{names["method"]}`, budget {names["budget"]},
distill seeds {seeds} (this is seed {names["distill_seed"]}), mean and 95 % interval over sets, students and label draws. Learning rate and
steps of pre-training were chosen on validation images.

| student | evaluated on | by | labels | rate, steps | this set | all sets | minus a random subset |
|---|---|---|---|---|---|---|---|
"""
    where = ["student", "downstream", "evaluation", "label_fraction"]
    for values, part in mine.groupby(where, sort=True):
        student, downstream, evaluation, fraction = (*values[:3], 100 * part["label_fraction"].iloc[0])
        if names.get("student") not in {None, student}:
            continue
        same = (table[where] == pd.Series(values, index=where)).all(axis=1)
        random = table[same & (table["method"] == "random")]
        this = part[part["distill_seed"] == int(names["distill_seed"])]
        rate = (this if len(this) else part)["rate"].iloc[0]
        difference = "-"
        if len(random) and names["method"] != "random":
            difference = with_interval(*interval(paired(part, random), "difference"), sign="+")
        text += (
            f"| {student} | {downstream} | {evaluation} | {fraction:g} % | {rate:g}, {part['steps'].iloc[0]} | "
            f"{this['accuracy'].mean():.1f} | {with_interval(*interval(part, 'accuracy'))} | {difference} |\n"
        )
    return text


def _provenance(file: Artifact, place: Place | None) -> str:
    paper = f"{PAPERS[file.header['stage']]}\n\n" if file.header["stage"] in PAPERS else ""
    found = recipe(place, file.header) if place else None
    again = f"\nMade again, in the project that made it, by\n\n```\n{found.command}\n```\n" if found else ""
    return (
        f"## Where it comes from\n\n{paper}Rule `{file.header['stage']}`, identity `{file.identity}`, code "
        f"`{file.header['code'] or 'not noted'}`.\n{again}"
    )
