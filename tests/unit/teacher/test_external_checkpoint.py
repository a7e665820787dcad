"""Imported teachers: random weights in each published format, and files with each kind of fault."""

import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from mkdt import artifacts
from mkdt.config.catalogue import DATASETS
from mkdt.errors import UserError
from mkdt.networks.backbones import build_backbone
from mkdt.networks.flat import flatten_state
from mkdt.teacher.checkpoint_formats import STATISTICS, TeacherCheckpoint
from mkdt.teacher.encoding import load_teacher, represent
from mkdt.teacher.external_checkpoint import caution, load_checkpoint, load_weights, summary
from mkdt.teacher.external_file import sha256

OPTIONS: dict[str, Any] = dict.fromkeys(("model", "sha256", "image_size", "mean", "std", "padding"))
Weights = dict[str, Tensor]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set random weights and running statistics, and eval mode."""
    stream = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.copy_(0.5 + torch.rand(value.shape, generator=stream))
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=stream) / max(1, value[0].numel()) ** 0.5)
    return model.eval()


def small_resnet(padding: int, make: Callable[..., nn.Module] = resnet18, *, max_pool: bool = False) -> nn.Module:
    """Build torchvision's ResNet with the first convolution that papers use for small images."""
    model = make()
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=padding, bias=False)
    if not max_pool:
        model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return randomised(model)


class MixBT(nn.Module):
    """The module saved by mix-bt: a Sequential of the children of the ResNet, and a projection head."""

    def __init__(self, resnet: nn.Module, *, tiny_imagenet: bool) -> None:
        super().__init__()
        left_out = (nn.Linear, nn.Identity) if tiny_imagenet else (nn.Linear, nn.Identity, nn.MaxPool2d)
        self.f = nn.Sequential(*(child for _, child in resnet.named_children() if not isinstance(child, left_out)))
        self.g = nn.Sequential(
            nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128, bias=True)
        )


def projector() -> nn.Module:
    """Build the Barlow Twins head of solo-learn with fewer units."""
    return nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


def lightning(weights: Weights) -> dict[str, Any]:
    """Put a state dict into the content of a PyTorch Lightning file."""
    return {
        "epoch": 999, "global_step": 195_000, "pytorch-lightning_version": "1.5.8", "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {}, "optimizer_states": [{"state": {}}],
        "lr_schedulers": [{"last_epoch": 999}],
    }  # fmt: skip


def prefixed(prefix: str, model: nn.Module) -> Weights:
    """Return a state dict with a prefix before each key."""
    return {prefix + key: value for key, value in model.state_dict().items()}


def written(folder: Path, content: Any, name: str = "weights.pt") -> Path:
    """Write ``content`` as a PyTorch file."""
    torch.save(content, folder / name)
    return folder / name


def load(path: Path | None, channels: int = 3, size: int = 32, kind: str = "", **options: Any) -> TeacherCheckpoint:
    """Load a checkpoint as the rule teacher_import does."""
    return load_checkpoint(path, OPTIONS | options, channels, size, kind)


def features(checkpoint: TeacherCheckpoint, images: Tensor, folder: Path, mean: Tensor, std: Tensor) -> Tensor:
    """Write and read ``teacher.safetensors``, then encode images as the rule targets does."""
    path = folder / "teacher.safetensors"
    parameters = {"backbone": checkpoint.backbone, "view": checkpoint.view}
    artifacts.save(path, checkpoint.weights, stage="teacher", parameters=parameters)
    teacher = artifacts.Artifact(path, "teacher")
    backbone, mean, std = load_teacher(teacher, images.shape[1], images.shape[2], mean, std)
    return represent(backbone, images, mean, std, torch.device("cpu"))


def pixels(channels: int = 3, size: int = 32) -> Tensor:
    """Return four random images uint8."""
    stream = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8, generator=stream)


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
KRR_ST = small_resnet(2)

