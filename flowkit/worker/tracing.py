"""OpenTelemetry traces (the extra `otel`): a span for each commit and each batch, as far as they are sampled.

On if the extra is installed and OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT, or FLOWKIT_OTEL=1) is set. The
SDK's own variables say the rest: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER. Without a sampler
of the user's one trace in a hundred is taken: a busy task has hundreds of batches a second.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flowkit.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
RATIO = 0.01
LAST_SECONDS = 2.0
_NO = ("", "0", "false", "no", "off")


class Tracing:
    """Makes spans with a provider of OpenTelemetry's API. Spans are made when what they tell of is over."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._tracer = provider.get_tracer("flowkit")

    def commit(
        self, task: str, number: int, records: int, size: int | None, began_ns: int, error: BaseException | None
    ) -> None:
        """A commit, from its cut to its end. `size` (bytes) is that of its frame, if the store tells."""
        facts: dict[str, Any] = {"flowkit.task": task, "flowkit.commit": number, "flowkit.records": records}
        if size is not None:
            facts["flowkit.bytes"] = size
        self._span("flowkit.commit", facts, began_ns, error)

    def batch(self, task: str, topic: str, split: str, records: int, began_ns: int) -> None:
        """Records of one split that were handled together."""
        facts = {"flowkit.task": task, "flowkit.topic": topic, "flowkit.split": split, "flowkit.records": records}
        self._span("flowkit.batch", facts, began_ns, None)

    def _span(self, name: str, facts: dict[str, Any], began_ns: int, error: BaseException | None) -> None:
        span = self._tracer.start_span(name, start_time=began_ns, attributes=facts)
        if error is not None:
            from opentelemetry.trace import StatusCode

            span.record_exception(error)
            span.set_status(StatusCode.ERROR, str(error))
        span.end(time.time_ns())


@contextmanager
def tracing_from_environment(app: str, environ: Mapping[str, str] | None = None) -> Iterator[Tracing | None]:
    """Traces as the environment wants them, sent to its OTLP endpoint by HTTP; None if it wants none.

    Raises ConfigError if FLOWKIT_OTEL wants them and the extra is not installed. An endpoint alone may be meant for
    other software of the same container, and is no error then.
    """
    found = os.environ if environ is None else environ
    told = found.get("FLOWKIT_OTEL")
    wanted = told is not None and told.lower() not in _NO
    off = told is not None and not wanted and told != ""
    if off or not (wanted or any(found.get(name) for name in ENDPOINTS)):
        yield None
        return
    if not _installed():
        if wanted:
            raise ConfigError("FLOWKIT_OTEL is set, but OpenTelemetry is not installed: pip install 'flowkit[otel]'")
        yield None
        return
    provider = _provider(app, found)
    try:
        yield Tracing(provider)
    finally:
        # It sends what is left; a collector that does not answer must not use up the time that a stop may take.
        ending = threading.Thread(target=provider.shutdown, name="flowkit-traces", daemon=True)
        ending.start()
        ending.join(LAST_SECONDS)


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.sdk") is not None and find_spec("opentelemetry.exporter.otlp") is not None
    except ModuleNotFoundError:
        return False


def _provider(app: str, found: Mapping[str, str]) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    # What the environment says of service and sampler counts more than what we would take.
    service = {} if found.get("OTEL_SERVICE_NAME") else {"service.name": app}
    sampler = None if found.get("OTEL_TRACES_SAMPLER") else ParentBased(TraceIdRatioBased(RATIO))
    provider = TracerProvider(resource=Resource.create(service), sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
