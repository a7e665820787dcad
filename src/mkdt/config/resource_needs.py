"""Memory and disk that each stage needs, from the sizes in the config. No torch here.

Each function takes the config and what the path says of the artifact; ``stages`` names the function of each stage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from mkdt.config.budgets import budget_images, set_bytes, view_count
from mkdt.config.methods import METHODS
from mkdt.config.network_sizes import (
    mlp_parameters,
    ssl_student_size,
    student_size,
    targets_dimension,
    teacher_size,
)
from mkdt.config.plan import own_options, probed_datasets
from mkdt.config.sections import Config, LearnedSet, Names
from mkdt.config.sizes import consists_of_files, facts_of, image_shape, split_sizes, train_images
from mkdt.config.teacher_origin import teacher_origin
from mkdt.config.views import has_views

FLOAT, LONG = 4, 8  # bytes
# Bytes before any data. A tiny job on a CPU was measured with 1.6 GB of resident memory: the script with torch, kornia and
# scikit-learn 0.9, Snakemake around it 0.7; on a cluster a second Snakemake is counted too. CUDA's libraries and context
# come on top: an allowance, not measured.
BASE, CUDA = 3.0e9, 3.0e9
ROOM = 5e6  # bytes of disk for headers, logs, pictures and the report: those of the demo are half a megabyte
LINE = 200  # bytes of one step in a metrics file
CHUNK = 1e9  # bytes of image files while they are decoded: measured 0.6 GB for photographs of 500x375
GPU_PIXELS, GPU_IMAGES = 2**20, 1024  # of mkdt.networks.batching: the CPU takes fewer
STATISTICS_IMAGES = 5000  # of the linear probe
HISTORY = 16  # images of which distillation keeps how they form (mkdt.distill.synthetic_set)
LONGEST = 24  # hours: many partitions refuse more, and a job that takes longer continues in its next attempt
ENCODED = 64  # images that mkdt.evaluate.targets_probe encodes at a time
TARGETS_PIXELS = 256  # of mkdt.evaluate.targets_probe: images are made smaller for the probe on pixels


@dataclass(frozen=True)
class Need:
    """What one job of a stage needs.

    Attributes:
        host: bytes of main memory, without the tensors that ``device`` counts.
        device: bytes of tensors that lie on the device: GPU memory, or more host memory without a GPU.
        disk: bytes of the outputs.
        resume: bytes of the resume points at their largest; a new one is written before the old one goes.
    """

    host: float = 0
    device: float = 0
    disk: float = 0
    resume: float = 0


def memory_mb(need: Need, gpus: int) -> int:
    """Return the main memory to ask for, in MB: on a GPU's node the tensors of the device do not count."""
    return ceil((BASE + need.host + (CUDA if gpus else need.device)) / 1e6)


def disk_mb(need: Need) -> int:
    """Return the free space to ask for before a job starts, in MB: its outputs, its resume points, and some room."""
    return ceil((ROOM + need.disk + need.resume) / 1e6)


def _pixels(config: Config, dataset: str) -> int:
    channels, size = image_shape(config, dataset)
    return channels * size * size


def _published(config: Config, dataset: str) -> int:
    """Images of all splits, as published."""
    facts = facts_of(config, dataset)
    return facts.train + facts.validation + facts.test


