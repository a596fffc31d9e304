# A Node base image that trusts the CA. Node's own roots are compiled in; the environment adds to them.
ARG BASE=node:22-bookworm-slim
FROM ${BASE}
ARG ROOT_SHA256
USER root
COPY install-ca /usr/local/bin/install-ca
COPY claviger-root.crt /usr/local/share/claviger-ca/root.crt
RUN command -v update-ca-certificates >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; }
RUN install-ca --node never --sha256 "${ROOT_SHA256}" /usr/local/share/claviger-ca/root.crt
ENV NODE_EXTRA_CA_CERTS=/etc/claviger-ca/claviger.pem
