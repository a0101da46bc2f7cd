// Connections that are cut: what the SDK tries again by itself is stored once.

import { check, equal, refused } from './runner.mjs';
import { fresh, SDK } from './server.mjs';
import { numbered, TURN } from './samples.mjs';
import { LOSE_ANSWER, LOSE_REQUEST, PASS, proxied } from './proxy.mjs';
import { made, shown } from './conversations.mjs';

const CUTS = [[LOSE_REQUEST], [LOSE_ANSWER], [LOSE_ANSWER, LOSE_REQUEST], [LOSE_ANSWER, LOSE_ANSWER]];

check('items are stored once without a key', async (ai) => {
  const storedOnce = async (cuts) => {
    const id = await made(ai);
    await proxied(cuts, async (url, seen) => {
      const cut = ai.withOptions({ baseURL: `${url}/v1` });
      const stored = await cut.conversations.items.create(id, { items: TURN });
      equal(stored.data, await shown(ai, id));
      equal(stored.data.length, TURN.length);
      equal(seen.map(([, count]) => count), [...cuts, PASS].map((_, n) => String(n)));
    });
  };
  await Promise.all(CUTS.map(storedOnce));
});

check('what is said twice is stored twice', async (ai) => {
  const id = await made(ai);
  await proxied([PASS, LOSE_ANSWER], async (url) => {
    const cut = ai.withOptions({ baseURL: `${url}/v1` });
    const first = await cut.conversations.items.create(id, { items: numbered(1) });
    const second = await cut.conversations.items.create(id, { items: numbered(1) });
    equal((await shown(ai, id)).map((item) => item.id), [first.last_id, second.last_id]);
  });
});

check('with a key everything is stored once, and the replay says so', async (ai) => {
  const storedOnce = async (cuts) => {
    const wasDoneBefore = cuts.includes(LOSE_ANSWER);
    const user = { 'X-User-Id': fresh() };
    const one = await proxied(cuts, async (url) => {
      const headers = { ...user, 'Idempotency-Key': fresh() };
      const cut = ai.withOptions({ baseURL: `${url}/v1` });
      const { data, response } = await cut.conversations.create({ metadata: { a: '1' } }, { headers }).withResponse();
      equal(response.headers.get('idempotent-replayed'), wasDoneBefore ? 'true' : null);
      return data;
    });
    equal((await ai.get('/conversations', { headers: user })).data, [{ ...one }]);
    await proxied(cuts, async (url) => {
      const cut = ai.withOptions({ baseURL: `${url}/v1`, defaultHeaders: { 'Idempotency-Key': fresh() } });
      const { data, response } = await cut.conversations.items.create(one.id, { items: numbered(45) }).withResponse();
      equal(response.headers.get('idempotent-replayed'), wasDoneBefore ? 'true' : null);
      equal(data.data, await shown(ai, one.id));
    });
  };
  await Promise.all(CUTS.map(storedOnce));
});

check('who gives up and comes back with the key finds it done', async (ai) => {
  const id = await made(ai);
  const options = { headers: { 'Idempotency-Key': fresh() } };
  await proxied([LOSE_ANSWER], async (url) => {
    const cut = ai.withOptions({ baseURL: `${url}/v1`, maxRetries: 0 });
    await refused(SDK.APIConnectionError, cut.conversations.items.create(id, { items: numbered(2) }, options));
    const again = await cut.conversations.items.create(id, { items: numbered(2) }, options);
    equal(again.data, await shown(ai, id));
  });
});
