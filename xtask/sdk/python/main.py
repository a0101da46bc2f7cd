"""The official Python SDK and the Agents SDK against a server that runs; `cargo xtask sdk` starts both."""

import asyncio
import importlib.metadata
import platform
import sys
import time

from checks import agents_session, conversations, errors, items, paging, retries, surfaces  # noqa: F401
from checks.runner import run_all


def main():
    started = time.monotonic()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("openai", "openai-agents"))
    print(f"Python {platform.python_version()}, {versions}", flush=True)
    passed, failed = asyncio.run(run_all())
    print(f"{passed} checks passed, {failed} failed, in {time.monotonic() - started:.1f} s", flush=True)
    sys.exit(0 if passed and not failed else 1)


main()
