"""Weights to the form that the GPU's products read: tensors of the checkpoint are unpacked and prepacked on the device, by
blocks of output channels, so that it never holds more than a block in any other form."""

from typing import Protocol

import torch

from qqq_vllm import _native
from qqq_vllm.formats import Part, Upload, span

# Output channels of a chunk, whose rows no two launches may share.
_CHUNK = 64
#: Bytes of codes (int8) that are unpacked at a time: less than what vLLM keeps PyTorch from splitting while it loads (20 MB), so that
#: no weight comes to lie in such a block and takes all of it.
BLOCK_BYTES = 16 << 20


class Kernel(Protocol):
    """As `_native.Prepack`."""

    def chunks_bytes(self, n: int, k: int) -> int: ...

    def launch(
        self,
        stream: int,
        shape: tuple[int, int],
        codes: int,
        scales: int,
        channel_scale: int,
        chunks: int,
        padded_scale: int,
    ) -> None: ...


class Uploader:
    """Copies host memory to a GPU through two pinned buffers in turn: the file's pages are read by all cores while the
    other buffer is on its way."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: list[torch.Tensor] = []
        self.events = [torch.cuda.Event(), torch.cuda.Event()]
        self.turn = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        source = tensor.contiguous().view(-1).view(torch.uint8)
        size = source.numel()
        if not self.buffers or self.buffers[0].numel() < size:
            torch.cuda.synchronize(self.device)
            size = max(size, BLOCK_BYTES)
            self.buffers = [torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(2)]
        self.turn ^= 1
        buffer, event = self.buffers[self.turn][: source.numel()], self.events[self.turn]
        event.synchronize()
        _native.copy_bytes(span(source), span(buffer))
        there = torch.empty(source.numel(), dtype=torch.uint8, device=self.device)
        there.copy_(buffer, non_blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        return there.view(tensor.dtype).view(tensor.shape)


def read_scales(parts: list[Part]) -> tuple[str, torch.Tensor, torch.Tensor | None]:
    """How a GPU stores these weights; channel scales (float32, `N`) and group scales (float16, `N x groups`) on the host."""
    n, k = sum(p.shape[0] for p in parts), parts[0].shape[1]
    group_size = parts[0].layer.format.group_size
    channel = torch.empty(n, dtype=torch.float32, device="cpu")
    group = None if group_size is None else torch.empty((n, k // group_size), dtype=torch.float16, device="cpu")
    kind = _native.read_scales([p.native for p in parts], span(channel), None if group is None else span(group))
    return kind, channel, group


def prepack(
    parts: list[Part],
    scales: tuple[str, torch.Tensor, torch.Tensor | None],
    kernel: Kernel,
    upload: Upload,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The chunks (bytes) and padded channel scales of parts that lie one below the other; `scales` are those of
    :func:`read_scales`."""
    kind, channel, group = scales
    n, k = sum(p.shape[0] for p in parts), parts[0].shape[1]
    chunks = torch.empty(kernel.chunks_bytes(n, k), dtype=torch.uint8, device=device)
    padded = torch.empty(-(-n // _CHUNK) * _CHUNK, dtype=torch.float32, device=device)
    channel = upload(channel)
    if group is not None:
        # Integers are stored in a byte; the kind says that all are.
        group = upload(group) if kind.endswith("-half") else upload(group).to(torch.uint8)
    block = max(BLOCK_BYTES // k // _CHUNK, 1) * _CHUNK
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    for start in range(0, n, block):
        end = min(start + block, n)
        codes = torch.empty((end - start, k), dtype=torch.int8, device=device)
        first = 0
        for part in parts:
            last = first + part.shape[0]
            low, high = max(first, start), min(last, end)
            if low < high:
                rows = part.rows[0] + low - first, part.rows[0] + high - first
                part.layer.format.codes(part, rows, codes[low - start : high - start], upload)
            first = last
        kernel.launch(
            stream,
            (end - start, k),
            codes.data_ptr(),
            0 if group is None else group[start:].data_ptr(),
            channel[start:].data_ptr(),
            chunks.data_ptr() + kernel.chunks_bytes(start, k),
            padded[start:].data_ptr(),
        )
    return chunks, padded
