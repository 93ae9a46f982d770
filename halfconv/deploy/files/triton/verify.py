"""Prove this package: its files are whole, and the model gives the recorded outputs within the recorded tolerance.

    python verify.py                         config.pbtxt against the model, and the model in ONNX Runtime, without a server
    python verify.py --url localhost:8000    on a Triton server that runs, over HTTP

Exit code 0: it does. 1: it does not. 2: a file, the runtime or the server cannot be used.
"""

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the package stays as it was copied
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def prove(manifest, recording):
    """Check here, or ask the server."""
    from vendored.deploy.verifying import compare

    if arguments.url:
        return {f"{manifest['name']} at {arguments.url}": compare(recording, server(manifest["name"], recording))}
    import onnxruntime

    from vendored.deploy.manifest import require_version
    from vendored.deploy.triton_check import check_config
    from vendored.errors import CheckFailed, EnvironmentProblem
    from vendored.runtime.session import Session

    require_version(manifest, onnxruntime.__version__)
    place = HERE / "model_repository" / manifest["name"]
    with Session(place / "1" / "model.onnx", provider=arguments.provider, profile=False) as session:
        try:
            problems = check_config(place / "config.pbtxt", session.input_specs, session.output_specs)
            said = "names, types, dimensions and warm-up samples are the model's; no server was asked"
        except EnvironmentProblem as error:
            problems, said = (), f"NOT checked: {error}"
        if problems:
            raise CheckFailed(f"{place / 'config.pbtxt'}: {'; '.join(problems)}", "the whole package again")
        print(f"config.pbtxt: {said}")
        return {f"model.onnx on {session.provider}": compare(recording, session.run)}


def fitted(array, shape):
    """Take the last dimension off where Triton has added it."""
    return array.reshape(shape) if array is not None and array.shape == (*shape, 1) else array


def server(name, recording):
    """Return what runs the model on the server; what Triton gives back with one dimension more gets its own shape."""
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

    from vendored.errors import EnvironmentProblem, InputError

    client = triton.InferenceServerClient(arguments.url, connection_timeout=30, network_timeout=60)
    try:
        if not client.is_model_ready(name):
            raise EnvironmentProblem(f"{arguments.url}: the model '{name}' is not ready", "look at the server's log")
        ranks = {entry["name"]: len(entry["shape"]) for entry in client.get_model_metadata(name)["inputs"]}
    except (OSError, InferenceServerException) as error:
        raise EnvironmentProblem(f"{arguments.url}: cannot be used: {error}", "--url HOST:PORT of Triton's HTTP") from None

    def run(inputs):
        sent = []
        for key, array in inputs.items():
            array = array[..., None] if array.ndim < ranks.get(key, array.ndim) else array
            sent.append(triton.InferInput(key, list(array.shape), np_to_triton_dtype(array.dtype)))
            sent[-1].set_data_from_numpy(array)
        try:
            result = client.infer(name, sent)
        except InferenceServerException as error:
            raise InputError(f"{arguments.url}: refuses a recorded sample: {error}", "the server's log") from None
        wanted = next(sample.outputs for sample in recording.samples if sample.inputs is inputs)
        return {key: fitted(result.as_numpy(key), array.shape) for key, array in wanted.items()}

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="HOST:PORT of a server that runs this package")
    parser.add_argument("--provider", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    arguments = parser.parse_args()
    try:
        from vendored.deploy.verifying import main
    except ImportError as error:
        print(f"verify: {error}; try: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(HERE, prove))
