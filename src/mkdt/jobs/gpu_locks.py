"""Which GPUs of the machine a job has: by locks of files, since jobs of several runs know nothing of each other.

The kernel drops the locks when the job ends for any reason. They count for one user on one machine, among all that have the same
temporary directory and name a GPU in the same way (by number or by UUID).
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mkdt.config.machine_gpus import machine_gpus
from mkdt.errors import UserError

log = logging.getLogger("mkdt")

LOOK_SECONDS = 1.0  # between two looks for a free GPU
VISIBLE = "CUDA_VISIBLE_DEVICES"


@contextmanager
def own_gpus(count: int, jobs_per_gpu: int = 1) -> Iterator[list[str]]:
    """Wait for ``count`` GPUs that are free, and let this process see these and no others, until the end of the context.

    Enter it before CUDA is asked for anything. Where there are none, nothing changes.

    Args:
        count: how many; of a machine with fewer, all. With 0 the process sees none.
        jobs_per_gpu: how many jobs may use one GPU. A GPU is shared only with jobs whose number is above 1, too.

    Yields:
        the GPUs, as ``machine_gpus`` names them; empty where nothing is locked.

    Raises:
        UserError: the lock files cannot be written.
    """
    gpus = machine_gpus()
    if not gpus:
        yield []
        return
    before = os.environ.get(VISIBLE)
    with ExitStack() as locks:
        taken = _wait(gpus, min(count, len(gpus)), jobs_per_gpu, _folder(), locks) if count else []
        os.environ[VISIBLE] = ",".join(taken)
        try:
            yield taken
        finally:
            os.environ.pop(VISIBLE)
            os.environ.update({VISIBLE: before} if before is not None else {})


def _folder() -> Path:
    """Return this user's folder of lock files; numbers of GPUs that SLURM allotted are the allocation's own."""
    slurm_job = os.environ.get("SLURM_JOB_ID")
    scope = f"-{slurm_job}" if slurm_job and VISIBLE in os.environ else ""
    return Path(tempfile.gettempdir()) / f"mkdt-gpus-{os.getuid()}{scope}"


def _wait(gpus: Sequence[str], count: int, jobs_per_gpu: int, folder: Path, locks: ExitStack) -> list[str]:
    """Return ``count`` GPUs once they are free; ``locks`` holds them."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        said = False
        while True:
            # One job looks at a time, so that two that want several do not hold what the other waits for.
            with ExitStack() as look, ExitStack() as held:
                _lock(folder / "look", look, fcntl.LOCK_EX)
                taken = _free(gpus, count, jobs_per_gpu, folder, held)
                if len(taken) == count:
                    locks.push(held.pop_all())
                    return taken
            if not said:
                log.info("waits for %d free GPU(s) of %s", count, ", ".join(gpus))
            said = True
            time.sleep(LOOK_SECONDS)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the locks of GPUs ({error}): free it, or set TMPDIR.") from error


def _free(gpus: Sequence[str], count: int, jobs_per_gpu: int, folder: Path, held: ExitStack) -> list[str]:
    """Lock at most ``count`` GPUs, those with fewest jobs first, and return them."""
    taken: list[str] = []
    for place in range(jobs_per_gpu):
        for gpu in gpus:
            if len(taken) < count and gpu not in taken:
                with ExitStack() as both:
                    kind = fcntl.LOCK_EX if jobs_per_gpu == 1 else fcntl.LOCK_SH
                    if _lock(folder / gpu, both, kind | fcntl.LOCK_NB) and _lock(
                        folder / f"{gpu}.{place}", both, fcntl.LOCK_EX | fcntl.LOCK_NB
                    ):
                        held.push(both.pop_all())
                        taken.append(gpu)
    return taken


def _lock(file: Path, held: ExitStack, kind: int) -> bool:
    """Lock a file until ``held`` ends; return False where another job has it."""
    opened = held.enter_context(file.open("a"))
    try:
        fcntl.flock(opened, kind)
    except BlockingIOError:
        return False
    os.utime(opened.fileno())  # a cleaner of temporary directories removes what is old
    return True
