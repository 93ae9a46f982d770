"""Serve the model of this package over HTTP. It needs numpy and ONNX Runtime only.

    python serve.py --host 0.0.0.0 --port 8080

| request | answer |
|---|---|
| POST /predict, JSON `{"inputs": {"NAME": [...]}}` | `{"outputs": {"NAME": [...]}}`; NaN and infinities are null |
| POST /predict, `Content-Type: application/x-npz` | an .npz file with the outputs (`Accept` chooses either, too) |
| GET /model | names, types and shapes of the inputs and outputs |
| GET /health | 200 while the process lives |
| GET /ready | 200 once the model has given a recorded output, until it shuts down; else 503 |
| GET /metrics | Prometheus' text format |

400: the inputs do not fit. 411, 413: no length, or too long. 415: another content type. 503: the queue is full, or not ready; try
again. 504: the run took too long. SIGTERM and SIGINT: no new requests, those in work are answered, exit code 0.
There is no authentication and no encryption: put it behind something that has them.
"""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.dont_write_bytecode = True  # the package stays as it was copied
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

try:
    import numpy as np
    import onnxruntime

    from vendored.deploy.manifest import check, read_manifest, require_version
    from vendored.deploy.recorded import read_samples
    from vendored.deploy.verifying import compare
    from vendored.errors import HalfconvError, InputError, PoolFull, RunStopped
    from vendored.runtime.pool import Pool
    from vendored.runtime.session import Session
    from vendored.sample_files import npz_file
except ImportError as error:
    print(f"serve: {error}; try: pip install -r requirements.txt", file=sys.stderr)
    sys.exit(2)

JSON, NPZ = "application/json", "application/x-npz"
#: Upper ends of the histogram's buckets, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: What a connection is told that is one too many.
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Refused(Exception):
    """A request that gets an error's status."""

    def __init__(self, status, words):
        super().__init__(words)
        self.status = status


class Metrics:
    """Counters, as Prometheus reads them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._requests, self._buckets, self._seconds, self._count, self.in_flight = {}, [0] * len(BUCKETS), 0.0, 0, 0

    @contextlib.contextmanager
    def work(self):
        """Count a request that is in work."""
        with self._lock:
            self.in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1

    def add(self, status, seconds):
        """Count a prediction that was answered."""
        with self._lock:
            self._requests[status] = self._requests.get(status, 0) + 1
            if status == 200:
                self._count += 1
                self._seconds += seconds
                for place, end in enumerate(BUCKETS):
                    self._buckets[place] += seconds <= end

    def text(self, service):
        """Return Prometheus' text."""
        stats, model = service.pool.stats if service.pool else None, service.manifest
        names = {"name": model["name"], "sha256": service.sha256, "provider": service.provider, "to": model["to"]}
        labels = ",".join(f"{key}={json.dumps(str(value))}" for key, value in names.items())
        with self._lock:
            lines = ["# TYPE halfconv_requests_total counter"]
            lines += [f'halfconv_requests_total{{status="{s}"}} {n}' for s, n in sorted(self._requests.items())]
            lines += ["# TYPE halfconv_request_seconds histogram"]
            lines += [f'halfconv_request_seconds_bucket{{le="{e}"}} {n}' for e, n in zip(BUCKETS, self._buckets, strict=True)]
            lines += [f'halfconv_request_seconds_bucket{{le="+Inf"}} {self._count}']
            lines += [f"halfconv_request_seconds_sum {self._seconds:.6f}", f"halfconv_request_seconds_count {self._count}"]
            lines += ["# TYPE halfconv_in_flight gauge", f"halfconv_in_flight {self.in_flight}"]
        if stats is not None:
            lines += ["# TYPE halfconv_waiting gauge", f"halfconv_waiting {stats.waiting}"]
            lines += ["# TYPE halfconv_runs_total counter", f"halfconv_runs_total {stats.runs}"]
            lines += ["# TYPE halfconv_refused_total counter", f"halfconv_refused_total {stats.refused}"]
        lines += ["# TYPE halfconv_ready gauge", f"halfconv_ready {int(service.ready.is_set())}"]
        lines += ["# TYPE halfconv_model_info gauge", f"halfconv_model_info{{{labels}}} 1"]
        return "\n".join(lines) + "\n"


