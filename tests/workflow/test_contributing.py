"""CONTRIBUTING.md is true: its four files, put where it says and nothing else changed, go through the whole workflow."""

import re

import pandas as pd
import pytest
import yaml
from project import REPOSITORY, Project
from without_mkdt import alone

from mkdt.artifacts import Artifact
from mkdt.config.loading import merge

pytestmark = pytest.mark.slow


def test_a_method_a_data_set_and_a_student_are_one_file_each(project: Project) -> None:
    """Made, compared, inspected, exported; a change of one file reruns what uses it and nothing else."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    files = re.findall(r"`(src/mkdt/extensions/\w+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert len(files) == 4
    for path, text in files:
        (project.folder / path).write_text(text)
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    tiny = yaml.safe_load((project.folder / "tiny.yaml").read_text())
    del tiny["datasets"]
    tiny["tracking"] = {"enabled": False}
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump(merge(tiny, yaml.safe_load(config))))
    project.run()
    accuracy = pd.read_csv(project.folder / "results/stripes/report/accuracy.csv")
    assert set(accuracy["method"]) == {"random", "farthest", "mkdt", "mean_match"}
    assert set(accuracy["student"]) == {"convnet", "perceptron"}
    rows = Artifact(project.folder / "results/stripes/sets/farthest/6img/0.safetensors").tensor("init_index")
    assert len(rows.unique()) == 6

    student = "results/stripes/pretrain/perceptron/farthest/6img/0/0.safetensors"
    said = project.mkdt("inspect", student)
    assert "perceptron" in said
    assert "but the" not in said
    project.mkdt("export", student, "--to", "out")
    assert "[2, 16]" in alone(
        project.folder / "out", "from load import load; import torch; print(load()[0](torch.zeros(2, 1, 8, 8)).shape)"
    )

    extension = project.folder / "src/mkdt/extensions/perceptron.py"
    extension.write_text(extension.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    planned = project.planned()
    assert set(planned) == {
        f"{rule} {method}"
        for rule in ("pretrain", "select", "probe")
        for method in ("random", "farthest", "mkdt", "mean_match")
    } | {"report"}
    assert planned["pretrain mkdt"] == 2

    extension.write_text(extension.read_text().replace("nn.Tanh()", "nn.ReLU()"))
    distilled = "results/stripes/sets/mean_match/6img/0.safetensors"
    said = project.mkdt("inspect", distilled)
    assert "a distilled set, 6 images of 1x8x8 with targets" in said
    assert "iterations 8" in said
    assert "but the" not in said
    project.mkdt("export", distilled, "--to", "set")
    settings = project.folder / "tiny.yaml"
    settings.write_text(settings.read_text().replace("iterations: 8", "iterations: 9"))
    planned = project.planned()
    assert set(planned) == {
        "distill mean_match",
        "pretrain mean_match",
        "select mean_match",
        "probe mean_match",
        "report",
    }
