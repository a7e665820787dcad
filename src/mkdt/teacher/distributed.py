"""Run a function in several processes of one machine, each with a share of every batch.

The job's own process is rank 0: it alone has the log, the tracking, the resume state and the signal handlers. The other
processes are its children. They run the same function, ignore signals and end when rank 0 does.
"""

import atexit
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, start_processes
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mkdt.errors import UserError
from mkdt.networks.precision import compute_in, current

log = logging.getLogger("mkdt")

Result = TypeVar("Result")

# Only an upper bound: a lost process is noticed by `_Children`. Rank 0 may take long between two collectives.
COLLECTIVE_TIMEOUT = timedelta(hours=1)
# A lost process makes the next collective of rank 0 raise with gloo, but may block it for ever with NCCL. After this
# time rank 0 is ended.
GRACE_SECONDS = 60.0
KILL_SECONDS = 0.5  # torch gives the others so long to end when one has failed
# SLURM signals all processes of a job, a terminal all of a process group; only rank 0 decides when to stop.
BLOCKED_SIGNALS = {signal.SIGTERM, signal.SIGINT}


@dataclass(frozen=True)
class Processes:
    """The processes that share a batch, as seen from one of them. With one process, every method is the identity.

    Attributes:
        rank: number of this process; 0 is the job's own process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part [n/size,...] of a batch ``rows`` [n,...]; n must be divisible by ``size``."""
        return rows.chunk(self.size)[self.rank]

    def gather(self, part: Tensor) -> Tensor:
        """Join the parts [n/size,...] of all processes in rank order: [n,...], differentiable."""
        return part if self.size == 1 else cast(Tensor, _Gather.apply(part, self))

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training: equal weights everywhere, batch norm over the joint batch, mean gradients.

        ``model`` is changed in place; its parameters and its synchronised statistics keep their names. Call this before
        making the optimiser.
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
        # DDP rearranges its gradient buckets after the first step unless it looks for unused parameters. With three or
        # more processes the buckets decide the order of a sum, so a resumed run would end with other bits.
        return DistributedDataParallel(
            model,
            device_ids=None if device.type == "cpu" else [device.index],
            find_unused_parameters=True,
        )


ALONE = Processes()


class _Gather(torch.autograd.Function):
    """All-gather of equal parts. Backward sums the gradients of all processes, as for the sum of their losses."""

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
    """Batch norm over the joint batch of all processes. ``torch.nn.SyncBatchNorm`` works on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [n,C,...]; in training by the statistics of the joint batch, and update the running statistics."""
        if not self.training:
            return super().forward(input)
        kind = input.dtype
        input = input.to(torch.promote_types(kind, torch.float32))  # statistics of bfloat16 would have two digits
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
        return (centred * scale.view(shape) + self.bias.view(shape)).to(kind)


def run(
    function: Callable[..., Result], size: int, device: torch.device, shared: Mapping[str, Any], own: Mapping[str, Any]
) -> Result:
    """Call ``function`` in ``size`` processes at once and return its result in this one.

    Args:
        function: importable by name; takes ``device`` and ``processes`` besides the arguments below.
        size: number of processes; 1 starts none.
        device: ``cuda`` uses one GPU per process; ``cpu`` divides this process's threads among the processes.
        shared: arguments of every process; picklable.
        own: further arguments of this process only.

    Raises:
        UserError: there are too few GPUs, or another process failed; all processes have ended then.
    """
    if size == 1:
        return function(**shared, **own, device=device, processes=ALONE)
    if device.type == "cuda" and torch.cuda.device_count() < size:
        raise UserError(
            f"teacher.devices is {size}, but torch sees {torch.cuda.device_count()} GPU(s) here: lower it, or ask for "
            "more (docs/multi_gpu.md)."
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // size))
    # Bound to this machine: whoever reaches the store could take part.
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = _store(port, listener.detach())
    # As bytes, since multiprocessing would share the memory of tensors, and each process needs a copy of its own.
    work = pickle.dumps((function, device.type, dict(shared), _numerics()))
    children = _Children(size, port)
    try:
        children.send(work)
        device = _join(0, size, device.type, store)
        log.info("%d processes on %s, %d thread(s) each", size, device.type, torch.get_num_threads())
        result = function(**shared, **own, device=device, processes=Processes(0, size))
        _leave()
        children.end(GRACE_SECONDS)
        return result
    except Exception as error:
        reason = None if isinstance(error, UserError) else children.failure()
        if reason is None:
            raise
        raise UserError(reason) from error
    finally:
        children.end()
        if dist.is_initialized() and device.type == "cpu":  # NCCL would wait for dead processes
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _follow(index: int, size: int, port: int, inboxes: Sequence[Connection]) -> None:
    """Do the work of rank ``index + 1``, which arrives in its inbox."""
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    for inbox in inboxes:
        if inbox is not inboxes[index]:
            inbox.close()
    try:
        function, kind, shared, numerics = pickle.loads(inboxes[index].recv_bytes())
        _set_numerics(**numerics)
        device = _join(index + 1, size, kind, _store(port))
        function(**shared, device=device, processes=Processes(index + 1, size))
        _leave()
    except Exception:
        # torch reports the error; then end at once, since a normal exit may wait for collectives that never come.
        atexit.register(os._exit, 1)
        raise


def _end_with_rank_0() -> None:
    rank_0 = multiprocessing.parent_process()
    assert rank_0 is not None
    rank_0.join()  # waits at a pipe that closes when rank 0 ends, even by SIGKILL
    os._exit(1)


def _store(port: int, listener: int | None = None) -> Any:
    """Connect to the key-value store by which the processes find each other; rank 0 serves it on its ``listener``."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1",
        port,
        is_master=listener is not None,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def _join(rank: int, size: int, kind: str, store: Any) -> torch.device:
    """Enter the process group; return the device of this rank."""
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
    """Leave the process group together: with NCCL, a process that leaves earlier can block the others."""
    dist.barrier()
    dist.destroy_process_group()


def _numerics() -> dict[str, Any]:
    """Return rank 0's settings of threads and precision, which the others must share."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": current(),
    }


