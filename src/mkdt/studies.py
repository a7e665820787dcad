"""What the studies of docs/studies share: the scores that the workflow has made so far, as tables."""

import pandas as pd

from mkdt import report
from mkdt.config import RESULTS, Config, budget_label, method_name
from mkdt.errors import UserError


def tables(config: Config) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, test accuracies (``report.accuracies``) and summary (``report.summarise``) of an experiment.

    Unlike rule report it takes what is there, so that a page can be written before the last method is measured.

    Raises:
        UserError: nothing is measured yet.
    """
    folder = RESULTS / config["experiment"] / "probe"
    files = sorted(folder.glob("*/*/*.csv"))
    if not files:
        raise UserError(f"{folder} holds no scores yet: run snakemake with the study's config first.")
    scores = report.read_scores(files, config["source"])
    budgets = [label for label in map(budget_label, config["budgets"]) if label in set(scores["budget"])]
    accuracy = report.accuracies(scores, budgets)
    return scores, accuracy, report.summarise(accuracy, list(map(method_name, config["methods"])))
