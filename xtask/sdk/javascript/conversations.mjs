// Conversations and their items: made, read, changed, deleted.

import assert from 'node:assert/strict';
import { check, equal, every, refused } from './runner.mjs';
import { native, request, SDK, sessionId, fresh } from './server.mjs';
import { numbered, OTHERS, said, textOf, TURN } from './samples.mjs';

/** The id of a new conversation with these items. */
export async function made(ai, items = []) {
  const { id } = await ai.conversations.create();
  if (items.length) await ai.conversations.items.create(id, { items });
  return id;
}

/** All items, oldest first. */
export const shown = (ai, id) => every(ai.conversations.items.list(id, { order: 'asc', limit: 100 }));

check('a conversation is made without arguments', async (ai) => {
  const one = await ai.conversations.create();
  assert.match(one.id, /^conv_[0-9a-f]{32}$/);
  assert.ok(Math.abs(one.created_at - Date.now() / 1000) < 60);
  equal({ ...one }, { id: one.id, object: 'conversation', created_at: one.created_at, metadata: {} });
  assert.ok(one._request_id);
});

check('a conversation is read, changed and deleted', async (ai) => {
  const one = await ai.conversations.create({ metadata: { topic: 'demo' }, items: [said('Hello.')] });
  equal({ ...(await ai.conversations.retrieve(one.id)) }, { ...one });
  equal({ ...(await ai.conversations.update(one.id, { metadata: { a: '1' } })) }, { ...one, metadata: { a: '1' } });
  equal({ ...(await ai.conversations.update(one.id, { metadata: null })) }, { ...one, metadata: {} });
  equal((await shown(ai, one.id)).map(textOf), ['Hello.']);
  const deleted = await ai.conversations.delete(one.id);
  equal({ ...deleted }, { id: one.id, object: 'conversation.deleted', deleted: true });
  for (const call of [
    () => ai.conversations.retrieve(one.id),
    () => ai.conversations.update(one.id, { metadata: {} }),
    () => ai.conversations.delete(one.id),
    () => ai.conversations.items.list(one.id),
    () => ai.conversations.items.create(one.id, { items: numbered(1) }),
  ]) {
    const error = await refused(SDK.NotFoundError, call());
    equal([error.status, error.type, error.code, error.param], [404, 'invalid_request_error', null, null]);
    assert.ok(error.message && error.requestID);
  }
});

check('items come back in their order, whole, and can be stored again unchanged', async (ai) => {
  const items = [...TURN, ...OTHERS, ...numbered(3)];
  const first = await made(ai, items);
  const returned = await shown(ai, first);
  const [message, ...rest] = returned;
  equal(message, {
    id: message.id,
    type: 'message',
    status: 'completed',
    role: 'user',
    content: [{ type: 'input_text', text: TURN[0].content }],
  });
  equal(returned.length, items.length);
  rest.slice(0, -3).forEach((item, n) => equal(item, { id: item.id, ...items[n + 1] }));
  equal(rest.slice(-3).map(textOf), numbered(3).map((item) => item.content));
  const second = await made(ai, returned);
  equal(await shown(ai, second), returned);
});

check('an item is read by its id and deleted', async (ai) => {
  const id = await made(ai, TURN);
  const stored = await shown(ai, id);
  equal(stored.length, TURN.length);
  for (const item of stored) {
    equal({ ...(await ai.conversations.items.retrieve(item.id, { conversation_id: id })) }, { ...item });
    const conversation = await ai.conversations.items.delete(item.id, { conversation_id: id });
    equal([conversation.id, conversation.object], [id, 'conversation']);
    const gone = { conversation_id: id };
    await refused(SDK.NotFoundError, ai.conversations.items.retrieve(item.id, gone));
    await refused(SDK.NotFoundError, ai.conversations.items.delete(item.id, gone));
  }
  equal(await shown(ai, id), []);
});

check('batches of 1, 20, 21, 45 and 1000 are stored whole', async (ai) => {
  for (const count of [1, 20, 21, 45, 1000]) {
    const id = await made(ai);
    const stored = await ai.conversations.items.create(id, { items: numbered(count) });
    equal([stored.object, stored.has_more, stored.data.length], ['list', false, count]);
    equal([stored.first_id, stored.last_id], [stored.data[0].id, stored.data.at(-1).id]);
    equal((await shown(ai, id)).map(textOf), numbered(count).map((item) => item.content));
  }
});

check('what can be included may be asked for', async (ai) => {
  const id = await made(ai, TURN);
  const include = ['reasoning.encrypted_content', 'message.output_text.logprobs'];
  equal(await every(ai.conversations.items.list(id, { order: 'asc', include })), await shown(ai, id));
  const reasoning = await ai.conversations.items.retrieve(TURN[1].id, { conversation_id: id, include });
  equal(reasoning.encrypted_content, TURN[1].encrypted_content);
  const error = await refused(SDK.BadRequestError, ai.conversations.items.list(id, { include: ['everything'] }));
  equal([error.code, error.param], ['invalid_value', 'include']);
});

check('every letter there is comes back, and what is none is refused', async (ai) => {
  const texts = [
    '👩‍👩‍👧‍👦 🏳️‍🌈 🇵🇹',
    'e\u0301 is not \u00e9',
    'שלום, مرحبا, \u202eback\u202c',
    'line\u2028paragraph\u2029end',
    '\u0001\u001f\u007f \t\r\n',
    '\ufeff\ufffd\uffff\u{10ffff}',
    '"\\ / \\u0000 </script>',
    'Ein Tag – 里斯本 🚋 '.repeat(43000).slice(0, 500000),
  ];
  const id = await made(ai, texts.map((text) => said(text)));
  equal((await shown(ai, id)).map(textOf), texts);
  for (const text of ['a\0b', 'half \ud83d']) {
    const error = await refused(SDK.BadRequestError, ai.conversations.items.create(id, { items: [said(text)] }));
    equal([error.type, error.code, error.param], ['invalid_request_error', 'invalid_value', 'items[0].content']);
  }
  const path = `/v1/conversations/${id}/items`;
  const answer = await request('POST', path, '{"items":[{"role":"user","content":"\\ud83d\\ude00"}]}');
  equal([answer.status, textOf(JSON.parse(answer.text).data[0])], [200, '😀']);
});

check('a conversation is a session, and a session a conversation', async (ai) => {
  const headers = { 'X-User-Id': fresh() };
  const id = await made(ai, TURN);
  const messages = await native('GET', `/sessions/${sessionId(id)}/messages?order=asc`);
  equal(messages.map((message) => message.payload), TURN);
  const one = await ai.conversations.create({ metadata: { a: '1' } }, { headers });
  await native('PATCH', `/sessions/${sessionId(one.id)}`, { session_name: 'Lisbon', is_favorite: true });
  await native('POST', `/sessions/${sessionId(one.id)}/messages`, { role: 'assistant', content: 'Begin in Alfama.' });
  const [item] = await shown(ai, one.id);
  equal([item.type, item.role, textOf(item)], ['message', 'assistant', 'Begin in Alfama.']);
  const listed = await ai.get('/conversations', { headers, query: { limit: 10, metadata: { a: '1' } } });
  equal(listed.data, [{ ...one }]);
});
