"""The README of an exported folder: contents, how to load them, source data, settings, accuracy, provenance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mkdt.artifacts import Artifact
from mkdt.config.catalogue import DATASETS
from mkdt.config.image_files import some
from mkdt.config.methods import SET_STAGES
from mkdt.config.schema import flat
from mkdt.config.set_checks import BOUNDS, views_of
from mkdt.config.stages import STAGES
from mkdt.distill.storage import bytes_of
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.evaluate.pretraining import BATCH, MOMENTUM, WEIGHT_DECAY
from mkdt.export.hub import ROWS, front_matter
from mkdt.jobs.lineage import Family, Place, recipe
from mkdt.report.origin import Origin, read
from mkdt.report.statistics import interval, paired
from mkdt.report.tables import markdown, read_table, with_interval

PAPERS = {
    "distill": "Joshi, Ni and Mirzasoleiman, *Dataset Distillation via Knowledge Distillation: Towards Efficient\n"
    "Self-Supervised Pre-Training of Deep Networks*, ICLR 2025, [arXiv 2410.02116](https://arxiv.org/abs/2410.02116).",
    "krr": "Lee et al., *Self-Supervised Dataset Distillation for Transfer Learning*, ICLR 2024,\n"
    "[arXiv 2310.06511](https://arxiv.org/abs/2310.06511).",
}
LIBRARIES = {"torchvision_resnet": "torchvision", "vgg11": "torchvision", "mobilenet": "torchvision", "timm": "timm"}
STUDENT = {"architecture": "convnet", "depth": 2, "width": 32, "norm": "instance"}  # of the example, for real subsets
UNKNOWN = "when this was exported"


def of_set(tiny: SyntheticSet, file: Artifact, place: Place | None, family: Family | None) -> str:
    """Write the card of a training set, as Markdown.

    Args:
        tiny: the set.
        file: its artifact.
        place, family: its place in the results, and the artifacts there; None outside of them.
    """
    noted = _origin(place) if place else None
    table, mine = _accuracies(file, place, noted)
    name, terms = _terms(family.ancestor(file.header, "data") if family else None)
    noun = "real" if file.header["stage"] == "subset" else "distilled"
    return f"""{front_matter(tiny, noun, name, terms)}{_contents(tiny, file, noun)}
{_loading(file, _training(mine, place, noted))}
{_source(file, family)}
{_settings("How it was made", file.header["parameters"])}
{_accuracy(table, mine, place)}
{_provenance(file, place)}"""


def _contents(tiny: SyntheticSet, file: Artifact, noun: str) -> str:
    real = noun == "real"
    count, channels, height, width = tiny.images.shape
    rows, dimension = tiny.targets.shape
    views = (
        f"\n\nEach image has a target for each of {len(tiny.views)} views: {', '.join(tiny.views)}."
        if rows > count
        else ""
    )
    verb = "is" if real else "started from"
    step_size = "a start value, not learned" if real else "the student's SGD step size in distillation"
    dtypes = {name: str(file.tensor(name).dtype).removeprefix("torch.") for name in ("images", "targets")}
    bounds = "".join(
        f"| `{name}` | float32 {list(file.shape(name))} | what 0 and 255 of `{of}` stand for{', in pixels' * (of == 'images')} |\n"
        for of, name in BOUNDS.items()
        if name in file.names
    )
    form = "bytes between `pixel_bounds`" if dtypes["images"] == "uint8" else "normalised: (pixel - mean) / std"
    return f"""# {count:,} {noun} images

