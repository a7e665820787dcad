"""The space of the targets against an independent principal component analysis."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from mkdt.errors import UserError
from mkdt.teacher.target_space import fit_space, stored_space


@pytest.fixture
def representations() -> Tensor:
    """Points with a mean and a few strong directions, float32 [50,6]."""
    stream = torch.Generator().manual_seed(0)
    strengths = torch.tensor([5.0, 2.0, 1.0, 0.3, 0.1, 0.05])
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=stream)).Q
    return torch.randn(50, 6, generator=stream) * strengths @ mixing + 3


def settings(center: bool = True, components: int | None = None, scale: float | str = "none") -> dict[str, object]:
    """The section of the config."""
    return {"center": center, "components": components, "scale": scale}


def test_centred_components_are_those_of_an_independent_pca(representations: Tensor) -> None:
    """Up to signs, which we fix."""
    space = fit_space(representations, settings(components=3))
    reference = PCA(3).fit(representations.double().numpy())
    wanted = torch.from_numpy(reference.transform(representations.double().numpy()))
    torch.testing.assert_close(space.apply(representations).double().abs(), wanted.abs(), rtol=1e-4, atol=1e-5)
    shares = torch.from_numpy(reference.explained_variance_ratio_)
    torch.testing.assert_close(space.explained.double(), shares, rtol=1e-4, atol=1e-6)


def test_all_components_only_turn(representations: Tensor) -> None:
    """Without centre and scale, distances and lengths stay: training in that space is training in the old one."""
    mapped = fit_space(representations, settings(center=False)).apply(representations)
    torch.testing.assert_close(mapped @ mapped.T, representations @ representations.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", ["none", "isotropic", 0.5, 1])
@pytest.mark.parametrize("center", [False, True])
def test_a_prediction_can_be_mapped_back(representations: Tensor, center: bool, scale: float | str) -> None:
    """With all components nothing is lost."""
    space = fit_space(representations, settings(center, None, scale))
    torch.testing.assert_close(space.restore(space.apply(representations)), representations, rtol=1e-4, atol=1e-3)


def test_scales(representations: Tensor) -> None:
    """Isotropic keeps the shape; the exponent 1 gives every component the variance 1, a half halves the exponents."""
    plain, isotropic, half, white = (
        fit_space(representations, settings(scale=scale)).apply(representations)
        for scale in ("none", "isotropic", 0.5, 1)
    )
    variances = plain.var(0, unbiased=False)
    torch.testing.assert_close(white.var(0, unbiased=False), torch.ones(6), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half.var(0, unbiased=False), variances.sqrt(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(isotropic, plain / variances.mean().sqrt(), rtol=1e-4, atol=1e-4)


def test_dead_directions_are_not_blown_up(representations: Tensor) -> None:
    """Whitening divides by no variance of rounding errors."""
    flat = torch.cat([representations, torch.zeros(50, 2)], 1)
    mapped = fit_space(flat, settings(scale=1)).apply(flat)
    assert mapped.isfinite().all()
    assert mapped[:, 6:].abs().max() < 1


def test_constant_targets_stay_finite() -> None:
    """Nothing is left of them once they are centred."""
    space = fit_space(torch.ones(5, 3), settings(scale="isotropic"))
    assert not space.apply(torch.ones(5, 3)).any()
    assert space.explained.isfinite().all()


def test_the_file_keeps_the_space(representations: Tensor) -> None:
    """Tensors by name and back."""
    space = fit_space(representations, settings(components=2))
    again = stored_space(space.tensors())
    assert torch.equal(again.apply(representations), space.apply(representations))


def test_more_components_than_dimensions_are_refused(representations: Tensor) -> None:
    """Only the file of a brought teacher says how many there are."""
    with pytest.raises(UserError, match=r"targets\.space\.components is 7"):
        fit_space(representations, settings(components=7))
