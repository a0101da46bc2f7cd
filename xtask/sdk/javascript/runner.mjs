// Runs every check and prints a line for each.

import assert from 'node:assert/strict';
import { client } from './server.mjs';

const checks = [];

/** A check: a sentence, and what proves it. */
export const check = (sentence, proof) => checks.push([sentence, proof]);

export const equal = assert.deepStrictEqual;

/** All that an iterator gives. */
export async function every(pages) {
  const all = [];
  for await (const item of pages) all.push(item);
  return all;
}

/** The error that a promise ends with, which is exactly of this class. */
export async function refused(kind, promise) {
  let answer;
  try {
    answer = await promise;
  } catch (error) {
    assert.equal(error.constructor, kind, `${kind.name} was expected, not ${error.stack}`);
    return error;
  }
  throw new Error(`${kind.name} was expected, not ${JSON.stringify(answer).slice(0, 500)}`);
}

/** Runs all; returns how many passed and how many failed. */
export async function runAll() {
  let passed = 0;
  let failed = 0;
  const ai = client();
  for (const [sentence, proof] of checks) {
    const started = performance.now();
    try {
      await proof(ai);
      passed += 1;
      console.log(`    ok  ${sentence} (${((performance.now() - started) / 1000).toFixed(2)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${sentence}\n${error.stack}`);
    }
  }
  return { passed, failed };
}
