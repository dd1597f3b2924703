#!/usr/bin/env python3
"""Serve finished models behind OpenAI's endpoints, and with what only a GLM can do: fill blanks.

python jobs/serve.py model=runs/my_run [port=8000] [num_replicas=2] [api_keys=FILE]
python jobs/serve.py model=runs/my_run 'adapters={polite: runs/polite}'
python jobs/serve.py model=runs/my_run --write-config serve.yaml    # for `serve deploy`
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from _driver import as_driver
from _job import model_path, run_job
from _ray import connect, found_address, is_reachable

from glm_dist.config import home, output_path
from glm_dist.errors import ConfigError, LaunchError
from glm_dist.serve.settings import HostedModel, ServeSettings

APPLICATION = "glm"
LOOK_SECONDS = 0.2
DRAIN_CALL_SECONDS = 5.0
HEAD_SECONDS = 1.0
"""Between two looks at the head of a Ray of our own."""
STEADY_SECONDS = 300
"""A server that dies after so long has not died of its start."""


def main(settings: ServeSettings, arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    settings = with_models(settings)
    if arguments.write_config:
        return write_config(settings, Path(arguments.write_config))
    if arguments.without_ray:
        return serve_alone(settings)
    # Read by Serve's processes when they start: an engine that is given up is not waited for.
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "2")
    from glm_dist.serve.proxy import environment, haproxy_environment

    os.environ.update(environment(settings.limits))
    found = found_address()
    if settings.proxy == "haproxy":
        if found is not None:
            raise ConfigError(
                f"proxy: got 'haproxy', but the Ray at {found} runs already, and the environment "
                "that it was started in decides; start it with RAY_SERVE_ENABLE_HA_PROXY=1 and "
                "leave proxy out"
            )
        os.environ.update(haproxy_environment(settings.limits))
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from glm_dist.serve.deployment import build
    from glm_dist.serve.opening import check_room

    application = build(settings)
    is_own = found is None
    if is_own:  # else engines start on other machines, too, and check for themselves
        check_room(settings)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    connect(logical_cpus(settings))
    asked = on_signal()
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=quiet
    )
    try:
        handle = serve.run(application, name=APPLICATION, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise LaunchError(f"{error}\n{why_not_deployed()}".rstrip()) from None
    announce(settings)
    wait(asked, ray.get_runtime_context().gcs_address if is_own else None)
    print("draining and stopping", flush=True)
    drain(handle, settings.drain_seconds)
    if not is_own:
        serve.delete(APPLICATION)
        if not serve.status().applications:
            serve.shutdown()
    # A Ray of our own ends with its servers: while they answer, nobody is told that all routes are
    # gone (404), only to ask again (503).
    ray.shutdown()
    return 0


def with_models(settings: ServeSettings) -> ServeSettings:
    """The same with the folder of a model for each checkpoint that is named."""

    def found(hosted: HostedModel) -> dict[str, str]:
        return {"model": str(model_path(hosted.model))}

    models = tuple(each.model_copy(update=found(each)) for each in settings.models)
    return settings.model_copy(update={**found(settings), "models": models})


def why_not_deployed() -> str:
    """The errors of replicas that did not start, by deployment."""
    from ray import serve

    found = serve.status().applications[APPLICATION].deployments
    return "\n".join(
        f"{name}: {line.strip()}"
        for name, each in found.items()
        for line in each.message.splitlines()
        if "Error" in line and "Traceback" not in line
    )


def wait(asked: threading.Event, head: str | None) -> None:
    """Until somebody asks; where the head of a Ray of our own dies, this process dies with it.

    What runs would go on for a minute and could not be mended. So it ends now, and the process
    that watches this one starts all of it again.
    """
    while not asked.wait(HEAD_SECONDS):
        if head is not None and not is_reachable(head):
            print("the head of Ray is gone", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def drain(handle: Any, seconds: float) -> None:
    """Have new requests refused, and wait for those in work, for so long at most."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        counts = handle.broadcast("drain").results(
            timeout_s=DRAIN_CALL_SECONDS, return_exceptions=True
        )
        if not sum(count for count in counts if isinstance(count, int)):
            return
        time.sleep(LOOK_SECONDS)


