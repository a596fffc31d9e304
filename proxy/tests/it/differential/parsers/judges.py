"""Parsers from PyPI as judges: `judges.py h11`, `judges.py gunicorn`, `judges.py waitress`.

Reads what an upstream's connection received, on standard input, one message after the other (four bytes
of length, big-endian, then the bytes), and answers each with JSON, framed alike: {"requests": [[METHOD,
TARGET, [[NAME, VALUE], ...], BODY, [[TRAILER, VALUE], ...]], ...], "error": TEXT or null}; bytes are
written as Latin-1. What a parser does not tell is null.
"""

import json
import struct
import sys

BYTES_MAX = 1 << 24


def latin(pairs):
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in pairs]


def of_h11():
    import h11

    def judge(stream):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=BYTES_MAX)
        requests = []
        connection.receive_data(stream)
        connection.receive_data(b"")
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                return requests, str(error)
            if isinstance(event, h11.Request):
                requests.append([event.method.decode(), event.target.decode("latin-1"), latin(event.headers), "", []])
            elif isinstance(event, h11.Data):
                requests[-1][3] += bytes(event.data).decode("latin-1")
            elif isinstance(event, h11.EndOfMessage):
                requests[-1][4] = latin(event.headers)
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return requests, None
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return requests, None
            else:
                return requests, repr(event)

    return judge


def of_gunicorn():
    from gunicorn.config import Config
    from gunicorn.http.parser import RequestParser

    config = Config()
    config.set("limit_request_line", 0)
    config.set("limit_request_field_size", 0)
    config.set("limit_request_fields", 1000)
    config.set("header_map", "dangerous")

    def judge(stream):
        requests = []
        try:
            for request in RequestParser(config, iter([stream]), ("127.0.0.1", 1)):
                body = request.body.read().decode("latin-1")
                requests.append([request.method, request.uri, list(request.headers), body, list(request.trailers)])
        except Exception as error:  # Its own, and whatever else it stumbles over.
            return requests, repr(error)
        return requests, None

    return judge


def of_waitress():
    from waitress.adjustments import Adjustments
    from waitress.parser import HTTPRequestParser

    adjustments = Adjustments(max_request_header_size=BYTES_MAX, max_request_body_size=BYTES_MAX)

    def judge(stream):
        requests = []
        while stream:
            request = HTTPRequestParser(adjustments)
            while stream and not request.completed:
                stream = stream[request.received(stream) :]
            if request.error:
                return requests, request.error.body
            if not request.completed:
                return requests, "incomplete"
            if request.empty:
                continue
            body = request.get_body_stream().read().decode("latin-1")
            # Its headers are merged by name, and not all of them are kept.
            requests.append([request.command, request.request_uri, None, body, None])
            request.close()
        return requests, None

    return judge


def main():
    judge = {"h11": of_h11, "gunicorn": of_gunicorn, "waitress": of_waitress}[sys.argv[1]]()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while length := source.read(4):
        requests, error = judge(source.read(struct.unpack(">I", length)[0]))
        answer = json.dumps({"requests": requests, "error": error}).encode()
        sink.write(struct.pack(">I", len(answer)) + answer)
        sink.flush()


main()
