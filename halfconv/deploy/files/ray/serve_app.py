"""The model as a Ray Serve application: `serve run serve_config.yaml`, or `serve run serve_app:build replicas=4`.

It speaks the Open Inference Protocol: POST /v2/models/NAME/infer, GET /v2/health/ready, GET /v2/models/NAME, …
"""

import json
import os
import sys
from pathlib import Path

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

#: Argument -> default. Ray gives arguments of the command line as texts.
DEFAULTS = {
    "replicas": 2,  # processes, each with the whole model
    "num_cpus": 1.0,  # of each replica; also the threads that it computes with
    "num_gpus": 0.0,  # of each replica; 0.25 lets four share a GPU
    "gpu_memory": 0,  # bytes that ONNX Runtime may take on the GPU; 0 for no limit: set it where replicas share one
    "provider": "auto",  # cpu, cuda, tensorrt, or the best that works
    "max_batch": 8,  # rows that may run together
    "max_delay": 0.002,  # seconds that a request may wait for others
    "queue": 256,  # requests that may wait in a replica
    "max_body": 64_000_000,  # bytes of a request's body
    "timeout": 30.0,  # seconds that a request may take, the wait included
}


class Replica:
    """One process that serves the model."""

    def __init__(self, settings: dict):
        import onnxruntime

        from vendored.deploy.manifest import check, require_version
        from vendored.deploy.oip_server import Service
        from vendored.runtime.session import Session

        manifest = check(HERE)
        require_version(manifest, onnxruntime.__version__)
        session = Session(
            HERE / "model" / manifest["model"], provider=settings["provider"], threads=max(1, int(settings["num_cpus"])),
            memory_limit=settings["gpu_memory"] or None,
        )  # fmt: skip
        self._most = settings["max_body"]
        names = ("max_batch", "max_delay", "queue", "timeout")
        self._service = Service(session, manifest["name"], **{name: settings[name] for name in names})

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        body = bytearray()
        async for part in request.stream():
            if len(body) + len(part) > self._most:
                return JSONResponse({"error": f"the body has more than {self._most:,} bytes; try: a smaller batch"}, 413)
            body += part
        answer = await self._service.answer(request.method, path, request.headers, bytes(body))
        return Response(answer.body, answer.status, answer.headers)


def build(arguments: dict) -> serve.Application:
    """Build the application.

    Args:
        arguments: See DEFAULTS.
    """
    if unknown := sorted(arguments.keys() - DEFAULTS.keys()):
        raise ValueError(f"there is no argument {unknown[0]!r}; try: {', '.join(DEFAULTS)}")
    settings = {name: type(default)(arguments.get(name, default)) for name, default in DEFAULTS.items()}
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))  # replicas import this module, too
    resources = {
        "num_cpus": settings["num_cpus"], "num_gpus": settings["num_gpus"], "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
    }  # fmt: skip
    deployment = serve.deployment(
        Replica, name=json.loads((HERE / "manifest.json").read_text("utf-8"))["name"], num_replicas=settings["replicas"],
        ray_actor_options=resources, max_ongoing_requests=settings["queue"], health_check_period_s=2, health_check_timeout_s=10,
    )  # fmt: skip
    return deployment.bind(settings)
