# A Go image to build in, which trusts the CA: for programs that are tested while they are built. What ships is
# usually distroless.Dockerfile.
ARG BASE=golang:1.24-bookworm
FROM ${BASE}
ARG ROOT_SHA256
USER root
COPY install-ca /usr/local/bin/install-ca
COPY claviger-root.crt /usr/local/share/claviger-ca/root.crt
RUN command -v update-ca-certificates >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; }
RUN install-ca --node never --sha256 "${ROOT_SHA256}" /usr/local/share/claviger-ca/root.crt
