"""Check the conditions between keys of a config, beyond its schema: each failure is one sentence. No torch here."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open

from mkdt.artifact_header import HEADER_KEY
from mkdt.config import budgets, network_sizes, plan, sizes, views
from mkdt.config.architectures import ARCHITECTURES, POOLS, has_running_statistics
from mkdt.config.catalogue import DATASETS
from mkdt.config.dataset_checks import check_components, check_dataset, fail_if
from mkdt.config.methods import METHODS, methods_that
from mkdt.config.result_folders import RESERVED
from mkdt.config.schema import LARGEST
from mkdt.config.sections import Backbone, Config, Network
from mkdt.config.set_checks import check_set
from mkdt.config.teacher_origin import teacher_origin
from mkdt.errors import UserError

# Characters, of all names that become folders.
LONGEST_NAME = 100
# What YAML reads as a truth value, null or a number in base 16 or 2. As the other values that are no text (decimal numbers,
# dates), these need quotes; unlike them, they are no names even in quotes.
NO_NAME = re.compile(r"(?i)true|false|yes|no|on|off|null|0x[0-9a-f_]+|0b[01_]+")


def check(config: Config) -> None:
    """Check the conditions between keys.

    Raises:
        UserError: one sentence that names the first key at fault.
    """
    _check_kinds(config)
    _check_references(config)
    _check_names(config)
    for name in plan.used_datasets(config):
        check_dataset(config, name)
    _check_origin(config)
    _check_networks(config)
    _check_views(config)
    _check_budgets(config)
    _check_training(config)
    _check_last_batches(config)
    _check_methods(config)
    _check_options(config)
    _check_evaluation(config)
    _check_brought_sets(config)


def _check_kinds(config: Config) -> None:
    """Kinds of data sets and architectures of students exist."""
    kinds = [*DATASETS, "folder"]
    for name, entry in config["datasets"].items():
        known = ", ".join(kinds)
        fail_if(entry["kind"] not in kinds, f"datasets.{name}.kind is '{entry['kind']}', known are {known}.")
    for name, student in config["students"].items():
        fail_if(
            student["architecture"] not in ARCHITECTURES,
            f"students.{name}.architecture is '{student['architecture']}', known are {', '.join(ARCHITECTURES)}.",
        )


def _check_references(config: Config) -> None:
    """Names of data sets and students exist."""
    sets, students, probe = config["datasets"], config["students"], config["probe"]
    for key, name in [
        ("source", config["source"]),
        ("probe.selection", probe["selection"]),
        *((f"probe.downstream.{i}", name) for i, name in enumerate(probe["downstream"])),
    ]:
        fail_if(name not in sets, f"{key} names the data set '{name}', which is not in datasets ({', '.join(sets)}).")
    for key, name in [
        ("student", config["student"]),
        ("krr_st.student", config["krr_st"]["student"]),  # its rule has it as a parameter, used or not
        *((f"pretrain.students.{i}", name) for i, name in enumerate(config["pretrain"]["students"])),
    ]:
        fail_if(name not in students, f"{key} names '{name}', which is not in students ({', '.join(students)}).")


def _check_names(config: Config) -> None:
    """Names of folders are free, and none is like ``no`` and ``0x1F``, which are something else wherever quotes are forgotten."""
    experiment = {"experiment": config["experiment"]}
    sets = {f"datasets.{name}": name for name in config["datasets"]}
    students = {f"students.{name}": name for name in config["students"]}
    fail_if(
        config["experiment"] in config["datasets"],
        f"experiment '{config['experiment']}' bears the name of a data set; results need different folders, rename it.",
    )
    for name in (config["experiment"], *plan.used_datasets(config)):
        fail_if(name in RESERVED, f"the name '{name}' is taken by a folder of results/, choose another one.")
    for key, name in (experiment | sets | {"teacher.name": config["teacher"]["name"]} | students).items():
        fail_if(
            NO_NAME.fullmatch(name) is not None,
            f"{key}: '{name}' is read as a truth value, a number or null wherever its quotes are forgotten: choose another name.",
        )


def _check_networks(config: Config) -> None:
    """Every network that is built has the keys it needs and takes the source's images."""
    students, size = config["students"], sizes.image_shape(config, config["source"])[1]
    _check_arguments(f"students.{config['krr_st']['student']}", students[config["krr_st"]["student"]])
    if teacher_origin(config) == "trained":
        _check_network("teacher.backbone", config["teacher"]["backbone"], size)
    for name in sorted(plan.used_students(config)):
        _check_network(f"students.{name}", students[name], size)
    distilling = students[config["student"]]
    fail_if(
        has_running_statistics(distilling),
        f"students.{config['student']} has running statistics, which trajectories cannot hold: the distilling "
        "student must be a convnet with norm instance, group or none.",
    )


