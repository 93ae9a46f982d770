"""Prove this package: its files are whole, and the model gives the recorded outputs within the recorded tolerance.

    python verify.py                               here, as a replica runs it, without Ray
    python verify.py --url http://127.0.0.1:8000   on a server that runs

Exit code 0: it does. 1: it does not. 2: a file, the runtime or the server cannot be used.
"""

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the package stays as it was copied
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def prove(manifest, recording):
    """Run the model here, or ask the server."""
    from vendored.deploy.verifying import compare

    if arguments.url:
        from vendored.deploy.oip_client import Client

        with Client(arguments.url, manifest["name"]) as client:
            return {f"{manifest['name']} at {arguments.url}": compare(recording, client.infer)}
    import onnxruntime

    from vendored.deploy.manifest import require_version
    from vendored.runtime.session import Session

    require_version(manifest, onnxruntime.__version__)
    with Session(HERE / "model" / manifest["model"], provider=arguments.provider) as session:
        return {f"{manifest['model']} on {session.provider}, without Ray": compare(recording, session.run)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="a server that runs this package")
    parser.add_argument("--provider", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    arguments = parser.parse_args()
    try:
        from vendored.deploy.verifying import main
    except ImportError as error:
        print(f"verify: {error}; try: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(HERE, prove))
