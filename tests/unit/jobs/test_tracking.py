"""Runs in MLflow: what is recorded, that each value arrives once whatever fails, and what people see."""

import http.client
import itertools
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow.entities import ViewType
from mlflow.utils.validation import _validate_metric_name
from mlflow_server import Experiment, Metrics, Server, tracked, wait_for

from mkdt.cli import main as cli
from mkdt.errors import UserError, redact
from mkdt.jobs import mlflow_sync as sync
from mkdt.jobs import tracking
from mkdt.jobs.mlflow_store import fitting
from mkdt.jobs.mlflow_sync import Syncer
from mkdt.jobs.parent_run import Tracker
from mkdt.jobs.system_metrics import Sampler
from mkdt.jobs.tracking import Run, parse, spools

pytestmark = pytest.mark.usefixtures("short_waits")


def report(run: Run, steps: range) -> None:
    """A loss curve."""
    for step in steps:
        run.metrics(step, {"loss": 1 / (1 + step), "rate": step / 2})


def expected(steps: range) -> Metrics:
    """Each value of that curve once."""
    return Counter({(key, s, v): 1 for s in steps for key, v in (("loss", 1 / (1 + s)), ("rate", s / 2))})


# -- what is recorded


def test_jobs_never_import_mlflow(tmp_path: Path) -> None:
    """It costs more than a second of CPU; only the syncer needs it. Neither does the Snakefile need torch for this."""
    code = (
        "import sys, mkdt.jobs.tracking, mkdt.config.loading; assert 'torch' not in sys.modules; "
        "import mkdt.jobs.stage; from pathlib import Path; from mkdt.jobs.tracking import Run; "
        "r = Run(Path('x'), 'o', 'n', {}, {}); r.metrics(1, {'a': 1}); r.close('FINISHED'); "
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_run_in_mlflow(local: Experiment) -> None:
    """Name, tags, parameters, curve, system metrics, picture, file and data set of a job, below its parent."""
    parent = Run(local.folder, "experiment", "e", {"stage": "experiment"}, {})
    parent.begin()
    run = local.run("distill", "distill · mkdt · 1% · seed 0")
    run.dataset("digits", "0" * 32, "results/digits/data.safetensors", "training", {"images": [3, 1, 8, 8]})
    run.picture(0, "synthetic", torch.zeros(3, 8, 8, dtype=torch.uint8))
    run.metrics(1, {"loss": float("nan")})
    run.metrics(2, {"loss": 0.5})
    table = local.folder / "table.csv"
    table.write_text("a\n1\n")
    run.file(table)
    table.unlink()
    run.close("FINISHED")
    parent.close("FINISHED")
    assert local.sync()
    top, job = local.runs()
    assert (top.info.run_name, top.info.status) == ("e", "FINISHED")
    assert job.info.run_name == "distill · mkdt · 1% · seed 0"
    assert job.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert job.data.tags["stage"] == "distill"
    assert job.data.params == {"lr": "0.1"}
    assert job.data.metrics["loss"] == 0.5
    assert job.data.metrics["system/process_memory_megabytes"] > 1
    history = local.client().get_metric_history(job.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2]
    _, picture = sorted(file.path for file in local.client().list_artifacts(job.info.run_id, "images"))
    assert re.fullmatch(r"images/synthetic\+step\+0\+timestamp\+\d+\+[0-9a-f-]+\.png", picture)
    assert any(file.path == "table.csv" for file in local.client().list_artifacts(job.info.run_id))
    (dataset,) = job.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "0" * 32)


def test_values_are_live(local: Experiment) -> None:
    """A spool holds a value soon after it was reported, not only at the end."""
    run = local.run()
    run.metrics(1, {"loss": 0.5})
    wait_for(lambda: any("loss" in path.read_text() for path in local.folder.glob("*.jsonl")), 2)
    run.close("FINISHED")