SMALL: dict[str, tuple[Callable[[], Any], str, nn.Module]] = {
    "KRR-ST": (lambda: KRR_ST.state_dict(), "krr_st", KRR_ST),
    "solo-learn": (
        lambda: lightning(
            prefixed("backbone.", KRR_ST)
            | prefixed("projector.", projector())
            | prefixed("classifier.", nn.Linear(512, 10))
        ),
        "solo_learn",
        KRR_ST,
    ),
    "solo-learn before 1.0.3": (
        lambda: lightning(prefixed("encoder.", KRR_ST) | prefixed("classifier.", nn.Linear(512, 100))),
        "solo_learn",
        KRR_ST,
    ),
    "mix-bt, CIFAR": (
        lambda: MixBT(small_resnet(1), tiny_imagenet=False).state_dict(),
        "mix_bt",
        small_resnet(1),
    ),
    "mix-bt, TinyImageNet": (
        lambda: MixBT(small_resnet(1, max_pool=True), tiny_imagenet=True).state_dict(),
        "mix_bt",
        small_resnet(1, max_pool=True),
    ),
    "mix-bt, ResNet-50": (
        lambda: {k: v for k, v in MixBT(small_resnet(1, resnet50), tiny_imagenet=False).state_dict().items() if k[0] == "f"},
        "mix_bt",
        small_resnet(1, resnet50),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_published_format_gives_the_features_of_its_own_code(name: str, tmp_path: Path) -> None:
    """A wrong padding or max-pool would load without an error and give other features."""
    content, name_of_format, model = SMALL[name]
    found = load(written(tmp_path, content()))
    assert found.format == name_of_format
    images = pixels()
    wanted = model((images.float() / 255 - MEAN[:, None, None]) / STD[:, None, None])
    torch.testing.assert_close(features(found, images, tmp_path, MEAN, STD), wanted, rtol=1e-4, atol=1e-4)
    assert not {key.split(".")[0] for key in found.left_out} - {"projector", "classifier", "g"}


def test_the_config_overrides_the_padding(tmp_path: Path) -> None:
    """Code other than KRR-ST may use the same names with another padding."""
    path = written(tmp_path, KRR_ST.state_dict())
    plain = small_resnet(1)
    plain.load_state_dict(KRR_ST.state_dict())
    images, zero, one = pixels(), torch.zeros(3), torch.ones(3)
    given = features(load(path, padding=1), images, tmp_path, zero, one)
    torch.testing.assert_close(given, plain(images.float() / 255), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(given, KRR_ST(images.float() / 255), rtol=1e-2)
    with pytest.raises(UserError, match=r"teacher\.checkpoint\.padding"):
        load(written(tmp_path, resnet18().state_dict()), padding=1)


@pytest.mark.parametrize(("make", "with_classifier"), [(resnet18, True), (resnet50, False)])
def test_torchvision_gets_large_normalised_images(
    make: Callable[..., nn.Module], with_classifier: bool, tmp_path: Path
) -> None:
    """Small images are enlarged to the size of the training and normalised with the statistics of ImageNet."""
    model = randomised(make())
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in model.state_dict().items() if with_classifier or not k.startswith("fc.")}, path)
    found = load(path)
    assert found.format == "torchvision"
    assert found.left_out == (["fc.bias", "fc.weight"] if with_classifier else [])
    images = pixels()[:2]
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    large = nn.functional.interpolate(images.float() / 255, (224, 224), mode="bilinear")
    model.fc = nn.Identity()
    with torch.no_grad():
        wanted = model((large - mean) / std)
    torch.testing.assert_close(features(found, images, tmp_path, MEAN, STD), wanted, rtol=1e-3, atol=1e-3)


def test_the_config_can_set_input_size_and_statistics(tmp_path: Path) -> None:
    """A checkpoint does not store the statistics and size that it was trained with."""
    path = written(tmp_path, KRR_ST.state_dict())
    found = load(path, size=16, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0], image_size=32)
    images = pixels(size=16)
    large = nn.functional.interpolate(images.float() / 255, (32, 32), mode="bilinear")
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    with torch.no_grad():
        wanted = KRR_ST((large - mean) / std)
    torch.testing.assert_close(features(found, images, tmp_path, MEAN, STD), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"teacher\.checkpoint\.mean has 1 values"):
        load(path, mean=[0.5])


