// Errors: the class the SDK makes of an answer, and what it says.

import assert from 'node:assert/strict';
import { check, equal, refused } from './runner.mjs';
import { fresh, madeKey, native, SDK } from './server.mjs';
import { numbered, said, TURN } from './samples.mjs';
import { proxied } from './proxy.mjs';
import { made, shown } from './conversations.mjs';

/** Whether an error says all it should. */
function checked(error, status, type, code, param) {
  equal([error.status, error.type, error.code, error.param], [status, type, code, param]);
  equal(Object.keys(error.error).sort(), ['code', 'message', 'param', 'type']);
  assert.ok(error.error.message);
  assert.ok(error.requestID);
  equal(error.requestID, error.headers.get('x-request-id'));
}

check('a bad request names its parameter', async (ai) => {
  const id = await made(ai);
  const bad = [said('Good.'), { role: 'narrator', content: 'x' }];
  const error = await refused(SDK.BadRequestError, ai.conversations.items.create(id, { items: bad }));
  checked(error, 400, 'invalid_request_error', 'invalid_value', 'items[1].role');
  equal(await shown(ai, id), []);
});

check('metadata past its limits is refused', async (ai) => {
  const many = Object.fromEntries(Array.from({ length: 17 }, (_, n) => [n, '']));
  const longKey = 'k'.repeat(65);
  for (const [metadata, param] of [
    [many, 'metadata'],
    [{ [longKey]: 'v' }, `metadata.${longKey}`],
    [{ k: 'v'.repeat(513) }, 'metadata.k'],
    [{ k: 1 }, 'metadata.k'],
    [{ k: null }, 'metadata.k'],
  ]) {
    const error = await refused(SDK.BadRequestError, ai.conversations.create({ metadata }));
    checked(error, 400, 'invalid_request_error', 'invalid_value', param);
  }
});

check('another item under an id that is taken is refused', async (ai) => {
  const id = await made(ai, TURN);
  const other = { ...TURN[4], content: [{ type: 'output_text', text: 'Rain.', annotations: [] }] };
  const error = await refused(SDK.BadRequestError, ai.conversations.items.create(id, { items: [other] }));
  checked(error, 400, 'invalid_request_error', 'item_already_in_conversation', 'items');
  const same = await ai.conversations.items.create(id, { items: [TURN[4]] });
  equal([same.data.length, (await shown(ai, id)).length], [1, TURN.length]);
});

check('a wrong key is an authentication error', async (ai) => {
  const error = await refused(SDK.AuthenticationError, ai.withOptions({ apiKey: 'sk-wrong' }).conversations.create());
  checked(error, 401, 'invalid_request_error', 'invalid_api_key', null);
});

check('a key that may only read is denied the rest', async (ai) => {
  const id = await made(ai, numbered(1));
  const reader = ai.withOptions({ apiKey: await madeKey({ scopes: ['read'] }) });
  equal((await shown(reader, id)).length, 1);
  const error = await refused(SDK.PermissionDeniedError, reader.conversations.items.create(id, { items: numbered(1) }));
  checked(error, 403, 'permission_error', 'missing_scope', null);
});

check('what does not exist is not found', async (ai) => {
  for (const call of [() => ai.conversations.retrieve(`conv_${'0'.repeat(32)}`), () => ai.get('/nothing')]) {
    const error = await refused(SDK.NotFoundError, call());
    checked(error, 404, 'invalid_request_error', null, null);
  }
});

check('a conflict is not tried again', async (ai) => {
  // Nothing on `/v1` answers 409 but a request in flight; the same SDK speaks to the native API.
  const { session_id: session } = await native('POST', '/sessions', { session_name: 'one' });
  await proxied([], async (url, seen) => {
    const speaker = ai.withOptions({ baseURL: `${url}/api/v1`, maxRetries: 2 });
    const path = `/sessions/${session}/messages`;
    await speaker.post(path, { body: { content: 'a', external_id: 'one' } });
    const conflict = speaker.post(path, { body: { content: 'b', external_id: 'one' } });
    const error = await refused(SDK.ConflictError, conflict);
    equal(error.headers.get('x-should-retry'), 'false');
    equal(seen.length, 2);
  });
});

check('a key that was used for another body is unprocessable', async (ai) => {
  const id = await made(ai);
  const options = { headers: { 'Idempotency-Key': fresh() } };
  await ai.conversations.items.create(id, { items: [said('One.')] }, options);
  const error = await refused(
    SDK.UnprocessableEntityError,
    ai.conversations.items.create(id, { items: [said('Two.')] }, options),
  );
  checked(error, 422, 'invalid_request_error', 'idempotency_key_reused', null);
});

check('too many requests are told when to come back', async (ai) => {
  const id = await made(ai);
  const limited = ai.withOptions({ apiKey: await madeKey({ limits: { writes: '1/hour' } }), maxRetries: 0 });
  await limited.conversations.items.create(id, { items: numbered(1) });
  const error = await refused(SDK.RateLimitError, limited.conversations.items.create(id, { items: numbered(1) }));
  checked(error, 429, 'rate_limit_error', 'rate_limit_exceeded', null);
  assert.ok(Number(error.headers.get('retry-after')) >= 1);
});

check('who waits as told gets through, and means each message', async (ai) => {
  const id = await made(ai);
  const apiKey = await madeKey({ limits: { writes: '1/second' } });
  const sent = await proxied([], async (url, seen) => {
    const limited = ai.withOptions({ baseURL: `${url}/v1`, apiKey, maxRetries: 4 });
    let sent = 0;
    // A slow machine refuses fewer.
    for (; seen.length < sent + 3; sent += 1) await limited.conversations.items.create(id, { items: [said('yes')] });
    return sent;
  });
  equal((await shown(ai, id)).map((item) => item.content[0].text), Array(sent).fill('yes'));
});
