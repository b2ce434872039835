# Tandem's router. In a clone: docker build --build-arg TANDEM="/context[server]" -t tandem-router .
# With a compiler, for what is installed from source.
FROM python:3.13 AS build
ARG TANDEM="vllm-tandem[server]==0.1.0"
# What only engines need is left out again.
RUN --mount=type=bind,target=/context,rw \
    python -m venv /tandem \
    && /tandem/bin/pip install --no-cache-dir "$TANDEM" \
    && /tandem/bin/pip uninstall --yes uv pip

FROM python:3.13-slim
COPY --from=build /tandem /tandem
ENV PATH=/tandem/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /tmp
# It writes nothing, and needs no rights: run it with --read-only and --cap-drop=ALL.
USER 10001:10001
EXPOSE 8200
ENTRYPOINT ["tandem"]
CMD ["router", "--help"]