{count:,} {noun} images with their targets, for self-supervised pre-training: a network learns to predict the targets
(a teacher's representation, {dimension} numbers) from the images, and is then used as an encoder. There are no labels.
Images, targets and step size take {bytes_of(file):,} bytes.{views}

![The images](images.png)

| `set.safetensors` | dtype, shape | |
|---|---|---|
| `images` | {dtypes["images"]} [{count}, {channels}, {height}, {width}] | {form}, of pixels in [0, 1] |
| `targets` | {dtypes["targets"]} [{rows}, {dimension}] | what to predict{", view by view" if views else ""} |
{bounds}| `step_size` | float32 [] | {float(tiny.step_size):.4g}: {step_size} |
| `mean`, `std` | float32 [{channels}] | {_numbers(tiny.mean.tolist())}; {_numbers(tiny.std.tolist())}: of the source's training pixels |
| `init_index` | int64 [{count}] | the training image that each one {verb} |

`{ROWS}` has the same images and targets, one row an image (`image`, normalised, and `targets`, one of each view), for
`datasets.load_dataset`. `load.py` returns images and targets as normalised float32. `images.png` shows the images clamped and rounded to 8 bits; do not train on it.
"""


def _loading(file: Artifact, training: Mapping[str, Any]) -> str:
    spec = (file.header["parameters"] or {}).get("student", STUDENT)
    beyond = "" if file.header["stage"] == "subset" else "; a distilled one may go beyond"
    has_views = len(views_of(file.header)) > 1
    views, stored = (", in all their views", "images as they are stored") if has_views else ("", "same images")
    arguments = ", ".join(f"{key}={training[key]}" for key in ("steps", "rate", "batch"))
    decoded = "  # tiny.decoded() makes the rows that belong to tiny.targets" if has_views else ""
    return f"""## Load it

With torch and safetensors, in this folder:

```python
from load import load

tiny = load()
images, targets = tiny["images"], tiny["targets"]  # normalised{views}: train on these
pixels = tiny["pixels"]  # the {stored}, where 0 is black and 1 is white{beyond}
```

Normalise all other images for the network with the same `mean` and `std`.

## Pre-train on it

In plain PyTorch, a network of yours that returns features; {training["origin"]}:

```python
import torch
from torch import nn
from torch.nn import functional as F

encoder = nn.Sequential(nn.Conv2d(images.shape[1], 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())  # yours
head = nn.Linear(encoder(images[:1]).shape[1], targets.shape[1])  # not needed afterwards
weights = [*encoder.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(weights, lr={training["rate"]}, momentum={training["momentum"]}, weight_decay={training["weight_decay"]})
step = 0
while step < {training["steps"]}:
    for rows in torch.randperm(len(images)).split({training["batch"]}):
        loss = F.mse_loss(head(encoder(images[rows])), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
```

With the package `mkdt`, which also checks the digests:

```python
import mkdt

tiny = mkdt.load_synthetic("set.safetensors")  # tiny.images, tiny.targets, tiny.pixels() as uint8
student = mkdt.pretrain(tiny, {json.dumps(spec)}, {arguments})
features = student.backbone(tiny.images){decoded}
```
"""


def of_encoder(
    network: Mapping[str, Any], view: Mapping[str, Any], trained: str, file: Artifact, place: Place, family: Family
) -> str:
    """Write the card of an encoder, as Markdown.

    Args:
        network: its config entry.
        view: ``channels``, ``size``, ``mean``, ``std`` of its images.
        trained: how, the end of a sentence that begins with "the weights of an encoder".
        file: the artifact that it was taken from.
        place, family: that artifact's place in the results, and the artifacts there.
    """
    library = LIBRARIES.get(network["architecture"])
    needs = f"torch, safetensors and {library}" if library else "torch and safetensors"
    accuracy = ""
    if file.header["stage"] == "pretrain":
        accuracy = _accuracy(*_accuracies(file, place, _origin(place)), place) + "\n"
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
    """Describe the source data with its terms, and the teacher."""
    data = family.ancestor(file.header, "data") if family else None
    if data is None or family is None:
        return f"## From which data\n\nNot known: the data set was not in the results {UNKNOWN}.\n"
    kind, count = data.header["parameters"]["kind"], data.shape("train_images")[0]
    name, terms = _terms(data)
    if kind in DATASETS:
        source = DATASETS[kind].source
        where = f"<{source}>" if "://" in source else source
        text = f"{count:,} training images of `{name}`, {where}. Terms, as far as they are known:\n{terms}."
    else:
        text = f"{count:,} training images of a folder (`{name}`). Terms: {terms}."
    if classes := data.header.get("notes", {}).get("classes"):
        text += f"\nIts classes, which no method has seen: {', '.join(classes)}."
    if skipped := data.header.get("notes", {}).get("skipped"):
        text += f"\n{len(skipped)} image files could not be decoded and are left out ({some(skipped)})."
    text += "\nThe terms of images may also apply to what is made from them; this is no legal advice.\n"
    initial = family.ancestor(file.header, "subset")
    if file.header["stage"] in set(SET_STAGES) - {"subset"} and initial is not None:
        text += f"\nDistillation started from a subset of them (`{initial.path.parts[-3]}`).\n"
    if file.header["stage"] != "teacher":
        text += (
            f"\n{_teacher(family.ancestor(file.header, 'teacher'))}{_space(family.ancestor(file.header, 'targets'))}\n"
        )
    return f"## From which data\n\n{text}"


def _terms(data: Artifact | None) -> tuple[str, str]:
    """Return the name of the source and the terms of its images."""
    if data is None:
        return "a source that is not known", "not known"
    kind = data.header["parameters"]["kind"]
    if kind in DATASETS:
        return kind, DATASETS[kind].licence
    return data.path.parent.name, "its owner decides; write here under which terms this may be shared"


def _teacher(teacher: Artifact | None) -> str:
    if teacher is None:
        return f"The teacher was not in the results {UNKNOWN}; its representations were."
    parameters = teacher.header["parameters"]
    network = f"`{json.dumps(parameters['backbone'])}`"
    if "method" not in parameters:
        return f"The teacher: {network}, brought as a checkpoint ({parameters['format']})."
    return (
        f"The teacher: {network}, trained on these images by {parameters['method']} for {parameters['epochs']} epochs."
    )


def _space(targets: Artifact | None) -> str:
    """Describe the space of the targets; empty where they are the teacher's representations."""
    if targets is None or "space_basis" not in targets.names:
        return ""
    dimension, components = targets.shape("space_basis")
    kept = 100 * float(targets.tensor("space_explained").sum())
    return (
        f"\nThe targets are {components} components of its {dimension} dimensions ({json.dumps(targets.header['parameters'])}), "
        f"with {kept:.1f} % of their second moments.\n`{targets.path.name}` of {targets.path.parent.name} has the map and its "
        "inverse (`space_mean`, `space_basis`, `space_inverse`)."
    )


def _settings(title: str, parameters: Mapping[str, Any]) -> str:
    rows = "".join(f"| `{key}` | `{json.dumps(value)}` |\n" for key, value in flat(parameters))
    return f"## {title}\n\n| setting | value |\n|---|---|\n{rows}"


def _accuracies(file: Artifact, place: Place | None, noted: Origin | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the report's accuracies at the set's budget: of all methods, and of the set's method.

    Both are empty where there is no report, or one of another file at this path.
    """
    names = place.names if place else {}
    table = pd.DataFrame({"method": []})
    if place is not None:
        report = _report(place, "accuracy_csv")
        if (
            report.is_file()
            and noted is not None
            and noted.sets.get(place.path.as_posix(), file.identity) == file.identity
        ):
            table = read_table(report, "report") if report.stat().st_mtime >= file.path.stat().st_mtime else table
    mine = table[table["method"] == names.get("method")]
    if names.get("budget") != "all" and len(mine):
        table, mine = (part[part["budget"] == names["budget"]] for part in (table, mine))
    return table, mine


def _report(place: Place, role: str) -> Path:
    return place.results / STAGES["report"].outputs[role].format(experiment=place.names["experiment"])


def _origin(place: Place) -> Origin | None:
    """Return what the report of a file's experiment notes; None where there is none, or one of another version."""
    try:
        return read(_report(place, "origin_json"))
    except UserError:
        return None


def _training(mine: pd.DataFrame, place: Place | None, noted: Origin | None) -> dict[str, Any]:
    """Return settings of pre-training on a set: those of its experiment at the point that validation chose, where they are known.

    Args:
        mine: the method's rows of ``_accuracies``.
        place: of the set.
        noted: by the report of its experiment.

    Returns:
        ``steps``, ``rate``, ``batch``, ``momentum``, ``weight_decay``, and ``origin``, what chose them, in words.
    """
    training: dict[str, Any] = {"steps": 80, "rate": 0.1, "batch": BATCH, "momentum": MOMENTUM}
    training |= {"weight_decay": WEIGHT_DECAY, "origin": "choose steps and learning rate on validation images"}
    if place is None or mine.empty:
        return training
    this = mine[mine["distill_seed"] == int(place.names["distill_seed"])]
    if this["student"].nunique() != 1:  # several students have several points
        return training
    used = {key: noted.config["pretrain"][key] for key in ("batch", "momentum", "weight_decay")} if noted else {}
    point = {"steps": int(this["steps"].iloc[0]), "rate": float(f"{this['rate'].iloc[0]:g}")}
    return training | used | point | {"origin": "these settings were chosen on validation images"}


def _accuracy(table: pd.DataFrame, mine: pd.DataFrame, place: Place | None) -> str:
    """Format the accuracies of a method, from ``_accuracies``."""
    if mine.empty or place is None:
        return f"## Accuracy\n\nNot measured: there was no report on it {UNKNOWN}.\n"
    names = place.names
    seeds = ", ".join(str(seed) for seed in sorted(mine["distill_seed"].unique()))
    header = ["student", "evaluated on", "by", "labels", "rate, steps", "this set", "all sets", "minus a random subset"]
    where = ["student", "downstream", "evaluation", "label_fraction"]
    random = dict(iter(table[table["method"] == "random"].groupby(where)))
    rows = [
        _accuracy_row(part, random.get(values), names)
        for values, part in mine.groupby(where, sort=True)
        if names.get("student") in {None, part["student"].iloc[0]}
    ]
    return f"""## Accuracy

Test accuracy in per cent of encoders that were pre-trained on the set. *All sets*: those of method `{names["method"]}`, budget
{names["budget"]}, distill seeds {seeds} (this set has seed {names["distill_seed"]}), mean and 95 % interval over sets, students and label
draws. Learning rate and steps of pre-training were chosen on validation images.

{markdown(header, rows)}
"""


def _accuracy_row(mine: pd.DataFrame, random: pd.DataFrame | None, names: Mapping[str, str]) -> list[str]:
    """Format the accuracies of a method and their difference to a random subset, in one setting."""
    first = mine.iloc[0]
    this = mine[mine["distill_seed"] == int(names["distill_seed"])]
    rate = (this if len(this) else mine)["rate"].iloc[0]
    difference = "-"
    if random is not None and names["method"] != "random":
        difference = with_interval(*interval(paired(mine, random), "difference"), sign="+")
    return [
        str(first["student"]),
        str(first["downstream"]),
        str(first["evaluation"]),
        f"{100 * first['label_fraction']:g} %",
        f"{rate:g}, {first['steps']}",
        f"{this['accuracy'].mean():.1f}",
        with_interval(*interval(mine, "accuracy")),
        difference,
    ]


def _provenance(file: Artifact, place: Place | None) -> str:
    paper = f"{PAPERS[file.header['stage']]}\n\n" if file.header["stage"] in PAPERS else ""
    known = recipe(place, file.header) if place else None
    again = f"\nThis command makes it again, in its project:\n\n```\n{known.command}\n```\n" if known else ""
    return (
        f"## Where it comes from\n\n{paper}Rule `{file.header['stage']}`, identity `{file.identity}`, code "
        f"`{file.header['code'] or 'not recorded'}`.\n{again}"
    )
