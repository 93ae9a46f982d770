"""A library of one custom operator for the CPU, compiled from what it computes and `ort.h`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from halfconv.kernels.build import SOURCES

SOURCE = """
#include <cstring>
#include <limits>
#include "ort.h"
namespace {
%(node)s
ort::CustomOp op;
}
extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const auto* api = base->api(ort::kVersion);
  std::memset(&op, 0, sizeof op);
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp*) { return "%(name)s"; };
  op.provider = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.inputs = [](const ort::CustomOp*) -> size_t { return %(inputs)d; };
  op.outputs = [](const ort::CustomOp*) -> size_t { return 1; };
  op.input_type = [](const ort::CustomOp*, size_t) { return %(element)d; };
  op.output_type = op.input_type;
  op.input_characteristic = [](const ort::CustomOp*, size_t) { return 0; };
  op.output_characteristic = op.input_memory = op.input_characteristic;
  op.create_checked = [](const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** made) -> ort::Status* {
    try {
      *made = new Node(api, ort::Attributes(api, info));
      return nullptr;
    } catch (const std::exception& error) { return ort::failed(api, error.what()); }
  };
  op.compute_checked = [](void* state, ort::KernelContext* context) -> ort::Status* {
    const auto& node = *static_cast<Node*>(state);
    try {
      node.compute(ort::Run(node.api, context));
      return nullptr;
    } catch (const std::exception& error) { return ort::failed(node.api, error.what()); }
  };
  op.destroy = [](void* state) { delete static_cast<Node*>(state); };
  op.first_version = [](const ort::CustomOp*) { return 1; };
  op.last_version = [](const ort::CustomOp*) { return std::numeric_limits<int>::max(); };
  op.may_inplace = [](int**, int**) -> size_t { return 0; };
  op.alias = op.may_inplace;
  ort::Domain* domain = nullptr;
  const auto make = ort::function<ort::Status* (*)(const char*, ort::Domain**)>(api, ort::kCreateCustomOpDomain);
  ort::check(api, make("%(domain)s", &domain));
  ort::check(api, ort::function<ort::Status* (*)(ort::Domain*, const ort::CustomOp*)>(api, ort::kCustomOpDomainAdd)(domain, &op));
  return ort::function<ort::Status* (*)(ort::SessionOptions*, ort::Domain*)>(api, ort::kAddCustomOpDomain)(options, domain);
}
"""


def compiled(folder: Path, domain: str, name: str, inputs: int, element: int, node: str) -> Path:
    """Compile an operator; skip the test where there is no compiler.

    Args:
        folder: Where to.
        domain: Its domain.
        name: Its name.
        inputs: How many it has; it has one output.
        element: ONNX's number of the type of all of them.
        node: C++ of a ``struct Node``, made of the API and the attributes, with ``api`` and ``compute(run) const``.
    """
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, which compiles the operator")
    source, made = folder / "op.cc", folder / "op.so"
    source.write_text(SOURCE % {"domain": domain, "name": name, "inputs": inputs, "element": element, "node": node})
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", "-I", str(SOURCES), str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made
