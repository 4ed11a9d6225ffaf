"""The metrics of a server, under TensorFlow Serving's names, in the text format of Prometheus.

Ours rather than the Prometheus client's: that one appends `_total` to counters, which TensorFlow Serving's dashboards lack.
"""

from __future__ import annotations

import bisect
import functools
import threading
from collections import defaultdict

UNKNOWN_MODEL = "(unknown)"
"""The label of every model name that is not served: names that strangers make up must not become time series."""
REQUESTS = ":tensorflow:serving:request_count"
LATENCY = ":tensorflow:serving:request_latency"
RUNTIME = ":tensorflow:serving:runtime_latency"
BATCH_SIZE = ":tensorflow:serving:batching_session:processed_batch_size"
LOADS = ":tensorflow:cc:saved_model:load_attempt_count"
HELP = {
    REQUESTS: "Requests, by how they ended.",
    LATENCY: "Microseconds from a request to its answer.",
    RUNTIME: "Microseconds in the model.",
    BATCH_SIZE: "Rows of a batch.",
    LOADS: "Attempts to load a version.",
}
BUCKETS = tuple(10 * 1.8**i for i in range(33))
"""Upper bounds, as TensorFlow Serving's: from 10 microseconds to about 40 minutes."""


class Metrics:
    """Counters and histograms, safe to change from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._histograms: dict[tuple[str, str], list[float]] = {}

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self._counts[name, _labels(tuple(labels.items()))] += 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        with self._lock:
            key = name, _labels(tuple(labels.items()))
            histogram = self._histograms.setdefault(
                key, [0.0] * (len(BUCKETS) + 2)
            )  # a count for each bucket, and the sum
            histogram[bisect.bisect_left(BUCKETS, value)] += 1
            histogram[-1] += value

    def text(self) -> str:
        """All metrics in the text format of Prometheus."""
        with self._lock:
            counts, histograms = dict(self._counts), {key: list(values) for key, values in self._histograms.items()}
        lines: list[str] = []
        for name in sorted({name for name, _ in counts}):
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} counter"]
            lines += [f"{name}{{{labels}}} {n}" for (one, labels), n in sorted(counts.items()) if one == name]
        for name in sorted({name for name, _ in histograms}):
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} histogram"]
            for (one, labels), values in sorted(histograms.items()):
                if one == name:
                    total = 0.0
                    for bound, number in zip((*BUCKETS, float("inf")), values, strict=False):
                        total += number
                        shown = "+Inf" if bound == float("inf") else f"{bound:g}"
                        lines.append(f'{name}_bucket{{{labels}{"," if labels else ""}le="{shown}"}} {total:g}')
                    lines += [f"{name}_sum{{{labels}}} {values[-1]:g}", f"{name}_count{{{labels}}} {total:g}"]
        return "\n".join(lines) + "\n"


@functools.lru_cache(maxsize=1024)
def _labels(pairs: tuple[tuple[str, str], ...]) -> str:
    escape = lambda value: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")  # noqa: E731
    return ",".join(f'{name}="{escape(value)}"' for name, value in sorted(pairs))
