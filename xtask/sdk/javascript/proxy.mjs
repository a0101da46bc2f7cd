// A proxy that forwards requests to the server under test and cuts connections as it is told.

import http from 'node:http';
import { URL_OF_SERVER } from './server.mjs';

// What becomes of a request: it and its answer pass; it never arrives; it is done, and its answer is lost.
export const PASS = 'pass';
export const LOSE_REQUEST = 'lose request';
export const LOSE_ANSWER = 'lose answer';

/** Runs `use` with a proxy for which these fates are told, first come first served; after them, all pass. */
export async function proxied(fates, use) {
  const left = [...fates];
  const seen = [];
  const proxy = http.createServer((request, response) => {
    const fate = left.shift() ?? PASS;
    seen.push([request.method, request.headers['x-stainless-retry-count'], fate]);
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      if (fate === LOSE_REQUEST) return request.socket.resetAndDestroy();
      const { host, connection, ...headers } = request.headers;
      const upstream = http.request(`${URL_OF_SERVER}${request.url}`, { method: request.method, headers }, (answer) => {
        const content = [];
        answer.on('data', (part) => content.push(part));
        answer.on('end', () => {
          if (fate === LOSE_ANSWER) return request.socket.resetAndDestroy();
          const { connection, 'transfer-encoding': encoding, ...kept } = answer.headers;
          response.writeHead(answer.statusCode, kept).end(Buffer.concat(content));
        });
      });
      upstream.end(Buffer.concat(parts));
    });
  });
  await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  try {
    return await use(`http://127.0.0.1:${proxy.address().port}`, seen);
  } finally {
    proxy.closeAllConnections();
    await new Promise((resolve) => proxy.close(resolve));
  }
}