def _check_budgets(config: Config) -> None:
    """Budgets are numbers of images that the source has, and no two are the same number for a method."""
    seen: dict[tuple[str, int], str] = {}
    source, total = config["source"], sizes.train_images(config, config["source"])
    for budget in config["budgets"]:
        shown = budget if isinstance(budget, str) else f"{budget:.12g}"
        _check_budget(config, budget, shown)
        # Without a method that makes sets, the budgets only name rows of tables.
        counts = budgets.budget_counts(config, budget) or {"": budgets.budget_count(config, budget, "random")}
        for method, count in counts.items():
            fail_if(
                count < 1,
                f"budgets: {shown} of source '{source}' is less than one image{_least(config, budget, method)}.",
            )
            fail_if(
                count < 2 and method in methods_that(section="mtt_ssl"),
                f"budgets: {shown} of source '{source}' is one image, but '{method}' needs two: SSL compares images.",
            )
            fail_if(count > total, f"budgets: {shown} asks for {count:.12g} images, source '{source}' has {total}.")
            fail_if(
                (method, count) in seen,
                f"budgets: {seen.get((method, count), '')} and {shown} are the same size, {count} images of source "
                f"'{source}': leave one out.",
            )
            seen[method, count] = shown


def _least(config: Config, budget: float | str, method: str) -> str:
    """Say how many bytes a set of one image needs, for a budget in bytes."""
    if not isinstance(budget, str):
        return ""
    return f" of '{method or 'random'}', whose smallest set takes {budgets.set_bytes(config, 1, method or 'random'):,} bytes"


def _check_budget(config: Config, budget: float | str, shown: str) -> None:
    """A number is a fraction or whole; bytes can be counted before the targets are made."""
    if not isinstance(budget, str):
        whole = budget < 1 or budget == int(budget)
        fail_if(not whole, f"budgets: {shown} is neither a fraction below 1 nor a whole number.")
        return
    fail_if(
        teacher_origin(config) != "trained" and config["targets"]["space"]["components"] is None,
        f"budgets: {shown} needs the length of the targets, which is not known yet of a teacher that is brought: set "
        "targets.space.components, or give a number of images.",
    )


def _check_views(config: Config) -> None:
    """Views exist, fit the source's images, start with the image itself, and find the teacher that encodes them."""
    try:
        names = views.expand(config["views"])
        views.check(names, *sizes.image_shape(config, config["source"]))
    except UserError as error:
        raise UserError(f"config: views: {error}") from error
    fail_if(
        views.has_views(names) and teacher_origin(config) == "file",
        "views need the teacher, which encodes them, but targets.file brings representations only: set views to "
        "[identity].",
    )


def _check_training(config: Config) -> None:
    """Experts reach the epochs that are matched; the teacher's views, warm-up and processes fit together."""
    distill, teacher, trained = config["distill"], config["teacher"], teacher_origin(config) == "trained"
    needed, epochs = distill["start_epochs"] - 1 + distill["match_epochs"], config["experts"]["epochs"]
    fail_if(
        any(method in METHODS and METHODS[method].matches for method in config["methods"]) and epochs < needed,
        f"experts.epochs is {epochs}, but distill.start_epochs {distill['start_epochs']} and "
        f"distill.match_epochs {distill['match_epochs']} need {needed}.",
    )
    _check_unrolling(config)
    crop = teacher["augment"]["crop_scale"]
    fail_if(crop[0] > crop[1], f"teacher.augment.crop_scale must ascend, got {crop}.")
    fail_if(
        trained and teacher["warmup_epochs"] >= teacher["epochs"],
        f"teacher.warmup_epochs ({teacher['warmup_epochs']}) must be less than teacher.epochs ({teacher['epochs']}).",
    )
    shared = min(teacher["batch"], sizes.train_images(config, config["source"]))
    fail_if(
        trained and shared % teacher["devices"] != 0,
        f"teacher.devices is {teacher['devices']}, which does not divide teacher.batch "
        f"({shared}{' images, all there are' if shared < teacher['batch'] else ''}): change one of them.",
    )


