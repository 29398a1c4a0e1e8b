"""timm as the oracle of the vision tower, on machines without torchvision.

timm imports torchvision for things that Gemma 3n's tower never touches, and the wheel of torchvision on PyPI does not
load beside a CPU build of torch. So timm is imported with stand-ins, which are gone afterwards: nobody else sees them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_STAND_INS = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)

TINY_ARCHITECTURE = (
    ("er_r1_k3_s2_e4_c16", "er_r1_k3_s1_e4_c16"),
    ("uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"),
    (
        "uir_r1_a5_k5_s2_e6_c32",
        "uir_r1_a0_k0_s1_e1_c32",
        "mqa_r1_k3_h4_v2_s1_d8_c32",
        "uir_r1_a0_k0_s1_e2_c32",
    ),
    ("uir_r1_a5_k5_s2_e6_c48", "mqa_r1_k3_h4_s1_d8_c48", "uir_r1_a0_k0_s1_e2_c48"),
)
"""Every kind of block of the real tower, in 0.4 M parameters; most of them are the 2,048 outputs."""


class _StandInType(type):
    def __getattr__(cls, name: str) -> _StandInType:
        return _StandInType(name, (), {})


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> _StandInType:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandInType(name, (), {})


@functools.cache
def import_timm() -> ModuleType:
    """The timm package; the test is skipped where timm or torch is missing."""
    pytest.importorskip("torch", reason="the oracle needs torch and timm")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("the oracle needs torch and timm (pip install --no-deps timm)")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "torchvision"}
    try:
        for name in _STAND_INS:
            module = sys.modules[name] = _StandIn(name)
            module.__path__ = []
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        return importlib.import_module("timm")
    finally:
        for name in list(sys.modules):
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        sys.modules.update(hidden)


def decoded_blocks(architecture: tuple[tuple[str, ...], ...]) -> list[list[dict[str, Any]]]:
    """Fresh `block_args` of timm for a table of arch strings; timm changes what it is given."""
    import_timm()
    from timm.models._efficientnet_builder import decode_arch_def

    blocks: list[list[dict[str, Any]]] = decode_arch_def([list(stage) for stage in architecture], group_size=None)
    return blocks


def random_tower(model_args: Mapping[str, object], seed: int = 0) -> torch.nn.Module:
    """timm's mobilenetv5_300m_enc with random weights, at scales that keep activations near one."""
    import torch

    torch.set_num_threads(1)
    made = import_timm().create_model("mobilenetv5_300m_enc", pretrained=False, device="meta", **model_args)
    tower: torch.nn.Module = made.to_empty(device="cpu")  # timm's own initialisation of 294 M numbers takes a while
    with torch.no_grad():
        for name, tensor in tower.state_dict().items():
            tensor.copy_(torch.from_numpy(random_vision_tensor(name, tuple(tensor.shape), seed)))
    return tower.train(False)


def random_vision_tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Depends on seed, name and shape only."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
    kind = name.rpartition(".")[2]
    if kind == "gamma":
        return np.float32(0.3) * (1 + np.float32(0.3) * noise)
    if len(shape) == 1:
        return np.float32(0.2) * noise + np.float32(kind == "weight")
    return noise * np.float32(np.prod(shape[1:]) ** -0.5)


def let_transformers_use_timm() -> None:
    """After this, transformers builds Gemma 3n's vision tower in this process, although it sees no torchvision."""
    import_timm()
    transformers = pytest.importorskip("transformers", reason="the oracle needs torch and transformers")
    from transformers.utils import import_utils

    def available() -> bool:
        return True

    transformers.utils.is_timm_available = import_utils.is_timm_available = available
    import_utils.BACKENDS_MAPPING["timm"] = (available, import_utils.BACKENDS_MAPPING["timm"][1])
