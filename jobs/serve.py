#!/usr/bin/env python3
"""Serve a finished model behind OpenAI's endpoints, and with what only a GLM can do: fill blanks.

python jobs/serve.py model=runs/my_run [port=8000] [num_replicas=2] [api_keys=FILE]
"""

import argparse
import logging
import signal
import sys
import threading
from typing import Any

from _job import run_job
from _ray import connect

from glm_dist.serve.settings import ServeSettings


def main(settings: ServeSettings, arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    if arguments.without_ray:
        return serve_alone(settings)
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from glm_dist.serve.deployment import build

    application = build(settings)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    connect(settings.num_replicas * settings.num_threads + 1)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=quiet
    )
    serve.run(application, name="glm", route_prefix="/", logging_config=quiet)
    announce(settings)
    wait_for_signal()
    print("draining and stopping", flush=True)
    serve.delete("glm")
    ray.shutdown()
    return 0


def serve_alone(settings: ServeSettings) -> int:
    """One engine in this process, without Ray."""
    import uvicorn

    from glm_dist.serve.app import build_app
    from glm_dist.serve.keys import ApiKeys
    from glm_dist.serve.opening import check_model, open_endpoints

    check_model(settings)
    keys = ApiKeys.load(settings.api_keys)
    endpoints = open_endpoints(settings)
    app = build_app(endpoints, keys, settings.limits)

    class Announcing(uvicorn.Server):
        async def startup(self, *arguments: Any, **options: Any) -> None:
            await super().startup(*arguments, **options)
            announce(settings)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn drains, then raises the signal again
    Announcing(
        uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning")
    ).run()
    endpoints.engine.close()
    return 0


def announce(settings: ServeSettings) -> None:
    """Say where it answers, and how to ask."""
    from glm_dist.serve.opening import check_model

    url = f"http://{settings.host}:{settings.port}"
    print(f"serving      {check_model(settings)} at {url}/v1")
    print(
        f"next         curl {url}/v1/infill -H 'content-type: application/json' "
        '-d \'{"input": "The [MASK] of a list is [MASK]."}\'',
        flush=True,
    )


def wait_for_signal() -> None:
    """Return at Ctrl-C or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument("--without-ray", action="store_true", help="one engine in this process")


if __name__ == "__main__":
    sys.exit(run_job(main, ServeSettings, description=__doc__ or "", add_flags=add_flags))