def _check_unrolling(config: Config) -> None:
    """The steps of `bptt` and the components of the target space are there."""
    bptt = config["bptt"]
    window, steps = bptt["window"], bptt["steps"]
    fail_if(window is not None and window > steps, f"bptt.window is {window}, more than bptt.steps ({steps}).")
    fail_if(
        window is not None and bool(bptt["losses_at"]),
        f"bptt.losses_at is {bptt['losses_at']}, which does not go with bptt.window: set one of them to [] or null.",
    )
    fail_if(
        bptt["curriculum"] and window is None,
        "bptt.curriculum lets the number of steps grow from bptt.window, which is null: give bptt.window, or set "
        "bptt.curriculum to false.",
    )
    late = [step for step in bptt["losses_at"] if step >= steps]
    fail_if(bool(late), f"bptt.losses_at has {late}, but bptt.steps is {steps}: name fewer steps.")
    if teacher_origin(config) == "trained":
        known = network_sizes.teacher_size(config).features
        check_components(config, known, "the teacher's representation has")


def _check_last_batches(config: Config) -> None:
    """No batch of one image reaches a batch norm, which takes no statistics from it."""
    batch, lonely = config["pretrain"]["batch"], budgets.lonely_rows(config)
    for name in config["pretrain"]["students"]:
        fail_if(
            has_running_statistics(config["students"][name]) and bool(lonely),
            f"pretrain.batch {batch} leaves a last batch of one image of a set of {', '.join(map(str, lonely))}, from which "
            f"the batch norm of students.{name} takes no statistics: change pretrain.batch or budgets.",
        )


def _check_methods(config: Config) -> None:
    """Methods exist, start from a subset that exists, and find the teacher that they need."""
    subsets = methods_that(stage="subset")
    for section in ("distill", "bptt", "krr_st"):
        key, init = f"{section}.init", cast(str, cast(Mapping[str, Any], config)[section]["init"])
        fail_if(init not in subsets, f"{key} is '{init}'{_near(init, subsets)}; known are {', '.join(subsets)}.")
    made_by: dict[tuple[str, str], str] = {}
    for i, method in enumerate(config["methods"]):
        fail_if(
            method not in METHODS and not method.startswith("file:"),
            f"methods.{i} is '{method}'{_near(method, METHODS)}; known are {', '.join(METHODS)} and file:PATH.",
        )
        made = [method] if method in METHODS else []
        if made and METHODS[method].distilled:
            initial = plan.initial_method(config, method)
            made.append(initial)
            twin = made_by.setdefault((METHODS[method].function, initial), method)
            fail_if(
                twin != method,
                f"methods: '{twin}' and '{method}' make the same sets, as both start from {initial} images: leave one out.",
            )
        needing = "".join([name for name in made if METHODS[name].teacher][:1])
        purpose = f" to choose the {needing} subset" if needing != method else ""
        fail_if(
            teacher_origin(config) == "file" and bool(needing),
            f"methods: '{method}' needs the teacher itself{purpose}, but targets.file brings representations only: "
            "leave it out.",
        )


def _check_evaluation(config: Config) -> None:
    """Draws, neighbours and the grid of pre-training fit together."""
    probe, pretrain = config["probe"], config["pretrain"]
    fail_if(
        probe["selection_draws"] > probe["label_draws"],
        f"probe.selection_draws is {probe['selection_draws']}, more than probe.label_draws ({probe['label_draws']}).",
    )
    for name in plan.scored_datasets(config):
        fewest = round(min(probe["label_fractions"]) * sizes.train_images(config, name))
        fail_if(
            probe["knn"] is not None and probe["knn"] > fewest,
            f"probe.knn is {probe['knn']}, more than the {fewest} labels of '{name}' that probe.label_fractions leaves.",
        )
    fail_if(pretrain["steps"] != sorted(pretrain["steps"]), f"pretrain.steps must ascend, got {pretrain['steps']}.")
    fail_if(pretrain["rates"] != sorted(pretrain["rates"]), f"pretrain.rates must ascend, got {pretrain['rates']}.")


def _check_brought_sets(config: Config) -> None:
    """Sets from files have the form of sets of such images, and no two share a name; `set_checks.check_values` reads them."""
    slugs: dict[str, str] = {}
    for i, method in enumerate(config["methods"]):
        if method.startswith("file:"):
            key, path, slug = f"methods.{i}", Path(method.removeprefix("file:")), plan.method_name(method)
            _check_path(key, path)
            fail_if(
                len(slug) > LONGEST_NAME,
                f"{key}: the name of {path.name[:20]}... has more than {LONGEST_NAME} characters.",
            )
            check_set(config, key, path)
            fail_if(
                slug in slugs,
                f"methods: {method} and {slugs.get(slug)} would share the name '{slug}', rename one file.",
            )
            slugs[slug] = method


