# docker build -t lightning-gp . && docker run --rm -v "$PWD/runs:/work/runs" lightning-gp
FROM python:3.11-slim
WORKDIR /package
COPY pyproject.toml PACKAGE.md LICENSE ./
COPY lightning_gp lightning_gp
RUN pip install --no-cache-dir ".[plots]"
WORKDIR /work
ENTRYPOINT ["lightning-gp"]
CMD ["demo"]
