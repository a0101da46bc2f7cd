"""Fetches a package from npm's registry, checks its hash, and unpacks what a program needs of it into a folder."""

import base64
import hashlib
import io
import os
import sys
import tarfile
import urllib.request

name, version, integrity, folder = sys.argv[1:]
registry = os.environ.get("npm_config_registry") or "https://registry.npmjs.org"
with urllib.request.urlopen(f"{registry.rstrip('/')}/{name}/-/{name}-{version}.tgz", timeout=120) as answer:
    archive = answer.read()
found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
if found != integrity:
    sys.exit(f"{name} {version} from {registry} has the hash {found}, not {integrity}")
with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
    for member in tar:
        if not member.isfile() or not member.name.endswith((".mjs", "/package.json", "/LICENSE")):
            continue
        path = os.path.join(folder, *[part for part in member.name.split("/")[1:] if part not in ("", ".", "..")])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(tar.extractfile(member).read())
