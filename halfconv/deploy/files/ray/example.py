"""Send the first recorded sample to a server that runs this package: python example.py [URL]."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from vendored.deploy.manifest import read_manifest  # noqa: E402
from vendored.deploy.oip_client import Client  # noqa: E402
from vendored.deploy.recorded import read_samples  # noqa: E402

sample = read_samples(HERE / "samples").samples[0]
with Client(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", read_manifest(HERE)["name"]) as client:
    for name, array in client.infer(sample.inputs).items():
        print(f"{name}: {array.dtype}{list(array.shape)} begins with {array.reshape(-1)[:4].tolist()}")
    print(f"{client.retried} attempts had to be repeated")
