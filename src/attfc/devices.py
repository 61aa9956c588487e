"""Which device a name means on this machine."""

import torch

from attfc.errors import UserError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """``auto`` is the accelerator if the machine has one, else the processor.

    Raises:
        UserError: a device that torch does not know or this machine lacks.
    """
    if name == "auto":
        return (
            torch.accelerator.current_accelerator() or torch.device("cpu")
            if torch.accelerator.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"device={name!r} cannot be used here ({reason}): try device=auto") from None
    return device
