"""CUDA graphs: the kernels of a function, captured once and launched together afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor


class Graph:
    """Function on a GPU that is captured at its second call and replayed from then on.

    Launching a kernel takes a CPU core some microseconds, longer than many of a low-bit model's
    kernels run. The function must launch the same kernels on the same memory at every call; a
    replay runs none of its Python code. It may draw random numbers: a replay draws those that the
    function would have drawn.

    Args:
        function: Takes tensors of the same shapes at every call; returns a tensor or None.
    """

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream()
        self._ready = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[Tensor] = []
        self._result: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        """Call or replay the function, and return its result."""
        if not self._ready:
            self._ready = True
            return self._run(inputs)
        if self._graph is None:
            self._capture(inputs)
        assert self._graph is not None
        for place, tensor in zip(self._places, inputs, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return None if self._result is None else self._result.clone()

    def forget(self) -> None:
        """Capture again at the next call: memory, or a number in the Python code, has changed."""
        self._graph = None
        self._result = None

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Call the function on the stream of the capture, to compile and allocate what it needs."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._places = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        # other threads may use CUDA meanwhile, such as the one that pins loaded images
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._result = self._function(*self._places)
        self._graph = graph


def capturing() -> bool:
    """Return whether the current stream is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
