"""Budgets in paths: those of the config, and all images."""

import pytest
from configs import with_sections

from mkdt.config.sizes import budget_images
from mkdt.errors import UserError


def test_a_budget_that_the_config_does_not_have_is_refused() -> None:
    """Asked for by a path, it must not become all images."""
    config = with_sections(budgets=[0.01, 20])
    assert [budget_images(config, label) for label in ("1pct", "20img", "all")] == [14, 20, 1300]
    with pytest.raises(UserError, match="7pct"):
        budget_images(config, "7pct")
