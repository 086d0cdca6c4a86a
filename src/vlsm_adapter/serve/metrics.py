"""What the service tells Prometheus; a registry of its own, so that nothing else in the process is told with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from vlsm_adapter.serve.caches import ByteCache

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Counters, gauges and histograms; names begin with ``vlsm_``.

    Args:
        caches: by name; their sizes and hits are read when Prometheus asks.
        waiting: how many questions wait now.
        adapters: how many are loaded now.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self, caches: dict[str, ByteCache[Any, Any]], waiting: Callable[[], int], adapters: Callable[[], int]
    ) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self._seconds = Histogram(
            "vlsm_request_seconds",
            "From a request's first byte to the last of its answer.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.encode = Histogram("vlsm_encode_seconds", "Encoding a picture.", buckets=_SECONDS, registry=registry)
        self.decode = Histogram(
            "vlsm_decode_seconds", "Decoding prompts answered together.", buckets=_SECONDS, registry=registry
        )
        self._waited = Histogram(
            "vlsm_queue_wait_seconds", "From a question to its turn.", buckets=_SECONDS, registry=registry
        )
        self._together = Histogram(
            "vlsm_questions_together",
            "Questions answered in one pass.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self._refused = Counter(
            "vlsm_refused_requests_total", "Requests that got no answer.", ("status",), registry=registry
        )
        self.under_way = Gauge("vlsm_requests_under_way", "Requests being answered.", registry=registry)
        self.body_bytes = Gauge("vlsm_request_body_bytes", "Bodies held in memory.", registry=registry)
        self.corrections = Counter("vlsm_corrections_saved_total", "Corrected masks saved.", registry=registry)
        Gauge("vlsm_questions_waiting", "Questions in the queue.", registry=registry).set_function(waiting)
        Gauge("vlsm_adapters_loaded", "Adapters in memory.", registry=registry).set_function(adapters)
        registry.register(_Caches(caches))
        # Memory of the process among it: process_resident_memory_bytes.
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request came to its end. ``route`` is a path of the API's, never what the client sent."""
        self._seconds.labels(method if method in METHODS else "other", route, str(status)).observe(seconds)
        if status >= 400:
            self._refused.labels(str(status)).inc()

    def batch(self, count: int, waited: Sequence[float]) -> None:
        """The model took ``count`` questions, which had waited so many seconds each."""
        self._together.observe(count)
        for seconds in waited:
            self._waited.observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Caches(Collector):
    def __init__(self, caches: dict[str, ByteCache[Any, Any]]) -> None:
        self._caches = caches

    def collect(self) -> Any:
        held = GaugeMetricFamily("vlsm_cache_bytes", "Of what a cache keeps.", labels=["cache"])
        entries = GaugeMetricFamily("vlsm_cache_entries", "Things a cache keeps.", labels=["cache"])
        hits = CounterMetricFamily("vlsm_cache_hits", "Found in a cache.", labels=["cache"])
        misses = CounterMetricFamily("vlsm_cache_misses", "Not found in a cache.", labels=["cache"])
        for name, cache in self._caches.items():
            held.add_metric([name], cache.bytes)
            entries.add_metric([name], len(cache))
            hits.add_metric([name], cache.hits)
            misses.add_metric([name], cache.misses)
        return [held, entries, hits, misses]
