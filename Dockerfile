# The daemon, its commands and Envoy. Multi-stage: what compiles stays behind. Nothing of it goes to the network
# when it runs.
#
#     docker build -t penstock .
#
# Where there is no network to build in, `.ci/wheels` before it puts all that is needed into build/wheels.

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
WORKDIR /src
COPY . .
RUN ls build/wheels/penstock-*.whl >/dev/null 2>&1 || .ci/wheels python3
# Only what the daemon and its commands import is compiled: the rest is thousands of files that nobody reads.
RUN python3 -m venv /opt/penstock \
    && /opt/penstock/bin/pip install -q --disable-pip-version-check --no-compile --no-index \
        --find-links build/wheels penstock \
    && /opt/penstock/bin/pip uninstall -q -y setuptools pip \
    && /opt/penstock/bin/penstock run --help >/dev/null \
    && /opt/penstock/bin/python -c 'import penstock.daemon, penstock.inspect, penstock.cli.status, penstock.cli.observe, uvloop'

FROM ${BASE} AS system
# python3, libbpf1 and iproute2 are for the daemon, util-linux (setpriv, prlimit) is for Envoy, procps (sysctl) for `check`.
RUN dpkg-query -W python3 libbpf1 iproute2 util-linux procps >/dev/null 2>&1 || { \
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            python3 libbpf1 iproute2 util-linux procps && rm -rf /var/lib/apt/lists/*; }

# What the demo's parts run in: `--target demo`. Nothing of Penstock is in it, its health check least of all.
FROM system AS demo
COPY examples/compose/app.py /app.py
ENTRYPOINT ["python3", "-u", "/app.py"]

FROM system
COPY --from=build /opt/penstock /opt/penstock
COPY .ci/entrypoint /usr/local/bin/penstock-entrypoint
ENV PATH=/opt/penstock/bin:$PATH
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["penstock", "status", "--wait", "3"]
ENTRYPOINT ["penstock-entrypoint"]
CMD ["run", "--config", "/etc/penstock", "--docker"]
