# An image without shell or package manager that trusts the CA: the store is made in a Debian, and copied. For Go and
# other programs that read the system's store; Python and Java in distroless images have bundles of their own, which are
# edited where the application is put together (install-ca in that stage).
ARG BASE=gcr.io/distroless/static-debian12
ARG DEBIAN=debian:12-slim
FROM ${DEBIAN} AS trust
ARG ROOT_SHA256
COPY install-ca /usr/local/bin/install-ca
COPY claviger-root.crt /usr/local/share/claviger-ca/root.crt
RUN command -v update-ca-certificates >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; }
RUN install-ca --node never --sha256 "${ROOT_SHA256}" /usr/local/share/claviger-ca/root.crt
FROM ${BASE}
COPY --from=trust /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=trust /etc/claviger-ca/claviger.pem /etc/claviger-ca/claviger.pem
ENV NODE_EXTRA_CA_CERTS=/etc/claviger-ca/claviger.pem
