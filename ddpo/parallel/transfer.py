"""From the host to a device, without making the host wait for it."""

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host, on the device.

    A plain copy from pageable memory would wait until the device has done all that was asked of it
    before; from pinned memory it is one more thing in its queue.
    """
    if device.type != "cuda" or host.device == device:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
