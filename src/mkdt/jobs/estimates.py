"""What each stage asks of a machine: memory and minutes from the config's sizes, by a stated rule; no torch here.

``python -m mkdt.jobs.estimates config/experiments/NAME.yaml`` prints an experiment's tables. The rules of the workflow ask for
``attempt`` times these figures, so a job that was too small or too slow gets more when it is tried again.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from mkdt.config import loading as cfg
from mkdt.config.extensions import own_modules
from mkdt.config.loading import Config
from mkdt.config.methods import METHODS
from mkdt.config.schema import SCHEMA
from mkdt.errors import UserError

# Bytes before any data. Of a tiny job on a CPU 1.6 GB of resident memory were measured in its step: the script with torch,
# kornia and scikit-learn 0.9, Snakemake around it 0.7; a second Snakemake outside of the step is counted too. CUDA's
# libraries and context come on top: an allowance, not measured.
BASE, CUDA = 3.0e9, 3.0e9
# Sustained floating-point operations a second in float32: a fifth of what a V100, the slowest GPU in common use, has at its
# peak; one CPU core with small convolutions.
GPU_RATE, CPU_RATE = 3e12, 1e10
# Seconds a training step costs however little it computes: launches of some hundred operations, from Python.
STEP = 5e-3
# Seconds to augment one view (benchmarked in batches of 256 colour images of 32x32: 37 ms on a CPU core), a pixel.
AUGMENT = 37e-3 / 256 / 1024
# L-BFGS: iterations that a probe's fit takes, generously, and operations an iteration costs an entry of the design matrix
# and class.
FIT_ITERATIONS, FIT_OPERATIONS = 500, 6
# Minutes are for planning, so they are twice the model's, at least ten, in steps of ten: start-up and slow disks cost too.
SAFETY, SLOT = 2, 10
LONGEST = 24 * 60  # many partitions refuse more; a stage that takes longer goes on in its next attempt
ENCODE_BATCH = 1024  # of mkdt.teacher.training and mkdt.evaluate.linear_probe
STATISTICS_IMAGES = 5000  # of mkdt.evaluate.linear_probe
FLOAT, LONG = 4, 8

ROOM = 5e6  # bytes for what the model leaves out: headers, logs, pictures, the report; the demo's are half a megabyte
LINE = 200  # bytes of one step in a metrics file
HISTORY = 16  # images of which distillation keeps how they form (mkdt.distill.synthetic_set)
CHUNK = 1e9  # of image files while they are decoded: measured 0.6 GB for photographs of 500x375
TARGETS_PIXELS = 256  # of mkdt.evaluate.targets_probe: images are made smaller for the probe on pixels

WITHOUT_GPU = {"data", "teacher_import", "targets_import", "targets_probe", "report"}


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        parameters: number of trainable ones.
        features: length of its output.
        flops: of a forward pass of one image; a multiply-add is two.
        activations: floats that the graph of a forward pass keeps for one image.
        largest: floats of the largest feature map of one image.
    """

    parameters: int
    features: int
    flops: float
    activations: int
    largest: int


@dataclass(frozen=True)
class Need:
    """What one job of a stage needs.

    Attributes:
        host: bytes of the process outside of what ``device`` counts.
        device: bytes of tensors that lie on the device: GPU memory, or more host memory without a GPU.
        flops: floating-point operations.
        steps: number of training steps, each with a cost of its own.
        seconds: time that does not shrink with a faster device (augmentation, fits, reading).
        disk: bytes of the outputs.
        resume: bytes of the resume points at their largest; a new one is written before the old one goes.
    """

    host: float = 0
    device: float = 0
    flops: float = 0
    steps: float = 0
    seconds: float = 0
    disk: float = 0
    resume: float = 0


# Networks of one form, counted by torch on one image of 3x32x32; all but the parameters grow with the area. The width of
# the output is what is left of the image after so many halvings, times the channels.
FIXED = {
    "vgg11": (Size(9_225_984, 512, 3.06e8, 399_704, 65_536), 5),
    "alexnet": (Size(1_843_392, 3072, 4.90e8, 586_872, 131_072), 3),
    "mobilenet": (Size(2_223_872, 1280, 1.76e8, 4_767_870, 147_456), None),
}
BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2]}
# A network that the user brings is not known before it is read: ResNet-50 at the size it sees stands for any.
BROUGHT = Size(25_600_000, 2048, 8.2e9, 33_000_000, 802_816)
BROUGHT_PIXELS = 224


