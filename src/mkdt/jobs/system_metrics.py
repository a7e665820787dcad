"""Use of CPU, memory and GPU while a job runs."""

import sys
from contextlib import suppress

import psutil


class Sampler:
    """Measures this machine and, in the metrics named ``process``, this process. The names are MLflow's."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        psutil.cpu_percent()
        self._process.cpu_percent()

    def __call__(self) -> dict[str, float]:
        """Return CPU use since the last call in %, memory in MB (1e6 bytes) and in %, and the GPU's if torch uses one."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_initialized():
            device = cuda.current_device()
            free, total = cuda.mem_get_info(device)
            values[f"gpu_{device}_memory_usage_megabytes"] = (total - free) / 1e6
            values[f"gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
            with suppress(Exception):  # a driver without these counters
                values[f"gpu_{device}_utilization_percentage"] = cuda.utilization(device)
                values[f"gpu_{device}_power_usage_watts"] = cuda.power_draw(device) / 1000
        return {key: round(value, 1) for key, value in values.items()}
