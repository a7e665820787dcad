"""The processes of one job: this one is rank 0, the others are its children, each with a share of every batch.

Launched here and not by torchrun, because the job itself stays rank 0: it alone has the log, the tracking, the resume
state and the signals. The others get a function and its arguments through a pipe, follow rank 0 from collective to
collective, and die with it. One machine only.
"""

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mkdt.errors import UserError

log = logging.getLogger("mkdt")

Result = TypeVar("Result")

# A lost process is noticed at its pipe; this only bounds a wait that nothing else ends. Rank 0 may look at the
# representation or write a resume state meanwhile.
COLLECTIVE_TIMEOUT = timedelta(hours=1)
# What rank 0 gets to notice a lost process by itself: gloo raises at the next collective, NCCL may wait for ever.
GRACE_SECONDS = 60.0
# Inherited by the other processes: SLURM signals all of a job, a terminal all of a process group, and only rank 0 may
# decide where to stop.
DEAF_TO = {signal.SIGTERM, signal.SIGINT}
FOLLOW = "import sys; from mkdt.teacher.distributed import follow; follow(int(sys.argv[1]))"


@dataclass(frozen=True)
class Processes:
    """The processes that share a batch, as seen from one of them; alone, every method is the identity.

    Attributes:
        rank: which one this is; 0 is the job's own process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch, ``rows`` [n,...] with n divisible by ``size``: [n/size,...]."""
        return rows.chunk(self.size)[self.rank]

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes, [n/size,...] each, joined in rank order: [n,...]; with a gradient."""
        return part if self.size == 1 else cast(Tensor, _Gather.apply(part, self))

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model to call in training: equal weights on all processes, batch norm over the whole batch, mean gradients.

        ``model`` itself is changed in place: it holds the same parameters and the synchronised statistics under the
        names that it had. Call it before the optimiser is made.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        if device.type == "cpu":
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.__class__ = _CpuSyncBatchNorm
        else:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # After the first step DDP sorts the gradients into other buckets, unless it looks for unused parameters. With
        # three processes or more the place in a bucket decides the order of a sum: a resumed run would get other bits.
        return DistributedDataParallel(
            model,
            device_ids=None if device.type == "cpu" else [device.index],
            find_unused_parameters=True,
        )


ALONE = Processes()


class _Gather(torch.autograd.Function):
    """All-gather of equal parts; backward adds up what all processes want changed, as for the sum of their losses."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(processes.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return ctx.processes.share(gradient), None


