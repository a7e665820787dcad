"""Types of the config, section by section, so that a type checker finds a misspelt key.

workflow/schemas/config.schema.yaml says what each key means; a test holds the two together.
"""

from typing import Any, NotRequired, TypedDict

Names = dict[str, str]  # what a path says of an artifact: dataset, method, budget, distill_seed, student, seed, expert
Settings = dict[str, Any]  # the slice of the config that a stage is given


class Data(TypedDict):
    """`data`."""

    root: str
    download: bool
    on_error: str


class DatasetEntry(TypedDict):
    """`datasets.NAME`."""

    kind: str
    path: NotRequired[str | None]
    channels: NotRequired[int | None]
    labelled: NotRequired[bool | None]
    train: float | None
    validation: float | None
    test: float | None
    image_size: int | None
    limit: NotRequired[int | None]


class Backbone(TypedDict):
    """`teacher.backbone`."""

    architecture: str
    width: NotRequired[int]
    blocks: NotRequired[list[int]]


class Network(Backbone):
    """`students.NAME`."""

    depth: NotRequired[int]
    norm: NotRequired[str]


class Augment(TypedDict):
    """`teacher.augment`."""

    crop_scale: list[float]
    flip: bool
    rotate: float
    shift: float
    jitter: float
    grayscale: float
    blur: float
    noise: float


class TeacherCheckpoint(TypedDict):
    """`teacher.checkpoint`."""

    file: str | None
    model: str | None
    sha256: str | None
    image_size: int | None
    mean: list[float] | None
    std: list[float] | None
    padding: int | None


class Teacher(TypedDict):
    """`teacher`."""

    name: str
    method: str
    backbone: Backbone
    projector: list[int]
    off_diagonal: float
    temperature: float
    invariance: float
    variance: float
    covariance: float
    optimizer: str
    lr: float
    weight_decay: float
    batch: int
    epochs: int
    warmup_epochs: int
    monitor_every: int
    devices: int
    augment: Augment
    checkpoint: TeacherCheckpoint


class TargetSpace(TypedDict):
    """`targets.space`."""

    center: bool
    components: int | None
    scale: float | str


class Targets(TypedDict):
    """`targets`."""

    file: str | None
    space: TargetSpace


class Experts(TypedDict):
    """`experts`."""

    count: int
    per_job: int
    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float


class Storage(TypedDict):
    """`storage`."""

    pixels: str
    targets: str


class Sas(TypedDict):
    """`sas`."""

    classes: int
    views: int


class StepSize(TypedDict):
    """`distill.step_size`."""

    initial: float
    lr: float
    space: str


class LearnedSet(TypedDict):
    """What `distill` and `bptt` share: a set that is learned by hypergradients of a student's steps."""

    init: str
    iterations: int
    steps: int
    curriculum: bool
    batch: int
    momentum: float
    image_optimizer: str
    image_lr: float
    learn_targets: bool
    target_optimizer: str
    step_size: StepSize
    schedule: str
    average: float
    retain: int | str
    compile: bool
    pictures: int


class Distill(LearnedSet):
    """`distill`."""

    match_epochs: int
    start_epochs: int
    target_lr: float | str


class Bptt(LearnedSet):
    """`bptt`."""

    window: int | None
    losses_at: list[int]
    outer_batch: int
    target_lr: float


class KrrSt(TypedDict):
    """`krr_st`."""

    init: str
    student: str
    iterations: int
    batch: int
    students: int
    student_steps: int
    student_lr: float
    student_weight_decay: float
    lr: float
    weight_decay: float
    pictures: int


class MttSsl(TypedDict):
    """`mtt_ssl`."""

    projector: list[int]
    expert_batch: int
    expert_lr: float
    image_lr: float
    step_size: float


class Pretrain(TypedDict):
    """`pretrain`."""

    protocol: str
    students: list[str]
    seeds: list[int]
    rates: list[float]
    steps: list[int]
    epochs: int
    batch: int
    momentum: float
    weight_decay: float


class Finetune(TypedDict):
    """`probe.finetune`."""

    rates: list[float]
    steps: int
    batch: int
    weight_decay: float


class Probe(TypedDict):
    """`probe`."""

    selection: str
    downstream: list[str]
    label_fractions: list[float]
    label_draws: int
    selection_draws: int
    l2: float
    knn: int | None
    finetune: Finetune | None


class Compute(TypedDict):
    """`compute`."""

    device: str
    jobs_per_gpu: int
    threads: int
    precision: str
    resume_minutes: float


class Tracking(TypedDict):
    """`tracking`."""

    enabled: bool
    uri: str | None


class Config(TypedDict):
    """The whole config."""

    experiment: str
    scale: str
    seed: int
    data: Data
    datasets: dict[str, DatasetEntry]
    source: str
    teacher: Teacher
    targets: Targets
    students: dict[str, Network]
    student: str
    experts: Experts
    budgets: list[float | str]
    views: list[str]
    storage: Storage
    methods: list[str]
    distill_seeds: list[int]
    sas: Sas
    distill: Distill
    bptt: Bptt
    krr_st: KrrSt
    mtt_ssl: MttSsl
    options: dict[str, dict[str, Any]]
    pretrain: Pretrain
    probe: Probe
    compute: Compute
    tracking: Tracking