PUBLISHED = {
    ("KRR-ST", "cifar10"): ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    ("solo-learn", "cifar100"): ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ("solo-learn before 1.0.3", "stl10"): ([0.4914, 0.4823, 0.4466], [0.247, 0.243, 0.261]),
    ("mix-bt, CIFAR", "cifar10"): ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    ("mix-bt, CIFAR", "cifar100"): ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    ("mix-bt, TinyImageNet", "tiny_imagenet"): ([0.480, 0.448, 0.398], [0.277, 0.269, 0.282]),
}


@pytest.mark.parametrize(("name", "kind"), PUBLISHED)
def test_a_published_format_sees_images_normalised_as_in_its_own_code(name: str, kind: str, tmp_path: Path) -> None:
    """These are not the statistics of the source's pixels: mix-bt's deviations of CIFAR are a fifth smaller."""
    content, name_of_format, model = SMALL[name]
    found = load(written(tmp_path, content()), kind=kind)
    mean, std = (torch.tensor(values)[:, None, None] for values in PUBLISHED[name, kind])
    images = pixels()
    wanted = model((images.float() / 255 - mean) / std)
    torch.testing.assert_close(features(found, images, tmp_path, MEAN, STD), wanted, rtol=1e-4, atol=1e-4)
    assert name_of_format in found.statistics
    assert kind in found.statistics
    assert found.statistics in summary(found)
    assert not caution(found)


def test_the_log_says_whose_statistics_are_taken(tmp_path: Path) -> None:
    """Of an unknown source the source's own, with a warning; a key of the config comes before all."""
    path = written(tmp_path, KRR_ST.state_dict())
    for kind in ("", "digits", "folder"):
        unknown = load(path, kind=kind)
        assert unknown.view["mean"] is unknown.view["std"] is None
        assert "the source's" in summary(unknown)
        assert "teacher.checkpoint.mean" in caution(unknown)
    both = load(path, kind="cifar10", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    assert both.view["std"] == [0.25, 0.25, 0.25]
    assert "teacher.checkpoint.mean and teacher.checkpoint.std" in summary(both)
    assert "krr_st" not in both.statistics
    one = load(path, kind="cifar10", std=[0.25, 0.25, 0.25])
    assert one.view["mean"] == [0.4914, 0.4822, 0.4465]
    assert "teacher.checkpoint.std, otherwise those of krr_st for cifar10" in summary(one)
    assert not caution(one)
    assert caution(load(path, std=[0.25, 0.25, 0.25]))
    large = load(written(tmp_path, resnet18().state_dict()), kind="cifar10")
    assert large.view["mean"] == [0.485, 0.456, 0.406]
    assert "ImageNet's" in summary(large)
    grey = small_resnet(2)
    grey.conv1 = nn.Conv2d(1, 64, 3, padding=2, bias=False)
    assert load(written(tmp_path, grey.state_dict()), channels=1, kind="cifar10").view["mean"] is None


def test_published_statistics_are_three_positive_numbers_of_known_sets() -> None:
    """A number that slipped would be in every target."""
    assert STATISTICS.keys() == {"krr_st", "solo_learn", "mix_bt"}
    for of_format in STATISTICS.values():
        for kind, (mean, std) in of_format.items():
            assert kind in DATASETS
            assert all(0.38 < value < 0.52 for value in mean)
            assert all(0.19 < value < 0.29 for value in std)


def test_a_teacher_of_this_project_keeps_the_statistics_it_was_trained_with(tmp_path: Path) -> None:
    """Its header has them, so that another source's do not replace them."""
    spec = {"architecture": "resnet", "blocks": [1, 1], "width": 4}
    model = randomised(build_backbone(spec, 1, 8))
    path = tmp_path / "own.safetensors"
    about = {"backbone": spec, "view": {"mean": [0.4], "std": [0.2]}}
    artifacts.save(path, model.state_dict(), stage="teacher", parameters=about)
    found = load(path, channels=1, size=8)
    assert not caution(found)
    assert "header" in summary(found)
    images, others = pixels(1, 8), torch.tensor([0.9])
    wanted = model((images.float() / 255 - 0.4) / 0.2)
    torch.testing.assert_close(features(found, images, tmp_path, others, others), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_statistics", [True, False])
def test_grey_images_are_repeated_for_a_teacher_of_colour_images(tmp_path: Path, own_statistics: bool) -> None:
    """A teacher trained on CIFAR can encode MNIST."""
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]} if own_statistics else {}
    found = load(written(tmp_path, KRR_ST.state_dict()), channels=1, **given)
    images = pixels(channels=1)
    mean, std = (MEAN, STD) if own_statistics else (torch.tensor([0.6]), torch.tensor([0.5]))
    seen = (images.float().expand(-1, 3, -1, -1) / 255 - mean[:, None, None]) / std[:, None, None]
    result = features(found, images, tmp_path, torch.tensor([0.6]), torch.tensor([0.5]))
    torch.testing.assert_close(result, KRR_ST(seen), rtol=1e-4, atol=1e-4)


