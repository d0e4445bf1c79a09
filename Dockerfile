# slimserve on CPU. Build: docker build -t slimserve .   Run: see docs/guides/docker.md
FROM python:3.11-slim AS build

# PyPI's Linux torch carries some gigabytes of CUDA. This index has the build without it; its version has the suffix
# +cpu and sorts above the plain one, so pip prefers it. Behind a mirror: --build-arg TORCH_INDEX=https://mirror/cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
RUN python -m venv /opt/slimserve
ENV PATH=/opt/slimserve/bin:$PATH

# torch alone first: this layer is large and changes only with the lock.
COPY requirements.lock ./
RUN pip install --constraint requirements.lock --extra-index-url "${TORCH_INDEX}" torch

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
RUN pip install --constraint requirements.lock --extra-index-url "${TORCH_INDEX}" .


FROM python:3.11-slim

RUN useradd --system --uid 10001 --create-home --home-dir /home/slimserve slimserve \
    && install -d -o slimserve -g slimserve /data
COPY --from=build /opt/slimserve /opt/slimserve

# 0.0.0.0 is the container's own network. The server refuses it without SLIMSERVE_API_KEYS.
ENV PATH=/opt/slimserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SLIMSERVE_HOST=0.0.0.0 \
    SLIMSERVE_DATA_DIR=/data

USER 10001
WORKDIR /home/slimserve
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('SLIMSERVE_PORT', '8080') + '/healthz', timeout=4)"]

ENTRYPOINT ["slimserve"]
CMD ["serve"]
