// The official JavaScript SDK against a server that runs; `cargo xtask sdk` starts both.

import { readFile } from 'node:fs/promises';
import path from 'node:path';
import './conversations.mjs';
import './paging.mjs';
import './errors.mjs';
import './retries.mjs';
import { runAll } from './runner.mjs';

const started = performance.now();
const manifest = path.join(path.dirname(process.env.OPENAI_SDK), 'package.json');
console.log(`Node ${process.versions.node}, openai ${JSON.parse(await readFile(manifest, 'utf8')).version}`);
const { passed, failed } = await runAll();
const seconds = ((performance.now() - started) / 1000).toFixed(1);
console.log(`${passed} checks passed, ${failed} failed, in ${seconds} s`);
process.exitCode = passed && !failed ? 0 : 1;
