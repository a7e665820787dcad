# docker build --tag mkdt .                                                      the CPU build of torch
# docker build --tag mkdt --build-arg INDEX=https://pypi.org/simple .            the CUDA build (6 GB)
# docs/cluster.md says how to run it.
FROM python:3.12-slim
ARG INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /mkdt
COPY Snakefile Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY config config
COPY workflow workflow
COPY src src
RUN ln -s workflow/profiles profiles
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --extra-index-url "$INDEX" --constraint constraints.txt --editable .
# With `--user`, nothing below the home folder of root can be written.
ENV HOME=/tmp
CMD ["mkdt", "run", "--cores", "all"]