class Budget:
    """Bytes of bodies, and of the arrays in them, that may be in memory at the same time."""

    def __init__(self, most):
        self._lock, self._left = threading.Lock(), most

    @contextlib.contextmanager
    def taken(self, number):
        """Take some for a while; refuse where none are left."""
        with self._lock:
            if number > self._left:
                raise Refused(503, "too many bytes of requests are in work; try again")
            self._left -= number
        try:
            yield
        finally:
            with self._lock:
                self._left += number


class Service:
    """The model, and what is known of it."""

    def __init__(self, options):
        self.options, self.metrics, self.ready = options, Metrics(), threading.Event()
        self.budget = Budget(max(options.max_total, 2 * options.max_body))  # one request fits
        self.manifest = check(HERE) if options.check else read_manifest(HERE)
        require_version(self.manifest, onnxruntime.__version__)
        name = f"model/{self.manifest['model']}"
        self.sha256 = next(entry["sha256"] for entry in self.manifest["files"] if entry["path"] == name)
        self.pool = self.session = None
        self.provider = "none"

    def start(self):
        """Load the model, and compare it on a recorded sample: the first request finds everything ready, and right."""
        options, recording = self.options, read_samples(HERE / "samples")
        model = HERE / "model" / self.manifest["model"]
        self.session = Session(model, provider=options.provider, threads=options.threads)
        self.provider = self.session.provider
        outcome = compare(replace(recording, samples=recording.samples[:1]), self.session.run)
        if options.check and not outcome.passed:
            raise InputError(f"the model does not give the recorded outputs: {'; '.join(outcome.lines)}", "python verify.py")
        self.pool = Pool(
            self.session, workers=options.workers, queue=options.queue, max_batch=options.max_batch, max_delay=options.max_delay
        )
        self.ready.set()

    def predict(self, feeds):
        """Run a request; what waits too long is given up."""
        if not self.ready.is_set():
            raise Refused(503, "not ready; try again")
        limit = self.options.timeout
        try:
            future = self.pool.submit(feeds, timeout=limit, block=False)
            return future.result(limit)
        except PoolFull as error:
            raise Refused(503, str(error)) from None
        except (RunStopped, FutureTimeout):
            raise Refused(504, f"the run took more than {limit:g} s") from None
        except InputError as error:
            raise Refused(400, str(error)) from None

    def close(self):
        """Release the model."""
        if self.pool is not None:
            self.pool.close()
        if self.session is not None:
            self.session.close()


def read_feeds(kind, body, service, taken):
    """Read a request's inputs; nothing is unpickled, and arrays are bounded, and counted as `taken`, before they are read."""
    specs, limit = service.session.input_specs, service.options.max_body
    if kind == JSON:
        try:
            content = json.loads(body)
            inputs = content["inputs"]
            if not isinstance(inputs, dict):
                raise TypeError("'inputs' is no object")
            return {name: _array(value, specs, name) for name, value in inputs.items()}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise Refused(400, f'no JSON of the form {{"inputs": {{"NAME": [...]}}}}: {error}') from None
    try:
        stored = npz_file(body, "the request", len(specs))
        if (needed := sum(math.prod(array.shape) * array.dtype.itemsize for array in stored.values())) > limit:
            raise Refused(413, f"the arrays take more than {limit:,} bytes")
        taken.enter_context(service.budget.taken(needed))
        return {name: array.read() for name, array in stored.items()}
    except InputError as error:
        raise Refused(400, str(error)) from None


def _array(value, specs, name):
    if (spec := specs.get(name)) is None:
        raise Refused(400, f"there is no input '{name}'; try: {', '.join(specs)}")
    array = np.asarray(value, "float32" if spec.element in ("float16", "bfloat16") else spec.element)
    if array.dtype.kind != "f" and array.size and ((raw := np.asarray(value)).dtype.kind not in "biuf" or (array != raw).any()):
        raise TypeError(f"'{name}' has elements that are no {spec.element}")  # numpy would cut or wrap them
    return array


