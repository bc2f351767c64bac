"""CUDA graphs: a function's kernels captured once, and launched as one from then on."""

from collections.abc import Callable

import torch
from torch import Tensor


class Graph:
    """A function on a GPU that is captured at its second call and replayed from then on.

    Launching a kernel takes a processor core some microseconds, longer than many of a low-bit
    model's kernels run. The function must do the same to the same memory at every call; of its
    Python code, nothing runs in a replay. It may draw random numbers: a replay draws those that the
    function would have drawn.

    Args:
        function: Takes tensors of the same shapes at every call; returns one, or nothing.
    """

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream()
        self._ready = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[Tensor] = []
        self._result: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        """What the function returns."""
        if not self._ready:
            self._ready = True
            return self._run(inputs)
        if self._graph is None:
            self._capture(inputs)
        assert self._graph is not None
        for place, given in zip(self._places, inputs, strict=True):
            place.copy_(given)
        self._graph.replay()
        return None if self._result is None else self._result.clone()

    def forget(self) -> None:
        """Capture anew at the next call: memory, or a number in the Python code, has changed."""
        self._graph = None
        self._result = None

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Let the function compile and reserve what it needs, where it will be captured."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._places = [given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        # other threads go on meanwhile, as the one that pins the memory of loaded images
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._result = self._function(*self._places)
        self._graph = graph


def capturing() -> bool:
    """Return whether a graph is being captured here and now."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
