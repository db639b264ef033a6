"""What a model file costs where it runs, beside the same model without pruning.

The dense model is made from the file itself: the same computation in the same format, with a value
in place of every zero weight, and 32-bit weights. Both run in fresh processes with one thread, on
one example at a time, in turns, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fedprune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_BURST = 5  # Inferences in a turn.
_FILL = 0.01  # The size of weights in place of zeros: of no weight for the time, far from denormal numbers.


@dataclass(frozen=True)
class Cost:
    """What one file costs.

    ``size`` is the file's, in bytes. ``seconds`` is the median time of an inference. ``memory`` is
    by how many bytes the process's resident memory grew at most, from before the file was read
    until after the first inferences; None where the system, other than Linux, does not say.
    """

    size: int
    seconds: float
    memory: int | None


def bench(path: str | Path, *, turns: int = 30) -> tuple[Cost, Cost]:
    """Measure a model file and its dense model.

    Parameters
    ----------
    path
        An .onnx, .pt2 or .safetensors file, as `fedprune.results.export` writes them. Opening a
        .pt2 file or a user's model runs code.
    turns
        How often each of the two runs its inferences, 5 in a row.

    Raises
    ------
    UserError
        Where the file is missing, of another kind, or cannot be run.
    ModuleNotFoundError
        For ONNX without the extra ``export``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    if path.suffix not in _RUNTIMES:
        raise UserError(f"{path}: not a kind of model that can be run; the kinds are: {', '.join(_RUNTIMES)}")
    with TemporaryDirectory() as directory:
        dense = Path(directory) / f"dense{path.suffix}"
        try:
            _RUNTIMES[path.suffix].densify(path, dense)
        except (ModuleNotFoundError, UserError):
            raise
        except Exception as error:  # Whatever the readers raise for a damaged file.
            raise UserError(f"{path}: not a model file, or damaged: {_line(error)}") from error
        with _worker(path) as (ours, memory), _worker(dense) as (theirs, dense_memory):
            times: tuple[list[float], list[float]] = [], []
            for _ in range(turns):
                for connection, seconds in zip((ours, theirs), times, strict=True):
                    connection.send(_BURST)
                    seconds += _received(connection, path)
            return (
                Cost(path.stat().st_size, statistics.median(times[0]), memory),
                Cost(dense.stat().st_size, statistics.median(times[1]), dense_memory),
            )


@contextmanager
def _worker(path: Path) -> Iterator[tuple[Connection, int | None]]:
    """Have a fresh process that holds a model; yield the way to it and what memory the model took."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(path, there), daemon=True)
    process.start()
    there.close()
    try:
        yield here, _received(here, path)
    finally:
        here.close()
        process.join(timeout=5)
        process.kill()
        process.join()


def _received(connection: Connection, path: Path) -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f"{path}: the process that ran it ended; it may lack memory") from None
    if isinstance(answer, str):
        raise UserError(f"{path}: cannot be run: {answer}")
    return answer


def _serve(path: Path, connection: Connection) -> None:
    """Load a model, say what memory that took, then answer each number with as many durations, in seconds."""
    try:
        runtime = _RUNTIMES[path.suffix]
        import_module(runtime.library)
        _forget_peak()
        before = _resident("VmRSS")
        infer = runtime.load(path)
        for _ in range(_BURST):
            infer()
        after = _resident("VmHWM")
        connection.send(None if before is None or after is None else max(after - before, 0))
        while True:
            connection.send([_timed(infer) for _ in range(connection.recv())])
    except EOFError:  # Nobody asks any more.
        return
    except Exception as error:
        connection.send(_line(error))


def _timed(infer: Callable[[], object]) -> float:
    start = time.perf_counter()
    infer()
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Set the peak of this process's resident memory, VmHWM, back to what is resident now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int | None:
    """Return VmRSS or VmHWM of this process, in bytes; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _load_onnx(path: Path) -> Callable[[], object]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = given.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32")
    example = np.ones((1, *given.shape[1:]), dtype=dtype)
    return lambda: session.run(None, {given.name: example})


def _load_program(path: Path) -> Callable[[], object]:
    import torch

    program = torch.export.load(path)
    (image,), _ = program.example_inputs
    return _with_torch(program.module(), image[:1])


def _load_safetensors(path: Path) -> Callable[[], object]:

    from fedprune.results.modelfile import example_of, read_model

    stored = read_model(path)
    return _with_torch(stored.module, example_of(stored.info, 1))


def _with_torch(module: Callable[[Tensor], Tensor], image: Tensor) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)

    def infer() -> Tensor:
        with torch.inference_mode():
            return module(image)

    return infer


def _densify_onnx(path: Path, dense: Path) -> None:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from fedprune.results.onnx_weights import unpack

    model = onnx.load(path)
    unpack(model)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1 and array.dtype == np.float32:
            filled = np.where(array == 0, _FILL * random.standard_normal(array.shape), array)
            tensor.CopyFrom(numpy_helper.from_array(filled.astype(np.float32), tensor.name))
    onnx.save(model, dense)


def _densify_program(path: Path, dense: Path) -> None:
    import torch

    program = torch.export.load(path)
    _fill(program.state_dict.values())
    torch.export.save(program, dense)


def _densify_safetensors(path: Path, dense: Path) -> None:
    from fedprune.results.modelfile import read_model, save_model
    from fedprune.sparsity.masks import Masks
    from fedprune.wire.layout import get_state

    stored = read_model(path)
    state = get_state(stored.module)
    _fill(state.values())
    save_model(dense, state, Masks(), **vars(stored.info))


def _fill(tensors: Iterable[Tensor]) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for tensor in tensors:
        if tensor.dim() > 1 and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * _FILL
            with torch.no_grad():
                tensor.copy_(torch.where(tensor == 0, noise.to(tensor.dtype), tensor))


@dataclass(frozen=True)
class _Runtime:
    """How a kind of file is run, by what, and how its dense model is written."""

    library: str  # Imported before memory is measured.
    load: Callable[[Path], Callable[[], object]]
    densify: Callable[[Path, Path], None]


_RUNTIMES = {
    ".onnx": _Runtime("onnxruntime", _load_onnx, _densify_onnx),
    ".pt2": _Runtime("torch.export", _load_program, _densify_program),
    ".safetensors": _Runtime("fedprune.results.modelfile", _load_safetensors, _densify_safetensors),
}
