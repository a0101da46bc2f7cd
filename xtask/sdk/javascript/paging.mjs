// Lists: pages, and the iterators over them.

import { check, equal, every, refused } from './runner.mjs';
import { SDK } from './server.mjs';
import { numbered, textOf } from './samples.mjs';
import { made } from './conversations.mjs';

check('every item comes once, whatever the page and the order', async (ai) => {
  const sizes = { 0: [undefined, 1, 100], 1: [undefined, 1], 20: [undefined, 1], 21: [undefined, 1], 100: [undefined, 100] };
  for (const [count, limits] of Object.entries(sizes).map(([count, limits]) => [Number(count), limits])) {
    const id = await made(ai, numbered(count));
    for (const order of ['asc', 'desc']) {
      for (const limit of limits) {
        const pages = [];
        for await (const page of (await ai.conversations.items.list(id, { order, limit })).iterPages()) pages.push(page);
        const texts = pages.flatMap((page) => page.data.map(textOf));
        const expected = numbered(count).map((item) => item.content);
        equal(texts, order === 'asc' ? expected : expected.reverse());
        equal(pages.length, Math.max(1, Math.ceil(count / (limit ?? 20))));
        equal(pages.map((page) => page.has_more), pages.map((_, n) => n + 1 < pages.length));
      }
    }
  }
});

check('ten thousand items are iterated over', async (ai) => {
  const id = await made(ai);
  for (let start = 0; start < 10000; start += 1000) {
    await ai.conversations.items.create(id, { items: numbered(1000, start) });
  }
  const found = await every(ai.conversations.items.list(id, { order: 'desc', limit: 100 }));
  equal(found.map(textOf).reverse(), numbered(10000).map((item) => item.content));
  equal(new Set(found.map((item) => item.id)).size, 10000);
});

check('what no page can be is refused', async (ai) => {
  const id = await made(ai, numbered(2));
  for (const [query, param] of [
    [{ limit: 0 }, 'limit'],
    [{ limit: 101 }, 'limit'],
    [{ order: 'random' }, 'order'],
    [{ after: `msg_${'0'.repeat(32)}` }, 'after'],
  ]) {
    const error = await refused(SDK.BadRequestError, ai.conversations.items.list(id, query));
    equal([error.type, error.code, error.param], ['invalid_request_error', 'invalid_value', param]);
  }
});

check('those who append at once lose nothing', async (ai) => {
  const id = await made(ai);
  const append = async (name) => {
    for (let n = 0; n < 10; n += 1) {
      await ai.conversations.items.create(id, { items: [{ role: 'user', content: `${name} ${n}` }] });
    }
  };
  await Promise.all([...'abcdefgh'].map(append));
  const texts = (await every(ai.conversations.items.list(id, { order: 'asc' }))).map(textOf);
  equal(texts.length, 80);
  for (const name of 'abcdefgh') {
    equal(texts.filter((text) => text[0] === name), Array.from({ length: 10 }, (_, n) => `${name} ${n}`));
  }
});
