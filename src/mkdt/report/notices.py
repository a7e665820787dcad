"""What a reader must know before the numbers of a report."""

from pathlib import Path

from mkdt.evaluate.labels import at_chance
from mkdt.report.tables import read_table

SMOKE = (
    "Scale: smoke. Every size of the study is scaled down to see that it runs. These numbers mean nothing; run it without "
    "scale: smoke for numbers that do."
)


def notices(scale: str, source: str, targets_probe: str | Path) -> list[str]:
    """Return sentences to show above the results.

    Args:
        scale: of the config.
        source: name of the source.
        targets_probe: the table of rule targets_probe; it is empty where the source has no labels.

    Raises:
        UserError: the table is missing or damaged.
    """
    found = [SMOKE] if scale == "smoke" else []
    path = Path(targets_probe)
    if path.is_file() and not path.stat().st_size:
        return found
    rows = read_table(path, "targets_probe").to_dict("records")
    if at_chance(rows):
        found.append(
            f"Neither the pixels nor the teacher's targets of {source} predict its labels better than chance "
            f"({rows[0]['chance']:.1f} %). Check that the labels belong to the images: if they do not, accuracies on "
            f"{source} compare nothing."
        )
    return found
