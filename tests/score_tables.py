"""Made-up scores, in the form of the report's tables."""

import numpy as np
import pandas as pd

SETTING = {
    "source": "s",
    "budget": "1pct",
    "student": "c",
    "downstream": "d",
    "evaluation": "linear",
    "label_fraction": 0.1,
}


def runs(method: str, distill_seeds: list[int], values: np.ndarray, **more: object) -> pd.DataFrame:
    """Accuracies [distill seed, seed, label draw] as rows."""
    rows = []
    for i, distill_seed in enumerate(distill_seeds):
        for seed in range(values.shape[1]):
            for draw in range(values.shape[2]):
                who = {"method": method, "distill_seed": distill_seed, "seed": seed, "label_draw": draw}
                point = {"rate": 0.1, "steps": 10, "finetune_rate": np.nan, "at_edge": False, "gradient": 0.0}
                rows.append(SETTING | who | point | {"accuracy": float(values[i, seed, draw])} | more)
    return pd.DataFrame(rows)
