"""The models of the benchmarks: trained ones from the zoo, and transformers made from a seed.

Made models are BERT-like encoders written node by node, the way PyTorch's TorchScript exporter writes them, with
LayerNorm decomposed into nine nodes, GELU into five around Erf, and the attention mask added as 0 or the lowest FP32
number. Batch and sequence are free. Weights are drawn from a seed on a trained model's scale: normal(0, 0.02) for
matrices and biases, normal(1, 0.1) for LayerNorm's gains.

| key | layers x width | nodes | weights |
|---|---|---|---|
| ``bert_base`` | 12 x 768 | 625 | 109 M parameters, 438 MB, in the file |
| ``bert_base_external`` | 12 x 768 | 625 | the same, as external data |
| ``bert_deep`` | 90 x 64 | 4,525 | 5 M parameters: what counts is the graph |
| ``bert_tiny`` | 1 x 32 | 75 | for tests |

``python bench/models.py KEY FOLDER`` makes one; ``made`` does so in a child process and only if it is not there yet.
onnx and numpy are imported late: the process that measures stays small (see ``machine.py``).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CACHE = Path.home() / ".cache" / "halfconv-bench" / "models"
ROOT = Path(__file__).resolve().parent.parent
ZOO_KEYS = (
    "magika",
    "minilm_ts",
    "minilm_dynamo",
    "efficientnet_lite0",
    "rapidocr_det",
    "rapidocr_rec",
    "silero_vad",
    "dnsmos_sig_bak_ovr",
    "resemblyzer_lstm",
)
VERSION = 1  # raise when the made models change, so that cached ones are not used
OPSET = 17


@dataclass(frozen=True, slots=True)
class Bert:
    """The sizes of one made model."""

    layers: int
    width: int
    heads: int
    words: int
    positions: int = 512
    external: bool = False
    seed: int = 0


MADE = {
    "bert_base": Bert(layers=12, width=768, heads=12, words=30522),
    "bert_base_external": Bert(layers=12, width=768, heads=12, words=30522, external=True),
    "bert_deep": Bert(layers=90, width=64, heads=4, words=8000),
    "bert_tiny": Bert(layers=1, width=32, heads=2, words=100, positions=32),
}
DEFAULT = ("bert_base", "bert_base_external", "bert_deep", *ZOO_KEYS)


@dataclass(frozen=True, slots=True)
class Case:
    """A model to convert and one input for it."""

    key: str
    model: Path
    sample: Path | None


def case(key: str, zoo: Path | None = None) -> Case:
    """Find or make the model of that key.

    Args:
        key: A key of ``MADE``, or a key of the zoo.
        zoo: The folder that holds ``KEY/model.onnx`` and ``KEY/s0.npz``; by default the tests' zoo, which ``python -m
            tests.zoo KEY`` builds if need be.

    Returns:
        The case.

    Raises:
        FileNotFoundError: There is no such model.
    """
    if key in MADE:
        return made(key)
    model = (zoo / key if zoo else _built(key)) / "model.onnx"
    if not model.is_file():
        raise FileNotFoundError(f"no model of key {key}: no made model has that name, and there is no {model}")
    sample = model.with_name("s0.npz")
    return Case(key, model, sample if sample.is_file() else None)


def _built(key: str) -> Path:
    """Have the tests' zoo build a model, in a process of its own, and return its folder."""
    command = [sys.executable, "-m", "tests.zoo", key]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FileNotFoundError(f"no model of key {key}: the zoo cannot build it: {said}"[:240])
    return Path(done.stdout.strip().splitlines()[-1].split(maxsplit=1)[1])


def made(key: str) -> Case:
    """Make the model of that key unless it is in the cache."""
    folder = CACHE / f"{key}-v{VERSION}"
    sample = folder / "s0.npz"  # written last
    if not sample.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, key, str(folder)], check=True)
    return Case(key, folder / "model.onnx", sample)


