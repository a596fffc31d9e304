"""Parsers of answers as judges: `answers.py h11`, `answers.py http.client`.

As judges.py, but each message is what a caller's connection received: in front of the bytes stands a line
with the methods of its requests (`GET HEAD`), and an answer is [STATUS, [[NAME, VALUE], ...], BODY, [[TRAILER,
VALUE], ...], [INTERIM STATUS, ...]].
"""

import io
import json
import struct
import sys

BYTES_MAX = 1 << 24


def latin(pairs):
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in pairs]


def of_h11():
    import h11

    def judge(methods, stream):
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=BYTES_MAX)
        answers = []
        connection.receive_data(stream)
        connection.receive_data(b"")
        for method in methods:
            request = h11.Request(method=method, target="/", headers=[("host", "a")])
            connection.send(request)
            connection.send(h11.EndOfMessage())
            interim = []
            while True:
                try:
                    event = connection.next_event()
                except h11.RemoteProtocolError as error:
                    return answers, str(error)
                if isinstance(event, h11.InformationalResponse):
                    interim.append(event.status_code)
                elif isinstance(event, h11.Response):
                    answers.append([event.status_code, latin(event.headers), "", [], interim])
                elif isinstance(event, h11.Data):
                    answers[-1][2] += bytes(event.data).decode("latin-1")
                elif isinstance(event, h11.EndOfMessage):
                    answers[-1][3] = latin(event.headers)
                    break
                else:
                    return answers, repr(event)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return answers, None
            connection.start_next_cycle()
        rest, _ = connection.trailing_data
        return answers, f"{len(rest)} bytes more" if rest else None

    return judge


class Open(io.BufferedReader):
    """A reader that stays open behind one answer, for the next."""

    def close(self):
        pass


def of_http_client():
    import http.client

    http.client._MAXHEADERS = 1000

    def judge(methods, stream):
        answers = []
        source = Open(io.BytesIO(stream))
        sock = type("Socket", (), {"makefile": lambda self, mode: source})()
        for method in methods:
            answer = http.client.HTTPResponse(sock, method=method)
            try:
                answer.begin()
                body = answer.read()
            except (http.client.HTTPException, ValueError, OSError) as error:
                return answers, repr(error)
            # It skips a 100 without a word, and does not tell of trailers. Its fields are put through
            # a parser of mail.
            answers.append([answer.status, None, body.decode("latin-1"), None, None])
            if answer.will_close:
                break
        rest = source.read()
        return answers, f"{len(rest)} bytes more" if rest else None

    return judge


def main():
    judge = {"h11": of_h11, "http.client": of_http_client}[sys.argv[1]]()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while length := source.read(4):
        methods, _, stream = source.read(struct.unpack(">I", length)[0]).partition(b"\n")
        answers, error = judge(methods.decode().split(), stream)
        answer = json.dumps({"answers": answers, "error": error}).encode()
        sink.write(struct.pack(">I", len(answer)) + answer)
        sink.flush()


main()