def test_a_full_disk_costs_no_value(local: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line fits, then nothing, then there is room again: the job goes on and the spool is whole."""
    run, write, calls = local.run(), os.write, []

    def full(fd: int, data: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
            return write(fd, data)
        calls.append(len(data))
        if len(calls) == 1:
            return write(fd, data[: len(data) // 2])
        if len(calls) < 5:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    report(run, range(20))
    wait_for(lambda: len(calls) > 3)
    report(run, range(20, 30))
    run.close("FINISHED")
    assert local.sync()
    assert local.arrived(local.runs()[0].info.run_id) == expected(range(30))


def test_a_disk_that_stays_full_fails_no_job(local: Experiment) -> None:
    """Files may not grow at all: the process ends well nevertheless."""
    code = (
        "import sys; from pathlib import Path; from mkdt.jobs.tracking import Run; "
        f"r = Run(Path({str(local.folder)!r}), 'o', 'n', {{}}, {{}}); "
        "[r.metrics(step, {'a': 1}) for step in range(9)]; r.file(Path(sys.argv[1])); r.close('FINISHED')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracking:") == 1


@pytest.mark.mlflow
@pytest.mark.slow
def test_a_disk_without_room_for_the_store(local: Experiment) -> None:
    """SQLite cannot grow: what is missing is said and kept; with room again it arrives, once."""
    run = local.run()
    report(run, range(3000))
    run.close("FINISHED")
    room = (local.folder.parents[1] / "mlflow.db").stat().st_size + 20_000
    code = (
        "import sys; from mkdt.cli import main as cli; from mkdt.jobs import mlflow_sync as sync; sync.DRAIN_SECONDS = 1; "
        f"sys.exit(cli.main(['track', 'sync', '--results', {str(local.folder.parents[1])!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "not everything could be sent" in done.stdout
    assert "full" in done.stderr or "disk I/O error" in done.stderr
    assert local.sync()
    assert local.arrived(local.runs()[0].info.run_id) == expected(range(3000))


@given(cut=st.integers(min_value=0, max_value=400), again=st.integers(min_value=0, max_value=12))
def test_a_resumed_job_goes_on_with_its_curve(tmp_path_factory: pytest.TempPathFactory, cut: int, again: int) -> None:
    """Killed at any byte, resumed from any earlier step: the spool holds each value once, without gaps."""
    folder = tmp_path_factory.mktemp("spools")
    first = Run(folder, "o", "n", {}, {})
    report(first, range(12))
    name = first.id
    first.close("KILLED")
    spool = folder / f"{name}.jsonl"
    whole = spool.read_bytes()
    spool.write_bytes(whole[: len(whole) - cut])
    second = Run(folder, "o", "n", {}, {})
    second.begin(name)
    assert second.id == name
    report(second, range(again))  # the rows of the resume state
    report(second, range(again, 15))
    second.close("FINISHED")
    records = parse(spool.read_bytes())
    values = [(key, r["step"]) for r in records if r["type"] == "metrics" for key in r["values"]]
    ours = Counter(value for value in values if not value[0].startswith("system/"))
    assert ours == Counter({(key, step): 1 for key in ("loss", "rate") for step in range(15)})
    assert records[-1]["status"] == "FINISHED"


def test_a_run_that_is_still_written_to_is_not_continued(local: Experiment) -> None:
    """Two writers would tear each other's lines."""
    first, second = local.run(), local.run()
    first.begin()
    second.begin(first.id)
    assert second.id != first.id
    first.close("FINISHED")
    second.close("FINISHED")


def test_system_metrics_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is there with torch alone; utilisation needs a library that may be missing."""

    def missing(device: int) -> int:
        raise ModuleNotFoundError("pynvml")

    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        current_device=lambda: 0,
        mem_get_info=lambda device: (int(6e9), int(8e9)),
        utilization=missing,
        power_draw=missing,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    values = Sampler()()
    assert values["gpu_0_memory_usage_megabytes"] == 2000
    assert values["gpu_0_memory_usage_percentage"] == 25
    assert 0 < values["system_memory_usage_percentage"] < 100
    cuda.utilization, cuda.power_draw = lambda device: 50, lambda device: 70_000
    values = Sampler()()
    assert values["gpu_0_utilization_percentage"] == 50
    assert values["gpu_0_power_usage_watts"] == 70


# -- what arrives


@pytest.mark.counts("kills survived")
def test_a_killed_job_is_killed_in_mlflow_and_goes_on(local: Experiment) -> None:
    """Its lock is gone; the next job continues the same run. A rerun is a run of its own."""
    code = (
        "import sys, time; from pathlib import Path; from mkdt.jobs.tracking import Run; "
        f"r = Run(Path({str(local.folder)!r}), 'train', 'train', {{}}, {{}}); r.metrics(1, {{'loss': 0.5}}); "
        "print(r.id, flush=True); time.sleep(60)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    name = job.stdout.readline().strip()
    spool = local.folder / f"{name}.jsonl"
    wait_for(lambda: spool.is_file() and b"loss" in spool.read_bytes())
    assert local.sync()
    assert [run.info.status for run in local.runs()] == ["RUNNING"]
    job.kill()
    job.communicate()
    assert local.sync()
    assert [run.info.status for run in local.runs()] == ["KILLED"]
    resumed = local.run()
    resumed.begin(name)
    resumed.metrics(2, {"loss": 0.25})
    wait_for(lambda: b"0.25" in spool.read_bytes())
    assert local.sync()
    assert [run.info.status for run in local.runs()] == ["RUNNING"]
    resumed.close("FINISHED")
    rerun = local.run()
    rerun.close("FINISHED")
    assert local.sync()
    old, new = local.runs()
    assert local.arrived(old.info.run_id) == {("loss", 1, 0.5): 1, ("loss", 2, 0.25): 1}
    assert (old.info.run_name, old.info.status) == ("train", "FINISHED")
    assert new.info.run_name == "train · a"


class Crash(BaseException):
    """The process dies here."""


class Dying:
    """A client whose process dies at its n-th request: before it is sent, or before the answer is noted."""

    def __init__(self, client: Any, at: int, after: bool) -> None:
        self._client, self._left, self._after = client, at, after

    def __getattr__(self, name: str) -> Any:
        request = getattr(self._client, name)

        def call(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Crash
            answer = request(*args, **more)
            if self._left == 0:
                raise Crash
            return answer

        return call


@pytest.mark.mlflow
@settings(max_examples=15)
@given(deaths=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6), forget=st.booleans())
def test_each_value_once_wherever_the_syncer_dies(
    tmp_path_factory: pytest.TempPathFactory, tables: Path, deaths: list[tuple[int, bool]], forget: bool
) -> None:
    """Also if it forgets, at the last death, how far it had come."""
    results = tmp_path_factory.mktemp("project") / "results"
    experiment = Experiment(results, "e")
    shutil.copy(tables, results / "mlflow.db")
    run = experiment.run()
    report(run, range(30))
    run.picture(3, "synthetic", torch.zeros(3, 8, 8, dtype=torch.uint8))
    run.close("FINISHED")
    for at, after in deaths:
        syncer = Syncer(experiment.folder)
        store = syncer.connect()
        store.client = Dying(store.client, at, after)
        try:
            syncer.send()
        except Crash:
            continue
    if forget:
        (experiment.folder / "progress.json").unlink(missing_ok=True)
    assert experiment.sync()
    (arrived,) = experiment.runs()
    assert experiment.arrived(arrived.info.run_id) == expected(range(30))
    assert arrived.info.status == "FINISHED"
    assert len(experiment.client().list_artifacts(arrived.info.run_id, "images")) == 2


@pytest.mark.mlflow
@pytest.mark.counts("kills survived")
@pytest.mark.slow
def test_each_value_once_after_kill_9_of_the_syncer(remote: Experiment) -> None:
    """The real process, killed at random moments while a run is written."""
    run, stream = remote.run(), random.Random(0)
    for part in range(3):
        syncer = remote.follow()
        for step in range(100 * part, 100 * part + 100):
            report(run, range(step, step + 1))
        if part:
            wait_for(lambda: (remote.folder / "progress.json").is_file())
        time.sleep(1 + 2 * stream.random())
        syncer.kill()
        syncer.wait()
    run.close("FINISHED")
    assert remote.sync()
    (arrived,) = remote.runs()
    assert remote.arrived(arrived.info.run_id) == expected(range(300))


@pytest.mark.mlflow
@pytest.mark.slow
def test_a_server_that_is_down_at_the_start_in_the_middle_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The syncer waits for it; what is left at the end goes with `mkdt track sync`, and nothing goes twice."""
    server = Server(tmp_path)
    experiment = Experiment(tmp_path / "results", "down", server.uri)
    run = experiment.run()
    syncer = experiment.follow()
    try:
        report(run, range(10))
        time.sleep(3)
        server.start()
        wait_for(lambda: experiment.client().get_experiment_by_name("down") and experiment.runs())
        run_id = experiment.runs()[0].info.run_id
        wait_for(lambda: experiment.arrived(run_id) == expected(range(10)))
        server.kill()
        report(run, range(10, 20))
        time.sleep(2)
        server.start()
        wait_for(lambda: experiment.arrived(run_id) == expected(range(20)))
        server.kill()
        report(run, range(20, 30))
        run.close("FINISHED")
        assert syncer.stdin is not None
        syncer.stdin.close()
        assert syncer.wait(60) == 3, "it says that something is left"
        arguments = ["track", "sync", "--results", str(tmp_path / "results")]
        monkeypatch.setattr(sync, "DRAIN_SECONDS", 1.0)
        assert cli.main(arguments) == 1
        server.start()
        assert cli.main(arguments) == 0
        assert "everything is in MLflow" in capsys.readouterr().out
        assert experiment.arrived(run_id) == expected(range(30))
        assert [run.info.status for run in experiment.runs()] == ["FINISHED"]
    finally:
        syncer.kill()
        syncer.wait()
        server.kill()


class SlowProxy(ThreadingHTTPServer):
    """Passes requests on, some too late: the first creation of a run comes after the second, and some answers never."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.uri = port, f"http://127.0.0.1:{self.server_port}"
        self.runs = self.batches = 0
        self.second_run = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: SlowProxy

    def _pass_on(self) -> None:
        proxy = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        creates, logs = self.path.endswith("runs/create"), self.path.endswith("log-batch")
        proxy.runs += creates
        proxy.batches += logs
        unanswered = logs and proxy.batches in (2, 5)
        if creates and proxy.runs == 1:
            unanswered = proxy.second_run.wait(60)
        connection = http.client.HTTPConnection("127.0.0.1", proxy.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        if creates:
            proxy.second_run.set()
        if unanswered:
            time.sleep(4)  # the client waits two
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _pass_on

    def log_message(self, *args: Any) -> None:
        """Silence."""


@pytest.mark.mlflow
@pytest.mark.slow
def test_a_server_slower_than_the_client_waits(
    remote: Experiment, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that were given up are carried out all the same: one run, each value once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(sync, "DRAIN_SECONDS", 60.0)
    proxy = SlowProxy(server.port)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    (remote.folder / tracking.STORE).write_text(json.dumps({"uri": proxy.uri}))
    run = remote.run()
    report(run, range(300))
    run.close("FINISHED")
    assert remote.sync()
    proxy.shutdown()
    assert proxy.batches > 5, "the proxy never stood in the way"
    (arrived,) = remote.runs()
    assert remote.arrived(arrived.info.run_id) == expected(range(300))
    doubles = remote.client().search_runs([arrived.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert len(doubles) == 1, "the proxy never made the server create a run twice"


@pytest.mark.mlflow
@pytest.mark.slow
def test_twenty_jobs_at_once_lose_nothing(remote: Experiment) -> None:
    """Twenty processes, one syncer, a real server."""
    code = (
        "import sys; from pathlib import Path; from mkdt.jobs.tracking import Run; "
        f"r = Run(Path({str(remote.folder)!r}), sys.argv[1], sys.argv[1], {{}}, {{}}); "
        "[r.metrics(step, {'loss': step / 4}) for step in range(200)]; r.close('FINISHED')"
    )
    syncer = remote.follow()
    jobs = [subprocess.Popen([sys.executable, "-c", code, f"job {number}"]) for number in range(20)]
    assert [job.wait(120) for job in jobs] == [0] * 20
    assert syncer.stdin is not None
    syncer.stdin.close()
    assert syncer.wait(120) == 0
    runs = remote.runs()
    assert sorted(run.info.run_name for run in runs) == sorted(f"job {number}" for number in range(20))
    for run in runs:
        assert run.info.status == "FINISHED"
        assert remote.arrived(run.info.run_id) == Counter({("loss", step, step / 4): 1 for step in range(200)})


@pytest.mark.mlflow
@pytest.mark.slow
def test_nodes_take_turns_at_sqlite(local: Experiment) -> None:
    """Two experiments of one results folder, sent from two nodes: never both at work on the store, and nothing is lost."""
    code = """if True:
        import sys, time
        from mkdt.jobs import mlflow_sync as sync

        send = sync.Syncer.send

        def timed(self):
            begin = time.monotonic()
            send(self)
            print(begin, time.monotonic())

        sync.Syncer.send = timed
        sys.exit(sync.main())
    """
    experiments = [local, Experiment(local.folder.parents[1], "f")]
    runs = [experiment.run() for experiment in experiments]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(experiment.folder)],
            env=os.environ | {"SLURMD_NODENAME": f"node-{experiment.name}", "SLURM_JOB_ID": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for experiment in experiments
    ]
    deadline = time.monotonic() + 90
    while not all((experiment.folder / "progress.json").exists() for experiment in experiments):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for step in range(20):
        for run in runs:
            run.metrics(step, {"loss": step / 4})
        time.sleep(0.2)
    for run in runs:
        run.close("FINISHED")
    spans = []
    for node in nodes:
        output, _ = node.communicate(timeout=120)
        assert node.returncode == 0
        spans += [(*map(float, line.split()), node.pid) for line in output.splitlines()]
    spans.sort()
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(spans))
    pids = [pid for _, _, pid in spans]
    assert sum(a != b for a, b in itertools.pairwise(pids)) > 1, "they were not at work at the same time"
    for experiment in experiments:
        (run,) = experiment.runs()
        assert experiment.arrived(run.info.run_id) == Counter({("loss", step, step / 4): 1 for step in range(20)})


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page(address: str, wanted: str, profile: Path) -> str:
    """The document that a browser makes of a page; it looks again where a busy machine had not drawn it yet."""
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1400,2200 --virtual-time-budget=30000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", address]
    for _ in range(5):
        text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        if wanted in text:
            break
    return text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to look at the UI as people do")
def test_people_see_runs_a_curve_and_a_picture(remote: Experiment, tmp_path: Path) -> None:
    """In a real browser: the list of runs, one run's curve, and its picture from step 0 on."""
    parent = Run(remote.folder, "experiment", "my experiment", {"stage": "experiment"}, {})
    parent.begin()
    run = remote.run("distill", "distill · mkdt · 1% · seed 0")
    for step in (0, 5):
        run.picture(step, "synthetic", torch.full((3, 48, 48), 40 * step, dtype=torch.uint8))
    report(run, range(1, 6))
    run.close("FINISHED")
    parent.close("FINISHED")
    assert remote.sync()
    top, job = remote.runs()
    base = f"{remote.uri}/#/experiments/{top.info.experiment_id}/runs"
    assert "my experiment" in page(base, "my experiment", tmp_path / "profile")
    shown = page(f"{base}/{job.info.run_id}/model-metrics", 'class="js-line"', tmp_path / "profile")
    assert "distill · mkdt · 1% · seed 0" in shown
    assert 'class="js-line"' in shown, "no curve"
    (picture,) = set(re.findall(r'<img[^>]* src="(get-artifact[^"]*synthetic[^"]*)"', shown))
    assert "step%2B0%2B" in picture
    connection = http.client.HTTPConnection("127.0.0.1", int(remote.uri.rsplit(":", 1)[1]))
    connection.request("GET", "/" + picture.replace("&amp;", "&"))
    assert connection.getresponse().read()[8:12] == b"WEBP"


def test_what_mlflow_refuses_costs_only_itself(local: Experiment) -> None:
    """A parameter cannot be changed; it does not take its batch along."""
    run = local.run()
    name = run.id
    run.begin()
    run.close("KILLED")
    again = Run(local.folder, "train", "train", {}, {"lr": 0.2, "epochs": 3})
    again.begin(name)
    report(again, range(5))
    again.close("FINISHED")
    assert local.sync()
    (arrived,) = local.runs()
    assert arrived.data.params == {"lr": "0.1", "epochs": "3"}
    assert local.arrived(arrived.info.run_id) == expected(range(5))


@given(st.text(max_size=300), st.sampled_from(["", "/", "..", "../", "a//b", "x" * 249]))
@example("accuracy/file-ü+1/50%/convnet/d/0.1", "")
def test_any_name_becomes_one_that_mlflow_takes(text: str, more: str) -> None:
    """A good name stays; of two names no two become one."""
    fit = fitting(text + more)
    _validate_metric_name(fit)
    assert len(fit) <= 250
    assert fitting(fit) == fit
    assert (fit == text + more) or fit != fitting(text + more + "?")


def test_long_values_are_cut(local: Experiment) -> None:
    """6,000 characters of a parameter, 8,000 of a tag; a line longer than what is read at a time arrives too."""
    run = Run(local.folder, "o", "n", {"note": "t" * 9000}, {"list": "p" * 9000, "what?": "1"})
    values = {f"accuracy/{'m' * 100}/{number}": number / 2 for number in range(10_000)}
    run.conclude(values)
    run.close("FINISHED")
    assert local.sync()
    (arrived,) = local.runs()
    assert len(arrived.data.tags["note"]) == 8000
    assert len(arrived.data.params["list"]) == 6000
    assert any(key.startswith("what_") for key in arrived.data.params)
    assert {key: value for key, value in arrived.data.metrics.items() if key[0] == "a"} == values


def test_what_was_deleted_stays_deleted_and_a_new_store_gets_everything(local: Experiment) -> None:
    """Somebody's decision is kept; another store, or the same after its loss, is sent the whole history."""
    kept, unwanted = local.run("a"), local.run("b")
    report(kept, range(5))
    report(unwanted, range(1))
    wait_for(lambda: len(list(local.folder.glob("*.jsonl"))) == 2)
    wait_for(lambda: all(path.stat().st_size for path in local.folder.glob("*.jsonl")))
    assert local.sync()
    (gone,) = [run for run in local.runs() if run.data.tags["stage"] == "b"]
    local.client().delete_run(gone.info.run_id)
    unwanted.metrics(1, {"loss": 1.0})
    for run in (kept, unwanted):
        run.close("FINISHED")
    assert local.sync()
    assert [run.data.tags["stage"] for run in local.runs()] == ["a"]
    other = local.folder.parents[1] / "other.db"
    (local.folder / tracking.STORE).write_text(json.dumps({"uri": f"sqlite:///{other}"}))
    local.uri = f"sqlite:///{other}"
    assert local.sync()
    assert [run.data.tags["stage"] for run in local.runs()] == ["a", "b"]
    assert local.arrived(local.runs()[0].info.run_id) == expected(range(5))


# -- the process beside Snakemake


def test_disabled_tracking_writes_nothing(tmp_path: Path) -> None:
    """No folder, no process."""
    tracker = Tracker(tracked(enabled=False), tmp_path)
    tracker.start()
    tracker.end(True)
    assert not list(tmp_path.iterdir())


@pytest.mark.mlflow
@pytest.mark.counts("kills survived")
def test_the_syncer_ends_when_snakemake_is_killed(local: Experiment) -> None:
    """Nobody can tell it, so it watches its standard input; the parent run is ended as killed."""
    code = (
        "import time; from pathlib import Path; from mkdt.jobs.parent_run import Tracker; "
        f"t = Tracker({tracked()!r}, Path({str(local.folder.parents[1])!r})); t.start(); "
        "print(t.syncer.pid, flush=True); time.sleep(60)"
    )
    snakemake = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert snakemake.stdout is not None
    syncer = int(snakemake.stdout.readline())
    wait_for(lambda: (local.folder / "progress.json").is_file())
    snakemake.kill()
    snakemake.communicate()
    wait_for(lambda: not Path(f"/proc/{syncer}").exists() or "Z" in Path(f"/proc/{syncer}/stat").read_text().split()[2])
    assert [run.info.status for run in local.runs()] == ["KILLED"]


def test_one_syncer_at_a_time(
    local: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one waits for the first; where that gets nowhere it says so, and where that ends it sends itself."""
    for name in ("POLL_SECONDS", "LONGEST_WAIT", "DRAIN_SECONDS"):
        monkeypatch.setattr(sync, name, 0.1)
    arguments = ["track", "sync", "--results", str(local.folder.parents[1])]
    run = local.run()
    report(run, range(3))
    run.close("FINISHED")
    with sync.lock(local.folder):
        assert cli.main(arguments) == 1
        assert "not everything could be sent" in capsys.readouterr().out
        assert local.client().get_experiment_by_name("e") is None
        assert local.sync()
        assert cli.main(arguments) == 0
        assert "everything is in MLflow" in capsys.readouterr().out
        (local.folder / tracking.STORE).write_text(json.dumps({"uri": "http://127.0.0.1:9"}))
        assert cli.main(arguments) == 1, "what another store has is not in this one"
        (local.folder / tracking.STORE).write_text(json.dumps({"uri": None}))
    assert cli.main(arguments) == 0


def test_no_recorded_runs_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong folder or name."""
    assert cli.main(["track", "sync", "--results", str(tmp_path), "--experiment", "x"]) == 1
    assert "no recorded runs of experiment 'x'" in capsys.readouterr().err


@pytest.mark.mlflow
@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
def test_no_password_reaches_a_log(tmp_path: Path, server: Server, answers: bool) -> None:
    """Whether the server answers or not; the file that holds the password is its owner's alone."""
    tracker = Tracker(tracked(uri=f"http://me:hush@127.0.0.1:{server.port if answers else 9}"), tmp_path)
    tracker.start()
    tracker.end(True)
    folder = spools(tmp_path, "e")
    assert (folder / tracking.STORE).stat().st_mode & 0o777 == 0o600
    assert ("***@127.0.0.1" in (folder / "sync.log").read_text()) != answers
    for path in tmp_path.rglob("*"):
        assert path.name == tracking.STORE or not path.is_file() or b"hush" not in path.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hush@host/x",
        "postgresql+psycopg2://me:hu@sh@host:5432/db",
        "at https://host/?a=1&password=hush now",
        "http://me:hu/sh@host/x",
        "http://me:hu sh@host",
        "https://host/?api_key=hush&a=1",
        "https://host/ access_key=hush",
        "to host: Authorization: Bearer hush",
        "to host with {'authorization': 'Basic hush'}",
    ],
)
def test_redact(text: str) -> None:
    """Hosts stay readable; every sentence for the user goes through it."""
    for shown in (redact(text), str(UserError(f'config: tracking.uri must be a string, got ["{text}"].'))):
        assert "hu" not in shown
        assert "sh" not in shown
        assert "host" in shown