def write_outputs(kind, outputs):
    """Return the body of an answer."""
    if kind == NPZ:
        stream = io.BytesIO()
        np.savez(stream, **outputs)
        return stream.getvalue()
    content = {"outputs": {name: array.tolist() for name, array in outputs.items()}}
    try:
        return json.dumps(content, allow_nan=False).encode()
    except ValueError:  # JSON has no NaN and no infinity
        return json.dumps(_finite(content), allow_nan=False).encode()


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "halfconv"
    sys_version = ""
    timeout = 30  # seconds that a connection may be silent
    busy = keep = False

    @property
    def service(self):
        """The model."""
        return self.server.service

    def do_GET(self):
        """Answer what is asked about the service."""
        service, path = self.service, self.path.partition("?")[0]
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body is not read, and must not be taken for the next request
        if path == "/health":
            self.answer(200, {"status": "ok"})
        elif path == "/ready":
            ready = service.ready.is_set()
            self.answer(200 if ready else 503, {"status": "ready" if ready else "not ready"})
        elif path == "/metrics":
            self.send(200, service.metrics.text(service).encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/model":
            keys = ("name", "to", "halfconv", "inputs", "outputs", "tolerance")
            self.answer(200, {**{key: service.manifest[key] for key in keys}, "provider": service.provider})
        else:
            self.answer(404, {"error": "there is /predict, /model, /health, /ready, /metrics"})

    def do_POST(self):
        """Answer a prediction."""
        begun, service = time.perf_counter(), self.service
        with service.metrics.work(), contextlib.ExitStack() as taken:
            try:
                length, kind = self.length_and_type()
                taken.enter_context(service.budget.taken(length))
                body = self.read_body(length)
                if self.path.partition("?")[0] != "/predict":
                    raise Refused(404, "there is POST /predict")
                if not service.ready.is_set():
                    raise Refused(503, "not ready; try again")
                feeds = read_feeds(kind, body, service, taken)
                asked = [part.partition(";")[0].strip() for part in self.headers.get("Accept", "").split(",")]
                wanted = next((part for part in asked if part in (JSON, NPZ)), kind)
                status, answer = 200, write_outputs(wanted, service.predict(feeds))
            except Refused as refused:
                status, wanted, answer = refused.status, JSON, json.dumps({"error": str(refused)}).encode()
            except (ConnectionError, TimeoutError):
                self.close_connection = True
                return
            except Exception as error:
                print(f"serve: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                status, wanted, answer = 500, JSON, b'{"error": "internal error"}'
            service.metrics.add(status, time.perf_counter() - begun)
            with contextlib.suppress(ConnectionError, TimeoutError):
                self.send(status, answer, wanted)

    def parse_request(self):
        """A request has begun."""
        self.busy = True
        return super().parse_request()

    def handle_one_request(self):
        """Answer a request."""
        super().handle_one_request()
        self.busy = False

    def length_and_type(self):
        """Return the length of the body and its type; where that is an error, the body is not read, and the connection ends."""
        lengths, most = self.headers.get_all("Content-Length", []), self.service.options.max_body
        length = lengths[0] if len(lengths) == 1 and "Transfer-Encoding" not in self.headers else None
        self.keep, self.close_connection = not self.close_connection, True
        if length is None or not length.isascii() or not length.isdecimal():
            raise Refused(411, "one Content-Length is needed, and no other encoding")
        if len(length) > 18 or int(length) > most:
            raise Refused(413, f"the body has more than {most:,} bytes")
        kind = self.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        if kind in ("application/octet-stream", "application/zip"):
            kind = NPZ
        if kind not in (JSON, NPZ):
            raise Refused(415, f"the content type must be {JSON} or {NPZ}")
        return int(length), kind

    def read_body(self, length):
        """Return the body."""
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the body ends early")
        self.close_connection = not self.keep
        return body

    def answer(self, status, content):
        """Send JSON."""
        self.send(status, json.dumps(content).encode(), JSON)

    def send(self, status, body, kind):
        """Send an answer."""
        if self.server.closing:
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        """Say nothing of requests: metrics count them."""

    def setup(self):
        """Be known to the server while the connection is open."""
        super().setup()
        self.server.open(self)

    def finish(self):
        """Be forgotten."""
        self.server.forget(self)
        with contextlib.suppress(ConnectionError, ValueError):
            super().finish()


class Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are at most so many."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address, service):
        super().__init__(address, Handler)
        self.service, self.closing = service, False
        self._lock, self._handlers, self._room = threading.Lock(), set(), threading.BoundedSemaphore(service.options.connections)

    def process_request(self, request, address):
        """Answer a connection in a thread; refuse it where there are too many."""
        if not self._room.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(FULL)
            self.shutdown_request(request)
            return
        super().process_request(request, address)

    def process_request_thread(self, request, address):
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, address)
        finally:
            self._room.release()

    def handle_error(self, request, address):
        """Say nothing of clients that are gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, address)

    def open(self, handler):
        """Remember a connection."""
        with self._lock:
            self._handlers.add(handler)

    def forget(self, handler):
        """Forget one."""
        with self._lock:
            self._handlers.discard(handler)

    def drain(self):
        """Take no more connections; end those that wait for a request."""
        self.closing = True
        self.service.ready.clear()
        self.shutdown()
        with self._lock:
            for handler in self._handlers:
                if not handler.busy:
                    with contextlib.suppress(OSError):
                        handler.connection.shutdown(socket.SHUT_RD)  # an answer can still be sent
        late = threading.Timer(self.service.options.timeout + 5, self.end_all)
        late.daemon = True
        late.start()

    def end_all(self):
        """End what does not end by itself, such as a client that never sends all of its request."""
        with self._lock:
            for handler in self._handlers:
                with contextlib.suppress(OSError):
                    handler.connection.shutdown(socket.SHUT_RDWR)


def size(text):
    """Read a number of bytes, such as 32MB."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
    number = text.upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in units and number[-1:] else ""
    return int(float(number.removesuffix(unit)) * units[unit])


def parse(arguments=None):
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--provider", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    parser.add_argument("--threads", type=int, help="that compute one run on the CPU")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait")
    parser.add_argument("--max-batch", type=int, default=1, help="rows of requests that may run together")
    parser.add_argument("--max-delay", type=float, default=0.002, help="seconds that a request waits for others")
    parser.add_argument("--max-body", type=size, default=32 * 10**6, help="bytes of a request, as 32MB")
    parser.add_argument("--max-total", type=size, default=256 * 10**6, help="bytes of all requests in work")
    parser.add_argument("--connections", type=int, default=128, help="open at the same time")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds of one prediction, the wait included")
    parser.add_argument("--no-check", dest="check", action="store_false", help="compare neither files nor outputs first")
    return parser.parse_args(arguments)


def main():
    """Serve until a signal."""
    options = parse()
    try:
        service = Service(options)
        server = Server((options.host, options.port), service)
    except (HalfconvError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    failed, ends = [], {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # waited for below, by this thread alone

    def load():
        try:
            service.start()
            print(f"serve: ready on {service.provider}", flush=True)
        except Exception as error:
            failed.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    print(f"serve: listening on http://{options.host}:{server.server_port}", flush=True)
    listening = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    loading = threading.Thread(target=load, daemon=True)
    for thread in (listening, loading):
        thread.start()
    signal.sigwait(ends)
    server.drain()
    server.server_close()  # waits for the requests in work
    listening.join()
    if loading.is_alive():  # ONNX Runtime cannot be told to stop loading
        print("serve: stopped", flush=True)
        os._exit(0)
    service.close()
    if failed:
        print(f"serve: {' '.join(str(failed[0]).split())}", file=sys.stderr)
        return 2
    print("serve: stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
