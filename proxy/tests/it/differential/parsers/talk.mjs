// What both judges under Node share: how they are spoken to, and how Node lists fields.

import { readSync } from 'node:fs';

// So many bytes of standard input, or null at its end.
export function readExactly(length) {
  const bytes = Buffer.alloc(length);
  let at = 0;
  while (at < length) {
    const read = readSync(0, bytes, at, length - at);
    if (read === 0) return null;
    at += read;
  }
  return bytes;
}

// Names and values, which Node lists in turn, as pairs.
export const pairs = (raw) => {
  const out = [];
  for (let at = 0; at < raw.length; at += 2) out.push([raw[at], raw[at + 1]]);
  return out;
};
