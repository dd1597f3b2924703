"""A real S3 server on this machine alone; importable from all tests."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from pyarrow import fs

BUCKET = "checkpoints"
DEADLINE_SECONDS = 60
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an empty bucket, with what pyarrow needs to find it in the query."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as server:
        try:
            _wait_for(port)
            query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
            admin = f"s3://{BUCKET}?{query}&allow_bucket_creation=true"
            filesystem, _ = fs.FileSystem.from_uri(admin)
            filesystem.create_dir(BUCKET)
            yield f"s3://{BUCKET}?{query}"
        finally:
            server.kill()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError("the S3 server did not start")