def own_file(folder: Path, channels: int = 1) -> tuple[Path, nn.Module]:
    """Write a ``teacher.safetensors`` as the rule teacher does."""
    spec = {"architecture": "resnet", "blocks": [1, 1], "width": 4}
    model = randomised(build_backbone(spec, channels, 8))
    path = folder / "own.safetensors"
    artifacts.save(path, model.state_dict(), stage="teacher", parameters={"seed": 0, "backbone": spec})
    return path, model


def test_a_teacher_of_this_project_can_be_imported(tmp_path: Path) -> None:
    """A teacher that was imported can be imported again; a teacher of grey images does not take colour."""
    path, model = own_file(tmp_path)
    found = load(path, channels=1, size=8)
    assert found.format == "mkdt"
    images, mean, std = pixels(1, 8), torch.tensor([0.4]), torch.tensor([0.2])
    wanted = model((images.float() / 255 - 0.4) / 0.2)
    torch.testing.assert_close(features(found, images, tmp_path, mean, std), wanted, rtol=1e-4, atol=1e-5)
    again = load(tmp_path / "teacher.safetensors", channels=1, size=8)
    assert (again.backbone, again.view) == (found.backbone, found.view)
    with pytest.raises(UserError, match="takes images of 1 channels, the source's have 3"):
        load(path, channels=3, size=8)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    """Integer tensors keep their type."""
    weights = {key: value.half() if value.is_floating_point() else value for key, value in KRR_ST.state_dict().items()}
    found = load(written(tmp_path, weights))
    assert {value.dtype for value in found.weights.values()} == {torch.float32, torch.int64}


def test_buffers_of_a_profiler_in_mix_bt_files_are_ignored(tmp_path: Path) -> None:
    """mix-bt counts operations with thop; some versions leave their counters in the modules."""
    weights = MixBT(small_resnet(1), tiny_imagenet=False).state_dict()
    weights |= {"total_ops": torch.zeros(1), "f.0.total_ops": torch.zeros(1), "f.0.total_params": torch.zeros(1)}
    assert load(written(tmp_path, weights)).format == "mix_bt"


