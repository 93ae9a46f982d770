"""A small Ray cluster for the tests, in a process of its own: ``python -m tests.deploy.ray_cluster FOLDER…``.

Each folder is a package, served below its own name by the package's own ``serve_app.build``. Prints ``ready PORT``, and ends
when its standard input does.
"""

from __future__ import annotations

import importlib
import socket
import sys
import tempfile
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main(folders: list[str]) -> None:
    import ray
    from ray import serve

    with tempfile.TemporaryDirectory(prefix="hc-ray-", dir="/tmp", ignore_cleanup_errors=True) as place:  # a socket's path is short
        ray.init(
            "local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False,
            _node_ip_address="127.0.0.1", _temp_dir=place,
        )  # fmt: skip
        serve_packages(folders)
        serve.shutdown()
        ray.shutdown()


def serve_packages(folders: list[str]) -> None:
    """Serve them until the standard input ends."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    for folder in folders:
        name = Path(folder).name
        sys.path.insert(0, folder)
        app = importlib.import_module("serve_app").build({"replicas": "2", "num_cpus": "0.2", "max_batch": "4"})
        serve.run(app, name=name, route_prefix=f"/{name}")
        sys.path.remove(folder)
        for module in [key for key in sys.modules if key == "serve_app" or key.startswith("vendored")]:
            del sys.modules[module]
    print(f"ready {port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
