"""Prove this package here: its files are whole, and the model gives the recorded outputs within the recorded tolerance.

    python verify.py [--provider cpu|cuda|tensorrt|auto]

Exit code 0: it does. 1: it does not. 2: a file or the runtime cannot be used.
"""

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the package stays as it was copied
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def prove(manifest, recording):
    """Run the model as the service does."""
    import onnxruntime

    from vendored.deploy.manifest import require_version
    from vendored.deploy.verifying import compare
    from vendored.runtime.session import Session

    require_version(manifest, onnxruntime.__version__)
    with Session(HERE / "model" / manifest["model"], provider=arguments.provider) as session:
        found = {f"{manifest['model']} on {session.provider}": compare(recording, session.run)}
        for note in session.notes:
            print(f"note: {note}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    arguments = parser.parse_args()
    try:
        from vendored.deploy.verifying import main
    except ImportError as error:
        print(f"verify: {error}; try: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(HERE, prove))
