# slimserve on NVIDIA GPUs. Build from the repository's root: docker build -f docker/gpu.Dockerfile -t slimserve:gpu .
# The driver comes from the host, by the NVIDIA container toolkit; the CUDA libraries come with PyPI's torch.
FROM python:3.11-slim AS build

# Empty takes PyPI's build of torch; another CUDA version: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX}

WORKDIR /src
RUN python -m venv /opt/slimserve
ENV PATH=/opt/slimserve/bin:$PATH

COPY requirements.lock ./
RUN pip install --constraint requirements.lock torch

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
RUN pip install --constraint requirements.lock ".[cuda]"


FROM python:3.11-slim

# Triton compiles a small C launcher for each kernel, at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /home/slimserve slimserve \
    && install -d -o slimserve -g slimserve /data
COPY --from=build /opt/slimserve /opt/slimserve

ENV PATH=/opt/slimserve/bin:$PATH \
    CC=gcc \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    SLIMSERVE_HOST=0.0.0.0 \
    SLIMSERVE_DATA_DIR=/data \
    TRITON_CACHE_DIR=/data/triton

USER 10001
WORKDIR /home/slimserve
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('SLIMSERVE_PORT', '8080') + '/healthz', timeout=4)"]

ENTRYPOINT ["slimserve"]
CMD ["serve"]