def _check_options(config: Config) -> None:
    """Options of methods of one's own: each declared, and of the type of its default."""
    having = [name for name, method in METHODS.items() if method.options]
    for name, given in config["options"].items():
        fail_if(
            name not in having,
            f"options.{name}: no method of this name declares options (CONTRIBUTING.md), known are {', '.join(having) or 'none'}.",
        )
        defaults = METHODS[name].options
        for key, value in given.items():
            fail_if(
                key not in defaults,
                f"unknown key 'options.{name}.{key}'{_near(key, defaults)}; known here are {', '.join(defaults)}.",
            )
            kind = type(defaults[key])
            fail_if(type(value) is not kind, f"options.{name}.{key} must be of type {kind.__name__}, got {value!r}.")
    for name in {*config["methods"], *config["options"]} & METHODS.keys():
        options = plan.own_options(config, name)
        for key, value in options.items():
            fail_if(
                isinstance(value, int | float) and not abs(value) <= LARGEST,
                f"options.{name}.{key} must be finite and at most {LARGEST:g} in size, got {str(value)[:30]}.",
            )
        for key in ("iterations", "pictures") if METHODS[name].distilled and METHODS[name].options else ():
            fail_if(
                type(options[key]) is not int or options[key] < 1,
                f"options.{name}.{key} must be a whole number from 1 on, got {options[key]!r}.",
            )


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean '{found[0]}'?" if found else ""


def _check_path(key: str, path: Path) -> None:
    """A file that is an input of a rule."""
    fail_if(not path.is_file(), f"{key}: {path} does not exist, or is no file.")
    fail_if(
        not {"{", "}"}.isdisjoint(str(path)), f"{key}: {path} has braces in it, which Snakemake reads as wildcards."
    )


def _check_origin(config: Config) -> None:
    """The files of a teacher or of targets that the user brings."""
    checkpoint, targets = config["teacher"]["checkpoint"], config["targets"]["file"]
    given = teacher_origin(config)
    fail_if(
        targets is not None and (checkpoint["file"] is not None or checkpoint["model"] is not None),
        "targets.file and teacher.checkpoint are both given: one of them makes the targets, set the other to null.",
    )
    for key, path, artifact in (
        ("targets.file", targets, "targets"),
        ("teacher.checkpoint.file", checkpoint["file"], "teacher"),
    ):
        if path is not None:
            _check_path(key, Path(path))
            made_by = _stage_of(Path(path))
            fail_if(
                made_by not in ("", artifact),
                f"{key}: {path} was made by the rule '{made_by}', it is no file of {artifact}: give another path.",
            )
    unused = [key for key, value in checkpoint.items() if value is not None and key not in {"file", "model"}]
    fail_if(
        given != "checkpoint" and bool(unused),
        f"teacher.checkpoint.{''.join(unused[:1])} is set, but there is no checkpoint: give teacher.checkpoint.file.",
    )
    for key, values in (("mean", checkpoint["mean"]), ("std", checkpoint["std"])):
        fail_if(
            any(abs(value) > 1 for value in values or []),
            f"teacher.checkpoint.{key} is {values}, but it is of pixels in [0, 1]: divide what is of 0 to 255 by 255.",
        )
    fail_if(
        checkpoint["sha256"] is not None and checkpoint["file"] is None,
        "teacher.checkpoint.sha256 is the digest of teacher.checkpoint.file, which is null.",
    )


def _stage_of(path: Path) -> str:
    """Return the stage that wrote a file, by its header; empty if it is no file of this project."""
    try:
        with safe_open(path, "np") as file:
            return str(json.loads((file.metadata() or {})[HEADER_KEY])["stage"])
    except Exception:  # whatever the reader of an arbitrary file says
        return ""


def _check_arguments(key: str, spec: Backbone) -> None:
    for argument in ARCHITECTURES[spec["architecture"]]:
        fail_if(argument not in spec, f"{key} is a {spec['architecture']} and needs the key '{argument}'.")


def _check_network(key: str, spec: Backbone, size: int) -> None:
    _check_arguments(key, spec)
    if spec["architecture"] == "convnet":
        spec = cast(Network, spec)
        fail_if(
            spec["norm"] == "group" and spec["width"] > 32 and spec["width"] % 32 != 0,
            f"{key}.width is {spec['width']}, which norm 'group' cannot cut into 32 groups.",
        )
        fail_if(
            spec["depth"] >= size.bit_length(),
            f"{key}.depth is {spec['depth']}, but images of {size}x{size} can be halved only {size.bit_length() - 1} times.",
        )
    smallest = 2 ** POOLS.get(spec["architecture"], 0)
    fail_if(
        size < smallest,
        f"{key} is a {spec['architecture']}, which needs images of at least {smallest}x{smallest}, but the source's are "
        f"{size}x{size}: take another student, or a larger image_size.",
    )