class _Builder:
    """Collects nodes and weights of one graph."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self.nodes: list[object] = []
        self.weights: list[object] = []
        self._random = np.random.default_rng(seed)
        self._names: set[str] = set()

    def op(self, kind: str, *inputs: str, name: str, **attributes: object) -> str:
        """Add a node with one output and return the output's name."""
        from onnx import helper

        output = f"{name}_output_0"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a weight with these values, once per name."""
        from onnx import numpy_helper

        if name not in self._names:
            self._names.add(name)
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, value: float, kind: str = "float32") -> str:
        """Add a one-element weight, shared by all who ask for the same value."""
        import numpy as np

        return self.constant(f"const_{kind}_{value:g}", np.array(value, dtype=kind))

    def ints(self, *values: int) -> str:
        """Add a list of int64, shared by all who ask for the same."""
        import numpy as np

        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def drawn(self, name: str, *shape: int, mean: float = 0.0, scale: float = 0.02) -> str:
        """Add a weight drawn from a normal distribution."""
        import numpy as np

        array = self._random.standard_normal(shape, dtype=np.float32)
        array *= np.float32(scale)
        array += np.float32(mean)
        return self.constant(name, array)

    def linear(self, x: str, wide: int, out: int, name: str) -> str:
        """Matrix product and bias."""
        product = self.op("MatMul", x, self.drawn(f"{name}.weight", wide, out), name=f"{name}/MatMul")
        return self.op("Add", product, self.drawn(f"{name}.bias", out), name=f"{name}/Add")

    def norm(self, x: str, width: int, name: str) -> str:
        """LayerNorm over the last axis, decomposed."""
        mean = self.op("ReduceMean", x, name=f"{name}/ReduceMean", axes=[-1])
        centred = self.op("Sub", x, mean, name=f"{name}/Sub")
        square = self.op("Pow", centred, self.scalar(2.0), name=f"{name}/Pow")
        variance = self.op("ReduceMean", square, name=f"{name}/ReduceMean_1", axes=[-1])
        safe = self.op("Add", variance, self.scalar(1e-12), name=f"{name}/Add")
        root = self.op("Sqrt", safe, name=f"{name}/Sqrt")
        normal = self.op("Div", centred, root, name=f"{name}/Div")
        gain = self.drawn(f"{name}.weight", width, mean=1.0, scale=0.1)
        scaled = self.op("Mul", normal, gain, name=f"{name}/Mul")
        return self.op("Add", scaled, self.drawn(f"{name}.bias", width), name=f"{name}/Add_1")

    def gelu(self, x: str, name: str) -> str:
        """GELU through Erf, the exact one."""
        erf = self.op("Erf", self.op("Div", x, self.scalar(2**0.5), name=f"{name}/Div"), name=f"{name}/Erf")
        gate = self.op("Add", erf, self.scalar(1.0), name=f"{name}/Add")
        return self.op("Mul", self.op("Mul", x, gate, name=f"{name}/Mul"), self.scalar(0.5), name=f"{name}/Mul_1")

    def attention(self, x: str, mask: str, size: Bert, name: str) -> str:
        """Multi-head self-attention with an additive mask."""
        per_head = self.ints(0, 0, size.heads, size.width // size.heads)
        parts = {}
        for part, axes in {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}.items():
            y = self.linear(x, size.width, size.width, f"{name}/{part}")
            y = self.op("Reshape", y, per_head, name=f"{name}/{part}/Reshape")
            parts[part] = self.op("Transpose", y, name=f"{name}/{part}/Transpose", perm=axes)
        scores = self.op("MatMul", parts["query"], parts["key"], name=f"{name}/MatMul")
        scaled = self.op("Div", scores, self.scalar((size.width // size.heads) ** 0.5), name=f"{name}/Div")
        masked = self.op("Add", scaled, mask, name=f"{name}/Add")
        weights = self.op("Softmax", masked, name=f"{name}/Softmax", axis=-1)
        mixed = self.op("MatMul", weights, parts["value"], name=f"{name}/MatMul_1")
        mixed = self.op("Transpose", mixed, name=f"{name}/Transpose", perm=[0, 2, 1, 3])
        joined = self.op("Reshape", mixed, self.ints(0, 0, size.width), name=f"{name}/Reshape")
        return self.linear(joined, size.width, size.width, f"{name}/output")

    def embed(self, size: Bert) -> str:
        """Word, segment and position embeddings, added and normalised."""
        words = self.drawn("embeddings.word", size.words, size.width)
        word = self.op("Gather", words, "input_ids", name="embeddings/word/Gather")
        kinds = self.drawn("embeddings.token_type", 2, size.width)
        kind = self.op("Gather", kinds, "token_type_ids", name="embeddings/token_type/Gather")
        shape = self.op("Shape", "input_ids", name="embeddings/Shape")
        length = self.op("Gather", shape, self.ints(1), name="embeddings/Gather")
        places = self.drawn("embeddings.position", size.positions, size.width)
        place = self.op("Slice", places, self.ints(0), length, self.ints(0), name="embeddings/Slice")
        both = self.op("Add", word, kind, name="embeddings/Add")
        return self.norm(self.op("Add", both, place, name="embeddings/Add_1"), size.width, "embeddings/LayerNorm")

    def mask(self) -> str:
        """0 where the attention mask is 1, the lowest FP32 number where it is 0."""
        wide = self.op("Unsqueeze", "attention_mask", self.ints(1, 2), name="mask/Unsqueeze")
        number = self.op("Cast", wide, name="mask/Cast", to=1)
        inverse = self.op("Sub", self.scalar(1.0), number, name="mask/Sub")
        return self.op("Mul", inverse, self.scalar(-3.4028234663852886e38), name="mask/Mul")


def build(size: Bert) -> object:
    """Build a made model.

    Args:
        size: Its sizes.

    Returns:
        An ``onnx.ModelProto``.
    """
    from onnx import TensorProto, helper

    b = _Builder(size.seed)
    mask = b.mask()
    x = b.embed(size)
    for layer in range(size.layers):
        name = f"encoder/layer.{layer}"
        attended = b.attention(x, mask, size, f"{name}/attention")
        x = b.norm(b.op("Add", attended, x, name=f"{name}/Add"), size.width, f"{name}/attention/LayerNorm")
        y = b.gelu(b.linear(x, size.width, 4 * size.width, f"{name}/up"), f"{name}/gelu")
        y = b.linear(y, 4 * size.width, size.width, f"{name}/down")
        x = b.norm(b.op("Add", y, x, name=f"{name}/Add_1"), size.width, f"{name}/LayerNorm")
    hidden = b.op("Identity", x, name="last_hidden_state")
    first = b.op("Gather", x, b.scalar(0, "int64"), name="pooler/Gather", axis=1)
    pooled = b.op("Tanh", b.linear(first, size.width, size.width, "pooler/dense"), name="pooler/Tanh")
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    results = [
        helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["batch", "sequence", size.width]),
        helper.make_tensor_value_info(pooled, TensorProto.FLOAT, ["batch", size.width]),
    ]
    graph = helper.make_graph(b.nodes, "bert", tokens, results, b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def main(key: str, folder: str) -> None:
    """Make one model and a sample in a folder.

    Args:
        key: A key of ``MADE``.
        folder: An existing folder.
    """
    import numpy as np
    import onnx

    size, target = MADE[key], Path(folder) / "model.onnx"
    target.with_suffix(".data").unlink(missing_ok=True)  # onnx would append to it
    external = {"save_as_external_data": True, "location": "model.data"} if size.external else {}
    onnx.save(build(size), target, **external)
    random, shape = np.random.default_rng(size.seed), (2, min(64, size.positions))
    mask = np.ones(shape, np.int64)
    mask[1, shape[1] // 2 :] = 0
    ids = random.integers(0, size.words, shape)
    np.savez(target.with_name("s0.npz"), input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))


if __name__ == "__main__":
    main(*sys.argv[1:3])