def _at_once(config: Config) -> int:
    """Images of the source's size that a network encodes at once."""
    return max(1, min(GPU_IMAGES, GPU_PIXELS // image_shape(config, config["source"])[1] ** 2))


def _source(config: Config) -> tuple[int, int, int]:
    """Training images of the source, values of one image, and length of its target."""
    return train_images(config, config["source"]), _pixels(config, config["source"]), targets_dimension(config)


def _set_bytes(config: Config, names: Names) -> int:
    """A training set with its targets, as float32."""
    _, pixels, dimension = _source(config)
    rows = view_count(config, names["budget"])
    return _images(config, names) * (FLOAT * (pixels + rows * dimension) + LONG)


def _images(config: Config, names: Names) -> int:
    return budget_images(config, names["budget"], names["method"])


def _history(settings: Mapping[str, Any], pixels: int) -> int:
    """Pictures that a distillation keeps of how its set forms."""
    return FLOAT * HISTORY * pixels * (int(settings["pictures"]) + 1)


def _encoding(config: Config) -> float:
    """Device memory of encoding a batch of images with the teacher."""
    teacher = teacher_size(config)
    return FLOAT * (
        teacher.parameters + _at_once(config) * (2 * _pixels(config, config["source"]) + 4 * teacher.largest)
    )


def data(config: Config, names: Names) -> Need:
    """Arrays are decoded, reordered, split, and written from a copy; image files go into the output chunk by chunk."""
    dataset = names["dataset"]
    facts, images = facts_of(config, dataset), _published(config, dataset)
    resized = images * _pixels(config, dataset)
    kept = sum(split_sizes(config, dataset)) * (_pixels(config, dataset) + 2 * LONG)  # with label and row
    if consists_of_files(config, dataset):
        return Need(host=CHUNK, disk=kept, resume=resized)
    return Need(host=2 * images * facts.channels * facts.size**2 + 3 * resized, disk=kept)


def teacher(config: Config, names: Names) -> Need:
    """Weights, gradient and two moments; both views of a batch, and four copies of them while they are augmented."""
    count, pixels, _ = _source(config)
    spec, size = config["teacher"], teacher_size(config)
    dimension = size.features
    batch = min(spec["batch"], count)
    parameters = size.parameters + mlp_parameters([dimension, *spec["projector"]])
    return Need(
        # The resume state is a copy; the k-NN monitor looks at two samples of 5,000.
        host=count * pixels + FLOAT * (3 * parameters + 4 * STATISTICS_IMAGES * dimension),
        device=count * pixels + FLOAT * (4 * parameters + 2 * batch * (5 * pixels + size.activations)),
        # Without the projector; running statistics of batch norms are a few per cent of all but the tiniest networks.
        disk=1.2 * FLOAT * size.parameters + LINE * spec["epochs"],
        resume=2 * FLOAT * 3 * parameters,
    )


def teacher_import(config: Config, names: Names) -> Need:
    """The checkpoint in two forms, read and written."""
    parameters = teacher_size(config).parameters
    return Need(host=4 * FLOAT * parameters, disk=FLOAT * parameters)


def targets(config: Config, names: Names) -> Need:
    """All images as bytes, and their representations."""
    count, pixels, _ = _source(config)
    dimension = teacher_size(config).features
    held_out = split_sizes(config, config["source"])[1]
    return Need(
        host=count * pixels + 3 * FLOAT * count * dimension,
        device=_encoding(config),
        disk=FLOAT * (count + held_out) * dimension,
    )


def target_space(config: Config, names: Names) -> Need:
    """The representations in float64, once more as targets, and the matrix of their second moments."""
    count, dimension = train_images(config, config["source"]), teacher_size(config).features
    return Need(host=4 * FLOAT * (2 * count + 4 * dimension) * dimension, disk=FLOAT * (count + dimension) * dimension)


def targets_import(config: Config, names: Names) -> Need:
    """The representations, read and written."""
    count, dimension = train_images(config, config["source"]), teacher_size(config).features
    return Need(host=3 * FLOAT * count * dimension, disk=FLOAT * count * dimension)


def targets_probe(config: Config, names: Names) -> Need:
    """Pixels of the images whose labels are drawn and of those that give the statistics, in float64, twice; a brought teacher."""
    (count, pixels, _), probe, dimension = _source(config), config["probe"], teacher_size(config).features
    small = min(pixels, TARGETS_PIXELS * facts_of(config, config["source"]).channels)
    drawn = probe["label_draws"] * sum(probe["label_fractions"]) * count + STATISTICS_IMAGES
    probed = count * (pixels + 2 * FLOAT * dimension) + 4 * FLOAT * min(count, drawn) * small
    if teacher_origin(config) != "checkpoint":
        return Need(host=probed)
    teacher = teacher_size(config)
    return Need(host=probed + FLOAT * (teacher.parameters + 4 * ENCODED * teacher.largest))


def experts(config: Config, names: Names) -> Need:
    """The trajectory as rows, stacked, and stacked again in the resume state; the images before they move."""
    count, pixels, dimension = _source(config)
    size, epochs = student_size(config, config["student"]), config["experts"]["epochs"]
    batch, members = min(config["experts"]["batch"], count), config["experts"]["per_job"]
    trajectory = FLOAT * size.parameters * (epochs + 1)
    training = batch * (3 * pixels + size.activations)
    return Need(
        host=3 * trajectory + count * pixels + FLOAT * count * dimension,
        device=count * pixels
        + FLOAT * (count * dimension + 3 * size.parameters)
        + FLOAT * max(training, _at_once(config) * 3 * (pixels + size.largest)),
        disk=members * (trajectory + FLOAT * count + LINE * epochs),
        resume=2 * (trajectory + 2 * FLOAT * size.parameters),
    )


def method_experts(config: Config, names: Names) -> Need:
    """As ``experts``; those of ``mtt_ssl`` train a projector on two views of each image."""
    if METHODS[names["method"]].section != "mtt_ssl":
        return experts(config, names)
    count, pixels, _ = _source(config)
    size, epochs, members = ssl_student_size(config), config["experts"]["epochs"], config["experts"]["per_job"]
    batch = min(config["mtt_ssl"]["expert_batch"], count)
    trajectory = FLOAT * size.parameters * (epochs + 1)
    return Need(
        host=3 * trajectory + count * pixels,
        device=count * pixels + FLOAT * (3 * size.parameters + 2 * batch * (5 * pixels + size.activations)),
        disk=members * (trajectory + LINE * epochs),
        resume=2 * (trajectory + 2 * FLOAT * size.parameters),
    )


def subset(config: Config, names: Names) -> Need:
    """The source with its targets, which k-means holds twice, and each expert's losses."""
    count, pixels, dimension = _source(config)
    return Need(
        host=count * (pixels + 4 * FLOAT * dimension) + FLOAT * count * config["experts"]["count"],
        device=_encoding(config) if METHODS[names["method"]].teacher or has_views(config["views"]) else 0,
        disk=set_bytes(config, _images(config, names), names["method"]) + LONG * _images(config, names),
    )


def distill(config: Config, names: Names) -> Need:
    """The need of the method; nothing is known of an extension: KRR-ST with one student stands for it."""
    method = METHODS[names["method"]]
    if method.section in ("distill", "mtt_ssl"):
        return _matching(config, names, ssl=method.section == "mtt_ssl")
    if method.section == "bptt":
        return _unrolled(config, names)
    settings: dict[str, Any] = dict(config["krr_st"])
    if not method.section:
        own = own_options(config, names["method"])
        settings |= {"student": config["student"], "students": 1} | {k: own[k] for k in ("iterations", "pictures")}
    return _kernel(config, names, settings)


def _matching(config: Config, names: Names, ssl: bool) -> Need:
    """Trajectory matching: the graphs of the steps that are kept, and pages of the experts' files that were read."""
    distill, pixels = config["distill"], _source(config)[1]
    few = _images(config, names) * (1 if ssl else view_count(config, names["budget"]))
    size, batch = student_size(config, config["student"]), min(distill["batch"], few)
    steps, views = distill["steps"], 0
    if ssl:  # two views of each image, drawn before the steps and differentiated through
        size, batch = ssl_student_size(config), 2 * batch
        views = steps * batch
    graph = FLOAT * batch * 2 * size.activations  # one that can be differentiated twice (benchmarks/README.md)
    kept = _kept_graphs(distill, steps)
    tensors = _set_bytes(config, names)
    trajectories = FLOAT * size.parameters * (config["experts"]["epochs"] + 1) * config["experts"]["count"]
    return Need(
        host=trajectories + 4 * tensors,
        device=6 * tensors + FLOAT * size.parameters * (steps + 4) + (kept + 2) * graph + FLOAT * 10 * views * pixels,
        disk=tensors + LINE * distill["iterations"],
        resume=2 * (3 * tensors + _history(distill, pixels) + LINE * distill["iterations"]),
    )


def _kept_graphs(section: LearnedSet, steps: int) -> int:
    """The number of steps that keep their graphs; of ``auto``, all may."""
    retain = section["retain"]
    return 0 if section["compile"] else steps if isinstance(retain, str) else min(steps, retain)


def _unrolled(config: Config, names: Names) -> Need:
    """Unrolled distillation: the graphs of the steps that are kept, the source, and a batch of it."""
    count, pixels, dimension = _source(config)
    section, size = config["bptt"], student_size(config, config["student"])
    rows = _images(config, names) * view_count(config, names["budget"])
    graph = FLOAT * min(section["batch"], rows) * 2 * size.activations
    steps = section["window"] or section["steps"]
    kept = _kept_graphs(section, steps)
    tensors, outer = _set_bytes(config, names), min(section["outer_batch"], count)
    return Need(
        host=count * (pixels + FLOAT * dimension) + 4 * tensors,
        device=8 * tensors
        + FLOAT * (2 * rows * pixels + size.parameters * (steps + 8) + outer * (3 * pixels + size.activations))
        + (kept + 2) * graph,
        disk=tensors + LINE * section["iterations"],
        resume=2 * (4 * tensors + _history(section, pixels) + LINE * section["iterations"]),
    )


def _kernel(config: Config, names: Names, settings: Mapping[str, Any]) -> Need:
    """KRR-ST: the pool of students with momenta, the graph of all synthetic images, the ridge system in float64."""
    (count, pixels, dimension), few = _source(config), _images(config, names)
    few *= view_count(config, names["budget"])
    size, real = student_size(config, settings["student"]), min(config["krr_st"]["batch"], count)
    tensors, students = _set_bytes(config, names), settings["students"]
    return Need(
        host=count * (pixels + FLOAT * dimension) + 8 * tensors,
        device=8 * tensors
        + FLOAT * (2 * students + 4) * size.parameters
        + 2 * FLOAT * (few + real) * size.activations
        + 4 * 8 * few * (few + size.features),
        disk=tensors + LINE * settings["iterations"],
        resume=2 * (3 * tensors + _history(settings, pixels) + 2 * FLOAT * students * size.parameters),
    )


def pretrain(config: Config, names: Names) -> Need:
    """The snapshots, their copy in the resume state and in the file that is written; the images before they move."""
    _, pixels, dimension = _source(config)
    section, size = config["pretrain"], student_size(config, names["student"])
    few, seeds = _images(config, names) * view_count(config, names["budget"]), len(section["seeds"])
    points, batch = _grid_points(config), min(section["batch"], few)
    snapshots = FLOAT * size.parameters * points
    images = few * pixels * (1 if names["budget"] == "all" else FLOAT)  # the source's are normalised a batch at a time
    return Need(
        host=3 * snapshots + images + FLOAT * few * dimension + 3 * FLOAT * size.parameters,
        device=images + FLOAT * (few * dimension + 3 * size.parameters + batch * (3 * pixels + size.activations)),
        disk=seeds * (snapshots + LINE * points),
        resume=2 * (snapshots + 3 * FLOAT * size.parameters),
    )


def _grid_points(config: Config) -> int:
    fair = config["pretrain"]["protocol"] == "fair"
    return len(config["pretrain"]["rates"]) * len(config["pretrain"]["steps"]) if fair else 1


def select(config: Config, names: Names) -> Need:
    """As for the probe, of the selection set's validation split."""
    name, draws = config["probe"]["selection"], config["probe"]["selection_draws"]
    return _scoring(config, names, [name], [_features(config, names, name, draws, split_sizes(config, name)[1])])


def probe(config: Config, names: Names) -> Need:
    """Every set that is read, and the features of the largest test split."""
    probe = config["probe"]
    tested = [
        _features(config, names, name, probe["label_draws"], split_sizes(config, name)[2])
        for name in probe["downstream"]
    ]
    return _scoring(config, names, probed_datasets(config), tested)


def _features(config: Config, names: Names, dataset: str, draws: int, held_out: int) -> float:
    """Numbers in the features of a data set's labelled and held-out images."""
    count = train_images(config, dataset)
    labels = draws * sum(fraction * count for fraction in config["probe"]["label_fractions"])
    return (min(count, STATISTICS_IMAGES + labels) + held_out) * student_size(config, names["student"]).features


def _scoring(config: Config, names: Names, datasets: Iterable[str], features: Iterable[float]) -> Need:
    """Sets as they are and in the source's shape, as bytes; the most features in float64, twice; one snapshot file."""
    size, pixels = student_size(config, names["student"]), _pixels(config, config["source"])
    read = {config["source"], *datasets}
    held = sum(_published(config, name) * (_pixels(config, name) + pixels) for name in read)
    return Need(
        host=held + 2 * 2 * FLOAT * max(features) + FLOAT * size.parameters * (_grid_points(config) + 2),
        device=FLOAT * (size.parameters + _at_once(config) * (3 * pixels + 3 * size.largest)),
    )


def report(config: Config, names: Names) -> Need:
    """Nothing beside the process."""
    return Need()