def test_the_log_names_the_format_the_assumed_padding_and_the_tensors_left_out(tmp_path: Path) -> None:
    """The padding is not in the file, so the log shows it."""
    line = summary(load(written(tmp_path, SMALL["solo-learn"][0]())))
    assert all(word in line for word in ("solo_learn", '"padding": 2', "left out: classifier.bias"))


WRONG: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "a key is missing": (lambda w: {k: v for k, v in w.items() if k != "layer2.0.bn1.weight"}, ["lacks layer2.0.bn1.weight"]),
    "a counter is missing": (lambda w: {k: v for k, v in w.items() if k != "bn1.num_batches_tracked"}, ["lacks bn1.num_b"]),
    "a block is missing": (lambda w: {k: v for k, v in w.items() if "layer3.1." not in k}, ["[2, 2, 1, 2]", "resnet18"]),
    "a key is left over": (lambda w: w | {"layer2.0.extra": torch.zeros(2)}, ["has layer2.0.extra left over"]),
    "another shape": (lambda w: w | {"bn1.weight": torch.zeros(5)}, ["bn1.weight of shape [5] instead of [64]"]),
    "not finite": (lambda w: w | {"bn1.weight": torch.full((64,), torch.nan)}, ["not finite in bn1.weight"]),
    "another network": (lambda w: {"blocks.0.attn.qkv.weight": torch.zeros(2)}, ["no known format", "blocks.0.attn.qkv.weight"]),
    "another stem": (lambda w: w | {"conv1.weight": torch.zeros(64, 3, 5, 5)}, ["no known format"]),
    "the stem is missing": (lambda w: {k: v for k, v in w.items() if k != "conv1.weight"}, ["lacks conv1.weight"]),
    "the first block lacks one": (
        lambda w: {k: v for k, v in w.items() if k != "layer1.0.conv1.weight"}, ["lacks layer1.0.conv1.weight"],
    ),
    "the stem of mix-bt is missing": (
        lambda w: {k: v for k, v in prefixed("f.", nn.Sequential(*KRR_ST.children())).items() if k != "f.0.weight"},
        ["lacks conv1.weight"],
    ),
    "a bottleneck lacks one": (
        lambda w: {k: v for k, v in resnet50().state_dict().items() if k != "layer1.0.conv3.weight"},
        ["lacks layer1.0.conv3.weight"],
    ),
    "nothing": (lambda w: {}, ["has no tensors"]),
    "nothing in a state dict": (lambda w: {"state_dict": {}}, ["has no tensors"]),
    "no state dict": (lambda w: {"model": w}, ["not a state dict"]),
    "a list": (lambda w: [1, 2], ["not a state dict"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    """The message is one sentence with the file and the first keys at fault."""
    change, words = WRONG[case]
    path = written(tmp_path, change(dict(KRR_ST.state_dict())))
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"teacher.checkpoint.file: {path}")
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    """The message names both digests and the key."""
    path = written(tmp_path, KRR_ST.state_dict())
    assert load(path, sha256=sha256(path)).identity == sha256(path)
    with pytest.raises(UserError, match=r"SHA-256 [0-9a-f]{64}, but teacher\.checkpoint\.sha256 is 0{64}"):
        load(path, sha256="0" * 64)


class Trap:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    """Only tensors and plain values are unpickled."""
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pt"
    content = {"state_dict": KRR_ST.state_dict(), "hyper_parameters": Trap(sprung)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="holds more than tensors") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not sprung.exists()


def test_a_whole_model_is_named_without_the_colours_and_the_advice_of_torch(tmp_path: Path) -> None:
    """The advice would be to load what may run code."""
    with pytest.raises(UserError) as caught:
        load(written(tmp_path, resnet18()))
    message = str(caught.value)
    assert "torchvision.models.resnet.ResNet" in message
    assert "weights.pt" in message
    assert "\x1b" not in message
    assert "\x1b" not in str(UserError("a \x1b[1mbold\x1b[0m word"))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("length", [0, 100, 100_000])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, length: int) -> None:
    """A download may be interrupted."""
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pt" else save_file)(KRR_ST.state_dict(), path)  # type: ignore[operator]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"cannot be read.*damaged"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ck.txt", b"epoch 3", "is no PyTorch or safetensors file"),
        ("ck.pt", b"<html>not found</html>", "is no PyTorch or safetensors file"),
        ("ck.safetensors", b"version https://git-lfs.github.com/spec/v1", "is no PyTorch or safetensors file"),
        ("ck.pt", b"\x02" + bytes(7) + b"{}", "is a safetensors file, so its name must end in .safetensors"),
        ("ck.safetensors", b"PK\x03\x04 and so on", "is a PyTorch file, so its name must end in .pt"),
    ],
)
def test_a_file_of_another_format_is_called_so(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """Without the number that a pickle reader stumbled over, and with the key that names the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith(f"teacher.checkpoint.file: {tmp_path / name} cannot be read")


def test_images_that_are_too_small_are_refused_before_any_training(tmp_path: Path) -> None:
    """A padding of 0 reduces a 2x2 image to nothing."""
    with pytest.raises(UserError, match=r"does not take images of 2x2.*image_size to 32"):
        load(written(tmp_path, KRR_ST.state_dict()), size=2, padding=0)


def timm_file(folder: Path, name: str, **changes: Any) -> tuple[Path, nn.Module]:
    """Write random weights of a timm model with classifier; return the file and the model without classifier."""
    timm = pytest.importorskip("timm")
    model = randomised(timm.create_model(name, pretrained=False))
    path = folder / "timm.safetensors"
    save_file({key: value.contiguous() for key, value in (model.state_dict() | changes).items()}, path)
    model.reset_classifier(0)
    return path, model


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_a_model_of_timm_gets_images_as_timm_specifies(name: str, tmp_path: Path) -> None:
    """Size, statistics, interpolation and the name of the classifier come from timm."""
    path, model = timm_file(tmp_path, name)
    found = load(path, model=f"timm:{name}")
    assert found.format == "timm"
    assert found.left_out
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    images = pixels()[:2]
    size, mode = config["input_size"][1:], config["interpolation"]
    large = nn.functional.interpolate(images.float() / 255, size, mode=mode, antialias=True)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        wanted = model.eval()((large - mean) / std)
    torch.testing.assert_close(features(found, images, tmp_path, MEAN, STD), wanted, rtol=1e-3, atol=1e-3)
    smaller = load(path, model=f"timm:{name}", image_size=96)
    assert features(smaller, images, tmp_path, MEAN, STD).shape == wanted.shape


def test_faults_of_timm_checkpoints_are_named(tmp_path: Path) -> None:
    """Faults: an unknown name, an extra tensor, an image size that does not fit, a padding."""
    path, _ = timm_file(tmp_path, "test_vit", extra=torch.zeros(2))
    with pytest.raises(UserError, match="timm has no model 'nothing_like_it'"):
        load(path, model="timm:nothing_like_it")
    with pytest.raises(UserError, match="has extra left over"):
        load(path, model="timm:test_vit")
    path, _ = timm_file(tmp_path, "test_vit")
    with pytest.raises(UserError, match=r"does not take images of 50x50.*image_size to 160"):
        load(path, model="timm:test_vit", image_size=50)
    with pytest.raises(UserError, match=r"teacher\.checkpoint\.padding"):
        load(path, model="timm:test_vit", padding=1)


class TinyTimm(nn.Module):
    """The parts of a timm model that are used here."""

    num_features = 6
    pretrained_cfg = {"classifier": "head", "input_size": (3, 10, 10)}  # noqa: RUF012

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 10)
        self.head = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Compute features, or scores if there is a classifier."""
        return self.head(self.stem(images).flatten(1))


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace timm by a module that downloads nothing: it returns the weights in the returned dict."""
    published: dict[str, Any] = {}

    def create_model(name: str, pretrained: bool, num_classes: int = 10, in_chans: int = 3) -> nn.Module:
        if pretrained:
            published["model"].head = nn.Identity()
            return published["model"]
        return TinyTimm(num_classes)

    timm, data = types.ModuleType("timm"), types.ModuleType("timm.data")
    view = {"input_size": (3, 10, 10), "mean": (0.5, 0.5, 0.5), "std": (0.1, 0.2, 0.3), "interpolation": "bicubic"}
    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.is_model_pretrained = lambda name: name == "tiny"  # type: ignore[attr-defined]
    data.resolve_model_data_config = lambda model: view  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return published


@pytest.mark.parametrize("from_file", [True, False])
def test_weights_for_timm_from_a_file_or_from_timm(fake_timm: dict[str, Any], tmp_path: Path, from_file: bool) -> None:
    """Both give the same features; the identity is a digest of the file or of the downloaded tensors."""
    model = randomised(TinyTimm(10))
    fake_timm["model"] = model
    path = written(tmp_path, model.state_dict()) if from_file else None
    found = load(path, size=8, model="timm:tiny")
    assert found.left_out == (["head.bias", "head.weight"] if from_file else [])
    assert len(found.identity) == 64
    images = pixels(size=8)
    large = nn.functional.interpolate(images.float() / 255, (10, 10), mode="bicubic", antialias=True)
    model.head = nn.Identity()
    wanted = model((large - 0.5) / torch.tensor([0.1, 0.2, 0.3])[:, None, None])
    torch.testing.assert_close(features(found, images, tmp_path, MEAN, STD), wanted, rtol=1e-4, atol=1e-4)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does(fake_timm: dict[str, Any]) -> None:
    """The key was just set: to set it is no advice."""
    with pytest.raises(UserError, match=r"does not take images of 7x7.*image_size to 10"):
        load_checkpoint(None, OPTIONS | {"model": "timm:tiny", "image_size": 7}, 3, 8, download=False)


def test_a_model_of_timm_can_be_checked_without_its_weights(fake_timm: dict[str, Any]) -> None:
    """All but the weights, which must be there to download."""
    found = load_checkpoint(None, OPTIONS | {"model": "timm:tiny"}, 3, 8, download=False)
    assert found.view["size"] == 10
    with pytest.raises(UserError, match="no weights for 'other'"):
        load_checkpoint(None, OPTIONS | {"model": "timm:other"}, 3, 8, download=False)


def test_weights_that_timm_cannot_download_and_a_missing_timm(
    fake_timm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to do without network and without timm."""
    with pytest.raises(UserError, match=r"timm could not provide weights for 'tiny'.*teacher\.checkpoint\.file"):
        load(None, size=8, model="timm:tiny")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[timm\]'"):
        load(None, size=8, model="timm:tiny")


NETWORK = build_backbone({"architecture": "resnet", "blocks": [1, 1], "width": 4}, 1, 8)
KEYS = sorted(NETWORK.state_dict())


@given(key=st.sampled_from(KEYS), fault=st.sampled_from(["lacks", "left over", "of shape", "not finite in"]))
def test_any_single_fault_is_named(key: str, fault: str) -> None:
    """Each tensor is checked, and nothing is loaded if one has a fault."""
    weights = dict(NETWORK.state_dict())
    named = key
    if fault == "lacks":
        del weights[key]
    elif fault == "left over":
        named = f"{key}_of_another"
        weights[named] = weights[key]
    elif fault == "of shape":
        weights[key] = torch.zeros(9)
    else:
        weights[key] = torch.full(weights[key].shape, torch.inf)
    before = flatten_state(NETWORK)
    with pytest.raises(UserError) as caught:
        load_weights(NETWORK, weights, "theirs.pt")
    assert named in str(caught.value)
    assert fault in str(caught.value)
    assert torch.equal(flatten_state(NETWORK), before)
