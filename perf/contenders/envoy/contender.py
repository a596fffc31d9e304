"""Envoy, with its listener and cluster in files of their own, as a file-based control plane serves them."""

import json
import re

from harness import contender
from harness.contender import find_program, first_line, write_private

# Where callers' keys may stand, beside Authorization, which is overwritten.
STRIPPED = ["proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key"]
# "No limit" in words of 32 bits; Envoy's own FAQ on disabling circuit breaking takes it too.
UNLIMITED = 1_000_000_000
# What a connection may hold back before its other side is no longer read; past it Envoy waits.
CONNECTION_BYTES_MAX = 256 * 1024


class Contender(contender.Contender):
    name = "envoy"
    title = "Envoy"
    install = "perf/contenders/install envoy"

    def find(self):
        self.program = find_program("envoy", self.install)

    def version(self):
        found = re.search(r"/(\d+\.\d+\.\d+[^/]*)/\w+/\w+/(\w+)", first_line([self.program, "--version"]))
        return f"envoy/{found[1]}, {found[2]}" if found else "envoy"

    def start(self, job):
        write_private(job.dir / "envoy-clusters.json", resources(cluster(job)))
        self.write(job, job.key)
        write_private(job.dir / "envoy.json", json.dumps(bootstrap(job), indent=1))
        return [str(self.program), *options(job)]

    def check_command(self, job):
        """What says whether the configuration that `start` wrote is a valid one."""
        return [str(self.program), *options(job), "--mode", "validate"]

    def write(self, job, key):
        # The routes first: the listener asks for them.
        write_private(job.dir / "envoy-routes.json", resources(routes(job, key)))
        write_private(job.dir / "envoy-listeners.json", resources(listener(job)))

    def reload(self, job, process):
        # A file that is moved into place is read again, with the same content too.
        for name in ("envoy-clusters.json", "envoy-routes.json", "envoy-listeners.json"):
            write_private(job.dir / name, (job.dir / name).read_text())

    def rotate(self, job, process, key):
        write_private(job.dir / "envoy-routes.json", resources(routes(job, key)))

    def logs(self, job):
        return []


def options(job):
    return ["-c", str(job.dir / "envoy.json"), "--concurrency", str(job.workers), "--disable-hot-restart",
            "--log-level", "warning"]


def resources(*found):
    return json.dumps({"version_info": "1", "resources": list(found)}, indent=1)


def typed(message, /, **fields):
    return {"@type": f"type.googleapis.com/{message}", **fields}


def from_file(job, name):
    return {"resource_api_version": "V3", "path_config_source": {
        "path": str(job.dir / name), "watched_directory": {"path": str(job.dir)}}}


def bootstrap(job):
    return {
        "node": {"id": "perf", "cluster": "perf"},
        "dynamic_resources": {
            "lds_config": from_file(job, "envoy-listeners.json"),
            "cds_config": from_file(job, "envoy-clusters.json"),
        },
        # Nobody reads them here, and Envoy's advice on benchmarks is to do without.
        "stats_config": {"stats_matcher": {"reject_all": True}},
    }


def cluster(job):
    unlimited = {"max_connections": UNLIMITED, "max_pending_requests": UNLIMITED, "max_requests": UNLIMITED,
                 "max_retries": UNLIMITED}
    return typed(
        "envoy.config.cluster.v3.Cluster",
        name="api", type="STATIC", connect_timeout="10s",
        per_connection_buffer_limit_bytes=CONNECTION_BYTES_MAX,
        circuit_breakers={"thresholds": [{"priority": priority, **unlimited} for priority in ("DEFAULT", "HIGH")]},
        load_assignment={"cluster_name": "api", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": job.upstream_port}}}}]}]},
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http_protocol_options": {}},
                common_http_protocol_options={"idle_timeout": "3600s"},
            )},
        transport_socket={"name": "envoy.transport_sockets.tls", "typed_config": typed(
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=job.host,
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "alpn_protocols": ["http/1.1"],
                "validation_context": {
                    "trusted_ca": {"filename": str(job.ca)},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": job.host}}],
                },
            },
        )},
    )


def routes(job, key):
    return typed(
        "envoy.config.route.v3.RouteConfiguration",
        name="routes",
        virtual_hosts=[
            {
                "name": name,
                "domains": [name, f"{name}:*"],
                "routes": [{
                    "match": {"prefix": "/"},
                    "route": {
                        "cluster": "api",
                        # No bound on a whole exchange: streams run on.
                        "timeout": "0s",
                        "host_rewrite_literal": job.host,
                        "upgrade_configs": [{"upgrade_type": "websocket"}],
                    },
                }],
                # Every other place where callers' keys may stand is emptied, then the real key is written.
                "request_headers_to_remove": STRIPPED,
                "request_headers_to_add": [{
                    "header": {"key": "authorization", "value": f"Bearer {key}"},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }],
            }
            for name in job.hosts()
        ],
    )


def listener(job):
    return typed(
        "envoy.config.listener.v3.Listener",
        name="callers",
        per_connection_buffer_limit_bytes=CONNECTION_BYTES_MAX,
        address={"socket_address": {"address": "127.0.0.1", "port_value": job.port}},
        listener_filters=[{"name": "envoy.filters.listener.tls_inspector", "typed_config": typed(
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")}],
        filter_chains=[filter_chain(job, name) for name in job.hosts()],
    )


def filter_chain(job, name):
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="callers",
        codec_type="HTTP1",
        rds={"route_config_name": "routes", "config_source": from_file(job, "envoy-routes.json")},
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": typed(
            "envoy.extensions.filters.http.router.v3.Router", dynamic_stats=False, suppress_envoy_headers=True)}],
        # Envoy's advice on benchmarks; the log has the connection's number.
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        use_remote_address=True,
        skip_xff_append=True,
        common_http_protocol_options={"idle_timeout": "3600s"},
        stream_idle_timeout="0s",
        request_timeout="0s",
        access_log=[{"name": "envoy.access_loggers.file", "typed_config": typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            path=str(job.dir / "envoy-access.log"),
            log_format={"json_format": LOG_FIELDS},
        )}],
    )
    return {
        "filter_chain_match": {"server_names": [name]},
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed(
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "alpn_protocols": ["http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": {"filename": str(job.cert)}, "private_key": {"filename": str(job.cert_key)}}],
            },
        )},
    }


# The same facts as on Claviger's audit trail.
LOG_FIELDS = {
    "time": "%START_TIME%",
    "connection": "%CONNECTION_ID%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "host": "%REQ(:AUTHORITY)%",
    "method": "%REQ(:METHOD)%",
    "path": "%PATH(NQ)%",
    "status": "%RESPONSE_CODE%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "upstream": "%UPSTREAM_HOST%",
    "flags": "%RESPONSE_FLAGS%",
    "ms": "%DURATION%",
    "upstream_connect": "%COMMON_DURATION(US_CX_BEG:US_CX_END:us)%",
    "upstream_head": "%RESPONSE_DURATION%",
}
