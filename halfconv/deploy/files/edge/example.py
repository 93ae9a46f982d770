"""Run the model on the first recorded sample, and say how long it took. Replace the sample by your own arrays."""

import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True  # the package stays as it was copied
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from vendored.deploy.manifest import read_manifest  # noqa: E402
from vendored.deploy.recorded import read_samples  # noqa: E402
from vendored.runtime.session import Session  # noqa: E402

if __name__ == "__main__":
    feeds = read_samples(HERE / "samples").samples[0].inputs  # {input name: numpy array}
    with Session(HERE / "model" / read_manifest(HERE)["model"]) as session:
        session.run(feeds)  # the first run also allocates, and shows which provider runs what
        begin = time.perf_counter()
        outputs = session.run(feeds)
        milliseconds = (time.perf_counter() - begin) * 1e3
        for name, array in outputs.items():
            print(f"{name}: {array.dtype}{list(array.shape)} begins with {array.ravel()[:4].tolist()}")
        print(f"{milliseconds:.1f} ms on {session.provider}; {session.placement.nodes} nodes")
