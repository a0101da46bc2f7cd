// The server under test: its client, its native API, and keys made for a check.

import { pathToFileURL } from 'node:url';

export const SDK = await import(pathToFileURL(process.env.OPENAI_SDK).href);
export const URL_OF_SERVER = process.env.CHATSTORE_URL;
const ROOT_KEY = process.env.CHATSTORE_API_KEY;

export const client = (options = {}) =>
  new SDK.OpenAI({ baseURL: `${URL_OF_SERVER}/v1`, apiKey: ROOT_KEY, ...options });

/** Any request, without the SDK; a body that is a text goes as it is. */
export async function request(method, path, body, headers = {}) {
  const answer = await fetch(`${URL_OF_SERVER}${path}`, {
    method,
    headers: { 'X-API-Key': ROOT_KEY, 'Content-Type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : body && JSON.stringify(body),
  });
  return { status: answer.status, headers: answer.headers, text: await answer.text() };
}

/** A request to the native API that succeeds. */
export async function native(method, path, body) {
  const answer = await request(method, `/api/v1${path}`, body);
  if (answer.status >= 300) throw new Error(`${method} ${path} answered ${answer.status}: ${answer.text}`);
  return JSON.parse(answer.text);
}

/** The secret of a new API key. */
export const madeKey = async (settings) => (await native('POST', '/admin/keys', { name: 'a check', ...settings })).secret;

/** The session's id on the native API. */
export const sessionId = (conversationId) =>
  conversationId.replace(/^conv_(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');

let count = 0;

/** A name that nobody had before. */
export const fresh = () => `check-js-${Date.now()}-${count++}`;
