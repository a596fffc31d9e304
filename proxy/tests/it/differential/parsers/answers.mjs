// Node's llhttp, strict, as a judge of answers: the same messages as answers.py.
//
// The parser itself, as `node:http` drives it: a client of Node's would want a socket, and hides the bytes
// behind an answer.

import { createRequire } from 'node:module';
import { writeSync } from 'node:fs';
import { pairs, readExactly } from './talk.mjs';

process.removeAllListeners('warning');
const { HTTPParser } = createRequire(import.meta.url)('node:_http_common');

function judge(message) {
  const line = message.indexOf(10);
  const methods = message.subarray(0, line).toString().split(' ');
  const answers = [];
  let interim = [];
  let early = [];
  let current = null;
  const parser = new HTTPParser();
  parser.initialize(HTTPParser.RESPONSE, {}, 1 << 20, 0);
  // Fields in front of a body beyond the first ones, or trailers.
  parser[HTTPParser.kOnHeaders] = (headers) => {
    if (current) current[3].push(...pairs(headers));
    else early.push(...pairs(headers));
  };
  parser[HTTPParser.kOnHeadersComplete] = (major, minor, headers, method, url, status) => {
    const fields = early.concat(pairs(headers ?? []));
    early = [];
    if (status < 200 && status !== 101) {
      interim.push(status);
      // As node:http says of them: no body.
      return 1;
    }
    current = [status, fields, '', [], interim];
    interim = [];
    answers.push(current);
    return methods[answers.length - 1] === 'HEAD' ? 1 : 0;
  };
  parser[HTTPParser.kOnBody] = (chunk) => {
    current[2] += chunk.toString('latin1');
  };
  parser[HTTPParser.kOnMessageComplete] = () => {
    current = null;
  };
  let result = parser.execute(message.subarray(line + 1));
  if (!(result instanceof Error)) result = parser.finish();
  const error = result instanceof Error ? result.code ?? String(result) : null;
  const many = answers.length > methods.length ? 'more answers than requests' : null;
  return { answers, error: error ?? many };
}

for (;;) {
  const length = readExactly(4);
  if (length === null) break;
  const answer = Buffer.from(JSON.stringify(judge(readExactly(length.readUInt32BE(0)))));
  const framed = Buffer.alloc(4 + answer.length);
  framed.writeUInt32BE(answer.length, 0);
  answer.copy(framed, 4);
  let at = 0;
  while (at < framed.length) at += writeSync(1, framed, at);
}