def backbone_size(spec: Mapping[str, Any], channels: int, size: int) -> Size:
    """Size of ``models.build_backbone(spec, channels, size)``, counted without building it."""
    if spec["architecture"] == "convnet":
        parameters, flops, kept, largest, inputs, width = 0, 0.0, 0, 0, channels, spec["width"]
        for _ in range(spec["depth"]):
            area = size * size
            parameters += width * (9 * inputs + 1) + (2 * width if spec["norm"] != "none" else 0)
            flops += 2 * 9 * inputs * width * area
            # What backward needs: the outputs of convolution, norm and ReLU, and the pooled map.
            kept += (3 * area + (size // 2) ** 2) * width
            largest, inputs, size = max(largest, width * area), width, size // 2
        return Size(parameters, width * size * size, flops, kept, largest)
    if spec["architecture"] in FIXED:
        fixed, halvings = FIXED[spec["architecture"]]
        scale = (size / 32) ** 2
        features = (
            fixed.features if halvings is None else fixed.features * (size >> halvings) ** 2 // (32 >> halvings) ** 2
        )
        sizes = fixed.flops * scale, ceil(fixed.activations * scale), ceil(fixed.largest * scale)
        return Size(fixed.parameters, features, *sizes)
    if own_modules(spec["architecture"]):
        return _built_size(json.dumps(cfg.network(spec)), channels, size)
    # An entry that overrides another architecture's may have kept keys of that one.
    resnet = spec["architecture"] == "resnet"
    blocks, width = (spec["blocks"], spec["width"]) if resnet else (BLOCKS[spec["architecture"]], 64)
    area = size * size
    parameters, flops = 9 * channels * width + 2 * width, 2 * 9.0 * channels * width * area
    kept, largest, inputs = 3 * width * area, width * area, width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            size = -(-size // stride)
            area = size * size
            weights = 9 * outputs * (inputs + outputs)
            norms = 4 * outputs
            if stride != 1 or inputs != outputs:
                weights, norms = weights + inputs * outputs, norms + 2 * outputs
            parameters += weights + norms
            flops += 2 * weights * area
            kept += 7 * outputs * area  # two convolutions, two norms, two ReLUs, the sum
            largest, inputs = max(largest, outputs * area), outputs
    return Size(parameters, inputs, flops, kept, largest)


@cache
def _built_size(spec: str, channels: int, size: int) -> Size:
    """Size of a network of one's own: nothing is known of it, so it is built and sees one image.

    Raises:
        UserError: it cannot be built, or does not take the image.
    """
    import torch
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    from mkdt.networks.backbones import build_backbone

    entry: dict[str, Any] = json.loads(spec)
    kept = [0]

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.extend(part.numel() for part in tree_leaves(output) if isinstance(part, torch.Tensor))

    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network = build_backbone(entry, channels, size).eval()
            for module in network.modules():
                if not list(module.children()):
                    module.register_forward_hook(keep)
            features = network(torch.zeros(1, channels, size, size))
        shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        if shape != [1, network.dimension]:
            raise ValueError(f"of one image it makes {shape}, expected [1, {network.dimension}], its `dimension`")
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the student of architecture '{entry['architecture']}' cannot be used for images of "
            f"{channels}x{size}x{size}: {type(error).__name__}: {reason}"
        ) from error
    parameters = sum(weight.numel() for weight in network.parameters())
    return Size(parameters, shape[1], counter.get_total_flops(), sum(kept), max(kept))


def student_size(config: Config, student: str) -> Size:
    """A student on the source's images: its backbone, and the linear head that maps to the targets."""
    channels, size = _shape(config, config["source"])
    body = backbone_size(config["students"][student], channels, size)
    head = (body.features + 1) * targets_dimension(config)
    return Size(body.parameters + head, body.features, body.flops + 2 * head, body.activations, body.largest)


def ssl_student_size(config: Config) -> Size:
    """A student on the source's images with the projector of ``mtt_ssl`` in the place of its head."""
    body = backbone_size(config["students"][config["student"]], *_shape(config, config["source"]))
    widths = [body.features, *config["mtt_ssl"]["projector"]]
    head = sum(a * b for a, b in pairwise(widths)) + 2 * sum(widths[1:-1])
    return Size(body.parameters + head, body.features, body.flops + 2 * head, body.activations, body.largest)


def teacher_size(config: Config) -> Size:
    """The teacher's backbone; one that the user brings is taken for a ResNet-50."""
    if cfg.teacher_origin(config) == "trained":
        return backbone_size(config["teacher"]["backbone"], *_shape(config, config["source"]))
    area = ((config["teacher"]["checkpoint"]["image_size"] or BROUGHT_PIXELS) / BROUGHT_PIXELS) ** 2
    sizes = BROUGHT.flops * area, ceil(BROUGHT.activations * area), ceil(BROUGHT.largest * area)
    return Size(BROUGHT.parameters, BROUGHT.features, *sizes)


def targets_dimension(config: Config) -> int:
    """Length of the teacher's representation."""
    return teacher_size(config).features


def _shape(config: Config, dataset: str) -> tuple[int, int]:
    return cfg.facts_of(config, dataset).channels, cfg.image_size(config, dataset)


def _pixels(config: Config, dataset: str) -> int:
    channels, size = _shape(config, dataset)
    return channels * size * size


def _images(config: Config, dataset: str) -> int:
    """Images of all splits, as published."""
    facts = cfg.facts_of(config, dataset)
    return facts.train + facts.validation + facts.test


def _history(settings: Mapping[str, Any], pixels: int) -> int:
    """Bytes of the pictures that a distillation keeps of how its set forms."""
    return FLOAT * HISTORY * pixels * (int(settings["pictures"]) + 1)


def training_images(config: Config, budget: str) -> int:
    """Number of images a method trains on, by the budget in the path."""
    counts = {cfg.budget_label(value): cfg.budget_count(config, value) for value in config["budgets"]}
    return counts.get(budget, cfg.train_images(config, config["source"]))


def need(
    config: Config, stage: str, *, dataset: str = "", student: str = "", method: str = "", budget: str = ""
) -> Need:
    """What one job of a stage needs.

    Args:
        config: the checked config.
        stage: a rule's name; a batch of experts is ``experts``.
        dataset: for ``data``.
        student: for ``pretrain`` and ``probe``.
        method: for ``own``.
        budget: for ``subset``, ``distill``, ``pretrain`` and ``probe``, as in the path (``1pct``, ``all``).
    """
    source = config["source"]
    count, pixels, dimension = cfg.train_images(config, source), _pixels(config, source), targets_dimension(config)
    teacher = teacher_size(config)
    if stage == "data":
        facts, images = cfg.facts_of(config, dataset), _images(config, dataset)
        small = images * _pixels(config, dataset)
        kept = sum(cfg.split_sizes(config, dataset)) * (_pixels(config, dataset) + 2 * LONG)  # with label and row
        # Arrays are decoded, reordered, split, and written from a copy; image files go into the output chunk by chunk.
        host = CHUNK if cfg.decodes_files(config, dataset) else 2 * images * facts.channels * facts.size**2 + 3 * small
        decoded = small if cfg.decodes_files(config, dataset) else 0
        return Need(host=host, seconds=images / 400, disk=kept, resume=decoded)
    if stage == "teacher":
        spec = config["teacher"]
        batch = min(spec["batch"], count)
        widths = [dimension, *spec["projector"]]
        projector = sum(a * b for a, b in pairwise(widths))
        views = 2 * batch * (count // batch) * spec["epochs"]
        parameters = teacher.parameters + projector
        return Need(
            # The resume state is a copy; k-NN looks at two samples of 5,000.
            host=count * pixels + FLOAT * (3 * parameters + 4 * STATISTICS_IMAGES * dimension),
            # Weights, gradient, two moments; the views and four copies while they are augmented; both views' graph.
            device=count * pixels + FLOAT * (4 * parameters + 2 * batch * (5 * pixels + teacher.activations)),
            flops=views * 3 * (teacher.flops + 2 * projector),
            steps=(count // batch) * spec["epochs"],
            seconds=views * pixels / 3 * AUGMENT,
            # Without the projector; the running statistics of batch norms are a few per cent of all but the tiniest.
            disk=1.2 * FLOAT * teacher.parameters + LINE * spec["epochs"],
            resume=2 * FLOAT * 3 * parameters,
        )
    if stage == "targets":
        return Need(
            host=count * pixels + 3 * FLOAT * count * dimension,
            device=FLOAT * (teacher.parameters + ENCODE_BATCH * (2 * pixels + 4 * teacher.largest)),
            flops=count * teacher.flops,
            disk=FLOAT * (count + cfg.split_sizes(config, source)[1]) * dimension,
        )
    if stage == "teacher_import":
        return Need(host=4 * FLOAT * teacher.parameters, disk=FLOAT * teacher.parameters)
    if stage == "targets_import":
        return Need(host=3 * FLOAT * count * dimension, disk=FLOAT * count * dimension)
    if stage == "targets_probe":
        probe, classes = config["probe"], cfg.facts_of(config, source).classes
        small = min(pixels, TARGETS_PIXELS * cfg.facts_of(config, source).channels)
        drawn = probe["label_draws"] * sum(probe["label_fractions"]) * count
        fitted = drawn * classes * (dimension + small)
        drawn += STATISTICS_IMAGES
        return Need(
            # Of the pixels, those whose labels are drawn and those that give the statistics, in float64, twice.
            host=count * (pixels + 2 * FLOAT * dimension) + 4 * FLOAT * min(count, drawn) * small,
            seconds=fitted * FIT_OPERATIONS * FIT_ITERATIONS / CPU_RATE,
        )
    if stage == "experts":
        size, epochs = student_size(config, config["student"]), config["experts"]["epochs"]
        batch = min(config["experts"]["batch"], count)
        trajectory = FLOAT * size.parameters * (epochs + 1)
        members = config["experts"]["per_job"]
        return Need(
            # The trajectory as rows, stacked, and stacked again in the resume state; the images before they move.
            host=3 * trajectory + count * pixels + FLOAT * count * dimension,
            device=count * pixels
            + FLOAT * (count * dimension + 3 * size.parameters)
            + FLOAT * max(batch * (3 * pixels + size.activations), ENCODE_BATCH * 3 * (pixels + size.largest)),
            flops=members * count * size.flops * (3 * epochs + 1),
            steps=members * epochs * ceil(count / batch),
            disk=members * (trajectory + FLOAT * count + LINE * epochs),
            resume=2 * (trajectory + 2 * FLOAT * size.parameters),
        )
    if stage == "subset":
        few, views = training_images(config, budget), config["sas"]["views"] if "sas" in config["methods"] else 0
        return Need(
            # k-means holds the targets twice.
            host=count * (pixels + 4 * FLOAT * dimension) + FLOAT * count * config["experts"]["count"],
            device=FLOAT * (teacher.parameters + ENCODE_BATCH * (2 * pixels + 4 * teacher.largest)) if views else 0,
            # k-means: at most 300 iterations of scikit-learn; SAS: the views, and a pass over the targets a choice.
            flops=views * count * teacher.flops,
            seconds=count * (views * pixels / 3 * AUGMENT + 2 * few * dimension * 300 / CPU_RATE),
            disk=few * (FLOAT * (pixels + dimension) + LONG),
        )
    if stage in {"krr", "own"}:  # nothing is known of a method of one's own: KRR-ST with one student stands for it
        krr, few = config["krr_st"], training_images(config, budget)
        if stage == "own":
            own = cfg.own_options(config, method)
            krr = krr | {"student": config["student"], "students": 1} | {k: own[k] for k in ("iterations", "pictures")}
        size, real = student_size(config, krr["student"]), min(krr["batch"], count)
        tensors = few * (FLOAT * (pixels + dimension) + LONG)
        return Need(
            host=count * (pixels + FLOAT * dimension) + 8 * tensors,
            # The pool of students with their momenta; the graph of all synthetic images, the ridge system in float64.
            device=8 * tensors
            + FLOAT * (2 * krr["students"] + 4) * size.parameters
            + 2 * FLOAT * (few + real) * size.activations
            + 4 * 8 * few * (few + size.features),
            flops=krr["iterations"] * (6 * few + real) * size.flops + krr["iterations"] * 3 * few**3,
            steps=2 * krr["iterations"],
            disk=tensors + LINE * krr["iterations"],
            resume=2 * (3 * tensors + _history(krr, pixels) + 2 * FLOAT * krr["students"] * size.parameters),
        )
    if stage == "sslexperts":
        size, epochs, members = ssl_student_size(config), config["experts"]["epochs"], config["experts"]["per_job"]
        batch = min(config["mtt_ssl"]["expert_batch"], count)
        views = 2 * batch * (count // batch) * epochs * members
        trajectory = FLOAT * size.parameters * (epochs + 1)
        return Need(
            host=3 * trajectory + count * pixels,
            device=count * pixels + FLOAT * (3 * size.parameters + 2 * batch * (5 * pixels + size.activations)),
            flops=views * 3 * size.flops,
            steps=members * epochs * (count // batch),
            seconds=views * pixels / 3 * AUGMENT,
            disk=members * (trajectory + LINE * epochs),
            resume=2 * (trajectory + 2 * FLOAT * size.parameters),
        )
    if stage in {"distill", "mtt"}:
        distill, size, few = config["distill"], student_size(config, config["student"]), training_images(config, budget)
        batch, steps, views = min(distill["batch"], few), distill["steps"], 0
        if stage == "mtt":  # two views of each image, drawn before the steps and differentiated through
            size, batch = ssl_student_size(config), 2 * batch
            views = steps * batch
        graph = (
            FLOAT * batch * 2 * size.activations
        )  # a step's graph can be differentiated twice (benchmarks/README.md)
        kept = 0 if distill["compile"] else steps if distill["retain"] == "auto" else min(steps, distill["retain"])
        tensors = few * (FLOAT * (pixels + dimension) + LONG)
        trajectories = FLOAT * size.parameters * (config["experts"]["epochs"] + 1) * config["experts"]["count"]
        return Need(
            # Pages of the experts' files that were read count as the process's memory.
            host=trajectories + 4 * tensors,
            device=6 * tensors
            + FLOAT * size.parameters * (steps + 4)
            + (kept + 2) * graph
            + FLOAT * 10 * views * pixels,
            # Forward and backward 3, the product with second derivatives 6, a step that is built again 3 more.
            flops=distill["iterations"] * batch * size.flops * (9 * steps + 3 * (steps - kept)),
            steps=distill["iterations"] * 3 * steps,
            seconds=distill["iterations"] * 2 * views * pixels / 3 * AUGMENT,
            disk=tensors + LINE * distill["iterations"],
            resume=2 * (3 * tensors + _history(distill, pixels) + LINE * distill["iterations"]),
        )
    if stage == "pretrain":
        settings, size, few = config["pretrain"], student_size(config, student), training_images(config, budget)
        batch, seeds = min(settings["batch"], few), len(settings["seeds"])
        rates, points, steps = 1, 1, settings["epochs"] * ceil(few / batch)
        if settings["protocol"] == "fair":
            rates, steps = len(settings["rates"]), max(settings["steps"])
            points = rates * len(settings["steps"])
        snapshots = FLOAT * size.parameters * points
        images = few * pixels * (1 if budget == "all" else FLOAT)  # the source's are normalised a batch at a time
        return Need(
            # The snapshots, their copy in the resume state and in the file that is written; the images before they move.
            host=3 * snapshots + images + FLOAT * few * dimension + 3 * FLOAT * size.parameters,
            device=images + FLOAT * (few * dimension + 3 * size.parameters + batch * (3 * pixels + size.activations)),
            flops=seeds * rates * steps * batch * size.flops * 3,
            steps=seeds * rates * steps,
            disk=seeds * (snapshots + LINE * points),
            resume=2 * (snapshots + 3 * FLOAT * size.parameters),
        )
    if stage == "probe":
        return _probe(config, student, budget)
    if stage == "report":
        return Need()
    raise ValueError(f"no such stage: {stage}")


def _probe(config: Config, student: str, budget: str) -> Need:
    probe, pretrain, size = config["probe"], config["pretrain"], student_size(config, student)
    pixels, fair = _pixels(config, config["source"]), pretrain["protocol"] == "fair"
    points = len(pretrain["rates"]) * len(pretrain["steps"]) if fair else 1
    runs = len(pretrain["seeds"]) * (1 if budget == "all" else len(config["distill_seeds"]))

    def look(name: str, draws: int, held_out: int) -> tuple[float, float, float]:
        """Images to encode, operations of the fits, and floats of features, for one student on one data set."""
        facts, count = cfg.facts_of(config, name), cfg.train_images(config, name)
        labels = [fraction * count for fraction in probe["label_fractions"]]
        encoded = min(count, STATISTICS_IMAGES + draws * sum(labels)) + held_out
        fits = draws * sum(labels) * size.features * facts.classes * FIT_OPERATIONS * FIT_ITERATIONS
        return encoded, fits, encoded * size.features

    _, selection, _ = cfg.split_sizes(config, probe["selection"])
    chosen = look(probe["selection"], probe["selection_draws"], selection)
    final = [look(name, probe["label_draws"], cfg.split_sizes(config, name)[2]) for name in probe["downstream"]]
    held = sum(_images(config, name) * (_pixels(config, name) + pixels) for name in cfg.used_datasets(config))
    encoded = points * chosen[0] + sum(look[0] for look in final)
    fits = points * chosen[1] + sum(look[1] for look in final)
    return Need(
        # Every set as it is and in the source's shape, as bytes; features in float64, twice; one snapshot file.
        host=held + 2 * 2 * FLOAT * max(look[2] for look in [chosen, *final]) + FLOAT * size.parameters * (points + 2),
        device=FLOAT * (size.parameters + ENCODE_BATCH * (3 * pixels + 3 * size.largest)),
        flops=runs * encoded * size.flops,
        seconds=runs * fits / CPU_RATE,
    )


def memory_mb(needs: Need, gpus: int) -> int:
    """Main memory to ask for, in MB: on a GPU's node the tensors of the device do not count."""
    return ceil((BASE + needs.host + (CUDA if gpus else needs.device)) / 1e6)


def disk_mb(needs: Need) -> int:
    """Free space to ask for before a job starts, in MB: its outputs, its resume points, and room for the rest."""
    return ceil((ROOM + needs.disk + needs.resume) / 1e6)


def hours(needs: Need, gpus: int, threads: int) -> float:
    """The model's time, without its safety factor."""
    rate = GPU_RATE if gpus else CPU_RATE * threads
    seconds = needs.seconds if gpus else needs.seconds / threads
    return (needs.flops / rate + needs.steps * STEP + seconds) / 3600


def minutes(needs: Need, gpus: int, threads: int, attempt: int = 1) -> int:
    """Time limit to ask for, in minutes."""
    return min(LONGEST, attempt * SLOT * max(1, ceil(SAFETY * 60 * hours(needs, gpus, threads) / SLOT)))


def jobs(config: Config) -> list[tuple[str, dict[str, str]]]:
    """Every job of an experiment: its stage and the arguments of ``need``."""
    methods = {cfg.method_name(method): cfg.variants(config, method) for method in config["methods"]}
    found: list[tuple[str, dict[str, str]]] = [("data", {"dataset": name}) for name in cfg.used_datasets(config)]
    origin = cfg.teacher_origin(config)
    found += {
        "trained": [("teacher", {}), ("targets", {})],
        "checkpoint": [("teacher_import", {}), ("targets", {})],
        "file": [("targets_import", {})],
    }[origin]
    found.append(("targets_probe", {}))
    subsets: set[tuple[str, str, int]] = set()
    for name, variants in methods.items():
        rule = METHODS[name].rule if name in METHODS else None
        if rule == "subset":
            subsets |= {(name, *variant) for variant in variants}
        elif rule is not None:
            init = cfg.initial_method(config, name)
            subsets |= {(init, budget, seed if METHODS[init].seeded else 0) for budget, seed in variants}
            found += [(rule, {"method": name, "budget": budget}) for budget, _ in variants]
    found += [("subset", {"budget": budget}) for _, budget, _ in sorted(subsets)]
    made = {*methods, *(name for name, _, _ in subsets)}
    if any(METHODS[name].experts for name in made if name in METHODS):
        found += [("experts", {})] * ceil(config["experts"]["count"] / config["experts"]["per_job"])
    if any(METHODS[name].rule == "mtt" for name in made if name in METHODS):
        found += [("sslexperts", {})] * ceil(config["experts"]["count"] / config["experts"]["per_job"])
    for student in config["pretrain"]["students"]:
        for name, variants in methods.items():
            if name != "teacher":  # it is probed as it is
                found += [("pretrain", {"student": student, "budget": budget}) for budget, _ in variants]
            elif student != config["pretrain"]["students"][0]:
                continue  # once, beside all of them
            budgets = sorted({budget for budget, _ in variants})
            found += [("probe", {"student": student, "budget": budget}) for budget in budgets]
    return [*found, ("report", {})]


def table(config: Config, gpus: int) -> str:
    """Jobs, hours and sizes of each stage, as Markdown; the largest job of a stage stands for its memory and time limit."""
    threads = config["compute"]["threads"]
    lines = [
        "| stage | jobs | time limit, min | hours, all jobs | mem_mb | device memory, GB | results, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    total_jobs, total_hours, total_disk = 0, 0.0, 0.0
    stages: dict[str, list[Need]] = {}
    for stage, arguments in jobs(config):
        stages.setdefault(stage, []).append(need(config, stage, **arguments))
    for stage, needs in stages.items():
        own = 0 if stage in WITHOUT_GPU else gpus
        spent, disk = sum(hours(one, own, threads) for one in needs), sum(one.disk for one in needs) / 1e9
        largest = [max(f(one, own) for one in needs) for f in (lambda one, own: minutes(one, own, threads), memory_mb)]
        device = max(one.device for one in needs) / 1e9
        lines.append(
            f"| {stage} | {len(needs)} | {largest[0]} | {spent:.1f} | {largest[1]:,} | {device:.1f} | {disk:.2f} |"
        )
        total_jobs, total_hours, total_disk = total_jobs + len(needs), total_hours + spent, total_disk + disk
    lines.append(f"| all | {total_jobs} | | {total_hours:.1f} | | | {total_disk:.2f} |")
    return "\n".join(lines) + "\n"


def total(config: Config) -> str:
    """A row of Markdown: jobs and hours with one GPU a job, the stages that take a tenth of these or more, the longest job, GB."""
    spent: dict[str, float] = {}
    longest, disk, found = 0.0, 0.0, jobs(config)
    for stage, arguments in found:
        needs = need(config, stage, **arguments)
        one = hours(needs, 0 if stage in WITHOUT_GPU else 1, config["compute"]["threads"])
        spent[stage] = spent.get(stage, 0.0) + one
        longest, disk = max(longest, one), disk + needs.disk
    every = sum(spent.values())
    shares = sorted(((value, stage) for stage, value in spent.items() if value >= max(0.1, every / 10)), reverse=True)
    most = ", ".join(f"{stage} {value:.{0 if value >= 10 else 1}f}" for value, stage in shares)
    return f"| {config['experiment']} | {len(found)} | {every:.1f} | {most} | {longest:.1f} | {disk / 1e9:.1f} |"


def merge(old: Any, new: Any) -> Any:
    """Nested settings over others, as Snakemake merges config files."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def read(files: Sequence[Path]) -> Config:
    """The checked config that Snakemake makes of the default and these files, the last one winning."""
    merged: Any = {}
    for file in [SCHEMA.parents[2] / "config" / "config.yaml", *files]:
        merged = merge(merged, yaml.safe_load(file.read_text(encoding="utf-8")))
    return cfg.load(merged)


def main(arguments: Sequence[str]) -> int:
    """Print docs/estimates.md: the tables of every config that is named, with one GPU a job and without.

    Returns:
        the exit code: 1 after one sentence where a config is not good; then nothing else is printed.
    """
    configs = {}
    for name in arguments:
        try:
            configs[name] = read([Path(name)])
        except (UserError, OSError, yaml.YAMLError) as error:
            print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    print(
        "# What each experiment needs\n\nMade by `make estimate`; docs/cluster.md says how it is reckoned: a model at "
        f"{GPU_RATE / 1e12:g} TFLOP/s, not measurements. All jobs, one GPU a job:\n"
    )
    print("| experiment | jobs | hours | of them | longest job, hours | results, GB |\n|---|---|---|---|---|---|")
    for config in configs.values():
        print(total(config))
    for name, config in configs.items():
        print(f"\n## {config['experiment']}\n\n`{name}`")
        for gpus in (1, 0):
            kind = "One GPU a job:" if gpus else f"No GPU, {config['compute']['threads']} thread(s) a job:"
            print(f"\n{kind}\n\n{table(config, gpus)}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
