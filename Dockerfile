# One service in one small image:
#
#   docker build --build-arg SERVICE=fraud_detection -t fraud-detection .
#   docker run -v fraud-state:/var/lib/flowkit fraud-detection worker --broker embedded:///var/lib/flowkit/broker
#   docker run fraud-detection --help
#
# PYTHON is the tag of the base image. Both stages need the same one: the second takes over the first one's packages.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG SERVICE=fraud_detection
WORKDIR /src
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY . .
RUN [[ -f "services/${SERVICE:?}/app.py" ]] || { echo "SERVICE=${SERVICE}: no services/${SERVICE}/app.py" >&2; exit 1; }
# pip stays behind with /tools: it installs into the other environment from outside.
RUN python3 -m venv /tools; python3 -m venv --without-pip /opt/flowkit
# An extra named after the service, if there is one, holds what it needs beyond the core (names of extras have dashes).
RUN --mount=type=cache,target=/root/.cache/pip \
    /tools/bin/pip install -q -c .ci/requirements.txt hatchling; \
    /tools/bin/pip wheel -q --no-deps --no-build-isolation -w /wheels .; \
    wheel=$(echo /wheels/*.whl); \
    /tools/bin/pip --python /opt/flowkit/bin/python install -q -c .ci/requirements.txt "${wheel}[${SERVICE//_/-}]"; \
    mkdir -p /app/services; \
    cp services/__init__.py /app/services/; \
    cp -R "services/${SERVICE}" /app/services/; \
    /opt/flowkit/bin/python -m compileall -q /app

FROM python:${PYTHON}
ARG SERVICE=fraud_detection
# Nothing is installed in a running container: the base image's pip goes, and a process cannot write what it runs.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* && \
    useradd --uid 10001 --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin flowkit && \
    install -d -o flowkit -g flowkit -m 0750 /var/lib/flowkit
COPY --from=build /opt/flowkit /opt/flowkit
COPY --from=build /app /app
# Every option of the command line can be set by environment; these two make `worker` and `health` work without any.
ENV PATH=/opt/flowkit/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    FLOWKIT_APP=services.${SERVICE}.app \
    FLOWKIT_STATE=/var/lib/flowkit
WORKDIR /app
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
VOLUME /var/lib/flowkit
# The worker drains, commits and leaves on SIGTERM. Exec form: no shell stands between it and the signal.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["flowkit", "health"]
ENTRYPOINT ["flowkit"]
CMD ["worker"]
