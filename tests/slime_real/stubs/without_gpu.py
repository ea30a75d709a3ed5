"""What Megatron's parser and validation ask a GPU machine for, answered where there is none.

The stand-in for SGLang imports this, because slime's parser imports SGLang before Megatron.
"""

import importlib.util
import sys
import types

import torch

if importlib.util.find_spec("triton") is None:
    # Not a stand-in for Triton itself: torch would take it for the real one and look into it.
    kernels = types.ModuleType("megatron.core.transformer.custom_layers.batch_invariant_kernels")
    kernels.enable_batch_invariant_mode = kernels.is_batch_invariant_mode_enabled = lambda: False  # type: ignore[attr-defined]
    sys.modules[kernels.__name__] = kernels
if not torch.cuda.is_available():
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment,misc]  # as a Hopper card says
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(major=9, minor=0)  # type: ignore[assignment,misc]