def logical_cpus(settings: ServeSettings) -> int:
    """Of a Ray of our own: for all engines, for their successors in an update, and one more."""
    most = [(each.max_replicas or each.num_replicas, each) for each in settings.hosted]
    engines = sum(
        (count + -(-count * each.max_surge_percent // 100)) * each.num_threads
        for count, each in most
    )
    return engines + 1


def write_config(settings: ServeSettings, path: Path) -> int:
    """Write what `serve deploy` takes, with absolute folders; nothing is started."""
    from glm_dist.serve.opening import check_models

    check_models(settings)
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": "glm_dist.serve.deployment:build",
        "runtime_env": {"env_vars": {"GLM_DIST_HOME": str(home())}},
        "args": given(settings),
    }
    document = {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.host, "port": settings.port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [application],
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    print(f"written      {path}")
    print(f"next         serve deploy {path}")
    return 0


def given(settings: ServeSettings) -> dict[str, Any]:
    """The settings that are not as by default, with absolute folders."""

    def placed(hosted: HostedModel) -> dict[str, Any]:
        own = hosted.model_dump(mode="json", exclude_defaults=True)
        if hosted.adapters:
            folders = hosted.adapters.items()
            own["adapters"] = {name: str(output_path(folder)) for name, folder in folders}
        return {**own, "model": str(output_path(hosted.model))}

    document = placed(settings)
    if settings.api_keys is not None:
        document["api_keys"] = str(Path(settings.api_keys).expanduser().absolute())
    if settings.models:
        document["models"] = [placed(hosted) for hosted in settings.models]
    return document


def serve_alone(settings: ServeSettings) -> int:
    """One engine in this process, without Ray."""
    import uvicorn

    from glm_dist.serve.app import build_app
    from glm_dist.serve.impatience import be_impatient
    from glm_dist.serve.keys import ApiKeys
    from glm_dist.serve.opening import check_models, describe, open_engine

    check_models(settings)
    keys = ApiKeys.load(settings.api_keys)
    be_impatient(settings.limits.header_seconds, settings.limits.reading_seconds)
    engine = open_engine(settings)
    endpoints = describe(settings).endpoints(engine, settings.limits)
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
    engine.close()
    return 0


def announce(settings: ServeSettings) -> None:
    """Say where it answers, and how to ask."""
    from glm_dist.serve.opening import check_models

    url = f"http://{settings.host}:{settings.port}"
    names = [*check_models(settings), *(name for each in settings.hosted for name in each.adapters)]
    print(f"serving      {', '.join(names)} at {url}/v1")
    print(
        f"next         curl {url}/v1/infill -H 'content-type: application/json' "
        '-d \'{"input": "The [MASK] of a list is [MASK]."}\'',
        flush=True,
    )


def on_signal() -> threading.Event:
    """Set at Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once."""
    asked = threading.Event()

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return asked


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument("--without-ray", action="store_true", help="one engine in this process")
    parser.add_argument(
        "--write-config", metavar="FILE", help="write what `serve deploy` takes, and end"
    )


def is_short(arguments: argparse.Namespace) -> bool:
    """Whether nothing is served for long enough to be watched, or by this process alone."""
    return arguments.without_ray or arguments.write_config


def periods(settings: ServeSettings) -> int:
    """Another number after a while in which a server has lived."""
    del settings
    return int(time.monotonic() // STEADY_SECONDS)


if __name__ == "__main__":
    watched = as_driver(main, periods, is_short, f"{STEADY_SECONDS} steady seconds")
    sys.exit(run_job(watched, ServeSettings, description=__doc__ or "", add_flags=add_flags))
