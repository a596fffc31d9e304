# A Python base image that trusts the CA: the system's store, and the certifi that pip brings.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}
ARG ROOT_SHA256
USER root
COPY install-ca /usr/local/bin/install-ca
COPY claviger-root.crt /usr/local/share/claviger-ca/root.crt
RUN command -v update-ca-certificates >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; }
RUN install-ca --node never --sha256 "${ROOT_SHA256}" /usr/local/share/claviger-ca/root.crt
# An image that is built on this one installs packages with bundles of their own. Its last step as root is:
#   RUN install-ca --reapply
