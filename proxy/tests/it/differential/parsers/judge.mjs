// Node's llhttp, strict, as a judge: the same messages as judges.py.
//
// `node:http` itself, whose server is given each connection as a stream in memory: what an application
// under Node would see.

import http from 'node:http';
import { Duplex } from 'node:stream';
import { writeSync } from 'node:fs';
import { pairs, readExactly } from './talk.mjs';

function judge(stream) {
  return new Promise((resolve) => {
    const requests = [];
    let error = null;
    let ended = false;
    const done = () => resolve({ requests, error });
    const server = http.createServer({ insecureHTTPParser: false, maxHeaderSize: 1 << 20 });
    server.maxHeadersCount = 0;
    const take = (request, response) => {
      const seen = [request.method, request.url, pairs(request.rawHeaders), '', []];
      requests.push(seen);
      request.on('data', (chunk) => { seen[3] += chunk.toString('latin1'); });
      request.on('end', () => {
        seen[4] = pairs(request.rawTrailers);
        response.end();
      });
      request.on('error', () => {});
    };
    server.on('request', take);
    server.on('checkContinue', take);
    server.on('checkExpectation', take);
    server.on('clientError', (err, socket) => {
      error = err.code ?? String(err);
      socket.destroy();
    });
    const socket = new Duplex({
      read() {
        if (ended) return;
        ended = true;
        this.push(stream);
        this.push(null);
      },
      write(chunk, encoding, callback) { callback(); },
      final(callback) { callback(); },
    });
    socket.setTimeout = () => socket;
    socket.setNoDelay = () => socket;
    socket.setKeepAlive = () => socket;
    socket.on('close', done);
    server.emit('connection', socket);
  });
}

for (;;) {
  const length = readExactly(4);
  if (length === null) break;
  const answer = Buffer.from(JSON.stringify(await judge(readExactly(length.readUInt32BE(0)))));
  const framed = Buffer.alloc(4 + answer.length);
  framed.writeUInt32BE(answer.length, 0);
  answer.copy(framed, 4);
  let at = 0;
  while (at < framed.length) at += writeSync(1, framed, at);
}
