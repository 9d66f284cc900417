# docker build -t alexnet .                                              for NVIDIA GPUs
# docker build -t alexnet --build-arg BASE=python:3.12-slim .            for CPUs
# docker run --rm --gpus all --ipc host -v "$PWD:/work" alexnet train photos/
ARG BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime
FROM ${BASE}
# The C++ kernels are compiled when they are first used.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /alexnet/
COPY src /alexnet/src
RUN pip install --no-cache-dir '/alexnet[explain,search,export,serve,parquet,keras,remote,gpu]'
WORKDIR /work
ENTRYPOINT ["alexnet"]