class _CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, of equal size; torch's own works on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised [n,C,...]; in training by the statistics of the joint batch, which move the running ones."""
        if not self.training:
            return super().forward(input)
        processes = Processes(dist.get_rank(), dist.get_world_size())
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        mean = processes.gather(input.mean(axes)[None]).mean(0)
        centred = input - mean.view(shape)
        variance = processes.gather(centred.square().mean(axes)[None]).mean(0)
        count = processes.size * input.numel() / input.shape[1]
        with torch.no_grad():
            momentum = cast(float, self.momentum)
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean, momentum)
            self.get_buffer("running_var").lerp_(variance * count / (count - 1), momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return centred * scale.view(shape) + self.bias.view(shape)


def run(
    function: Callable[..., Result], size: int, device: torch.device, shared: Mapping[str, Any], own: Mapping[str, Any]
) -> Result:
    """Call ``function`` in ``size`` processes at once and return what it returns in this one.

    Args:
        function: importable by name; takes ``device`` and ``processes`` beside the arguments below.
        size: number of processes; 1 starts none.
        device: ``cuda`` takes as many GPUs, ``cpu`` shares this process's threads among the processes.
        shared: arguments of every process; picklable.
        own: further arguments of this process only.

    Raises:
        UserError: there are too few GPUs, or a process was lost, which ends all.
    """
    if size == 1:
        return function(**shared, **own, device=device, processes=ALONE)
    if device.type == "cuda" and torch.cuda.device_count() < size:
        raise UserError(
            f"teacher.devices is {size}, but torch sees {torch.cuda.device_count()} GPU(s) here: lower it, or ask for "
            "more (on one machine `--resources gpu=N`, see docs/multi_gpu.md)."
        )
    threads = torch.get_num_threads()
    children = _Children(size)
    try:
        torch.set_num_threads(max(1, threads // size))
        # Bound to this machine: whoever reaches the store could take part.
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        store = _store(port, listener.detach())
        children.start(pickle.dumps((function, size, device.type, dict(shared), port, _numerics())))
        device = _join(0, size, device.type, store)
        log.info("%d processes on %s, %d thread(s) each", size, device.type, torch.get_num_threads())
        result = function(**shared, **own, device=device, processes=Processes(0, size))
        _leave()
        children.wait()
        return result
    except Exception as error:
        reason = None if isinstance(error, UserError) else children.reason()
        if reason is None:
            raise
        raise UserError(reason) from error
    finally:
        children.kill()
        if dist.is_initialized() and device.type == "cpu":  # NCCL would wait for those that are dead
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def follow(rank: int) -> None:
    """What the other processes do: read the work from stdin, take part in it, and end when stdin ends."""
    # What libraries print goes to stderr: stdout is the pipe on which rank 0 waits for the outcome.
    outcome = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        function, size, kind, shared, port, numerics = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_rank_0, daemon=True).start()
        _set_numerics(**numerics)
        store = _store(port)
        print("ready", file=outcome, flush=True)
        device = _join(rank, size, kind, store)
        function(**shared, device=device, processes=Processes(rank, size))
        _leave()
    except BaseException as error:
        known = isinstance(error, UserError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        print(json.dumps([message, "" if known else traceback.format_exc()]), file=outcome, flush=True)
        os._exit(1)  # at once: rank 0 is told, and a normal exit may wait for collectives that never come


def _end_with_rank_0() -> None:
    os.read(0, 1)  # nothing more is ever written: it returns when rank 0 is gone, however it went
    os._exit(1)


def _store(port: int, listener: int | None = None) -> Any:
    """The table through which the processes find each other; rank 0 serves it on its socket ``listener``."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1",
        port,
        is_master=listener is not None,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def _join(rank: int, size: int, kind: str, store: Any) -> torch.device:
    """Enter the process group; the device of this rank."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if kind == "cuda" else None,
    )
    return device


def _leave() -> None:
    """Leave the process group together: with NCCL, one that leaves earlier can hold up the others."""
    dist.barrier()
    dist.destroy_process_group()


def _numerics() -> dict[str, Any]:
    """What rank 0 was told about threads and precision; the others must compute alike."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
    }


def _set_numerics(threads: int, deterministic: bool, products: bool, convolutions: bool) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions


class _Children:
    """The other processes as rank 0 holds them: a pipe to each that ends them, and one from each that says how it went."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lost: list[str] = []
        self._noticed, self._over = threading.Event(), threading.Event()

    def start(self, work: bytes) -> None:
        """Start the processes, hand them the work, and wait until each has it.

        Raises:
            UserError: one ended before that.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
        try:
            for rank in range(1, self.size):
                command = [sys.executable, "-c", FOLLOW, str(rank)]
                self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for rank, process in enumerate(self._processes, 1):
            stdin, stdout = _pipes(process)
            with suppress(BrokenPipeError):  # it is gone: the next line says why
                stdin.write(work)
                stdin.flush()
            line = stdout.readline()
            if line != b"ready\n":
                raise UserError(self._describe(rank, process, line))
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        line = _pipes(process)[1].readline()  # returns when it fails or ends
        if self._over.is_set() or (not line and process.wait() == 0):
            return
        # Those killed first: whoever misses them in a collective fails next.
        self._lost.insert(len(self._lost) if line else 0, self._describe(rank, process, line))
        self._noticed.set()
        if not self._over.wait(GRACE_SECONDS):
            log.error("%s", self._lost[0])
            print(self._lost[0], file=sys.stderr, flush=True)
            os._exit(1)  # rank 0 hangs in a collective, from which no exception leads

    def _describe(self, rank: int, process: "subprocess.Popen[bytes]", line: bytes) -> str:
        name = f"rank {rank} of {self.size} processes"
        if line:
            message, details = json.loads(line)
            if details:
                log.error("%s:\n%s", name, details)
            return f"{name} failed: {message}"
        code = process.wait()
        if code == -signal.SIGKILL:
            return f"{name} was killed (SIGKILL): was there too little memory?"
        return f"{name} was killed by {signal.Signals(-code).name}." if code < 0 else f"{name} ended with code {code}."

    def reason(self) -> str | None:
        """Why rank 0 cannot go on: what was lost first; None where all others are well and the fault is its own."""
        # A lost process is heard of here and at the collective, in either order.
        if self._noticed.wait(2):
            time.sleep(0.1)
        return self._lost[0] if self._lost else None

    def wait(self) -> None:
        """Let the processes end by themselves after their work."""
        self._over.set()
        for process in self._processes:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("a process did not end after its work: killed.")

    def kill(self) -> None:
        """End them all."""
        self._over.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in _pipes(process):
                with suppress(BrokenPipeError):  # work that it never took
                    pipe.close()


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    return cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
