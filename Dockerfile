# docker build -t lightning-gp . && docker run --rm -v "$PWD/runs:/srv/lightning-gp/runs" lightning-gp
FROM python:3.11-slim
WORKDIR /srv/package
COPY pyproject.toml PACKAGE.md LICENSE ./
COPY lightning_gp lightning_gp
RUN pip install --no-cache-dir ".[plots]"
WORKDIR /srv/lightning-gp
ENTRYPOINT ["lightning-gp"]
CMD ["demo"]
