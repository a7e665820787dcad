"""Counts what the suite threw at the project, and says it at the end (docs/reliability.md)."""

from collections import Counter

import pytest


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> None:
    """A test marked ``counts(what)`` counts once where it passes; it may add ``(what, number)`` itself."""
    for mark in request.node.iter_markers("counts"):
        request.node.user_properties.append((f"counts {mark.args[0]}", 1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The sums over all tests that passed."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        if report.when == "call":
            counts.update({what: n for what, n in report.user_properties if what.startswith("counts ")})
    for what, number in counts.items():
        terminalreporter.write_line(f"{what.removeprefix('counts ')}: {number}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first: at the end, short ones share what is left evenly among the processes."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)