def _set_numerics(threads: int, deterministic: bool, precision: str) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    compute_in(precision)


class _Children:
    """The other processes, as rank 0 sees them. A thread waits for the first that fails."""

    def __init__(self, size: int, port: int) -> None:
        """Start ``size - 1`` processes that wait for their work."""
        self._size, self._reason = size, ""
        inboxes, self._outboxes = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(size - 1)), strict=True)
        self._failed, self._over = threading.Event(), threading.Event()
        self._context = _start(size, port, inboxes)
        for inbox in inboxes:
            inbox.close()  # so that writing to a process that died fails instead of waiting
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def send(self, work: bytes) -> None:
        """Send the pickled work to each process; one that died is the watcher's business.

        It is no argument of the start, since multiprocessing would wait for ever for a process that dies before it has read it.
        """
        for outbox in self._outboxes:
            with suppress(OSError), outbox:
                outbox.send_bytes(work)

    def _watch(self) -> None:
        try:
            while not self._context.join(grace_period=KILL_SECONDS):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            if self._over.is_set():
                return
            self._reason = _reason(error, self._size)
            self._failed.set()
            if not self._over.wait(GRACE_SECONDS):
                log.error("%s", self._reason)
                print(self._reason, file=sys.stderr, flush=True)
                os._exit(1)  # no exception reaches rank 0 while it is blocked in a collective

    def failure(self) -> str | None:
        """Return why the first process failed; None if all run, so that the fault is rank 0's own."""
        # The collective of rank 0 may fail before the end of the process is noticed.
        return self._reason if self._failed.wait(2 + 2 * KILL_SECONDS) else None

    def end(self, patience: float = 0) -> None:
        """Give the processes some seconds to end by themselves, then kill them."""
        self._over.set()
        self._watcher.join(patience)
        for process in self._context.processes:
            process.kill()
        self._watcher.join()
        for process in self._context.processes:
            process.join()


def _start(size: int, port: int, inboxes: Sequence[Connection]) -> ProcessContext:
    """Start the processes with blocked signals. They must not import the main module: the job's script would run again."""
    resource_tracker.ensure_running()  # else multiprocessing starts it below, which unblocks the signals
    main = sys.modules["__main__"].__dict__
    path = main.pop("__file__", None)
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        context = start_processes(_follow, (size, port, inboxes), size - 1, join=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        if path is not None:
            main["__file__"] = path
    return cast(ProcessContext, context)


def _reason(error: ProcessExitedException | ProcessRaisedException, size: int) -> str:
    """Say in one sentence which process failed and why; a traceback goes to the log."""
    name = f"rank {error.error_index + 1} of {size} processes"
    if isinstance(error, ProcessRaisedException):
        log.error("%s:\n%s", name, error)
        return f"{name} failed: {str(error).splitlines()[-1].removeprefix('mkdt.errors.UserError: ')}"
    if error.signal_name:
        hint = ": was there too little memory?" if error.signal_name == "SIGKILL" else "."
        return f"{name} was killed ({error.signal_name}){hint}"
    return f"{name} ended with code {error.exit_code}."
