"""A GPU that pretends: torch's device "meta" inside FakeTensorMode. Shapes, dtypes and devices are those of a
real run and an operand on another device is an error, but no number is computed and no memory is used.

What is not known to it is a number read back (`float(loss)`): that is 1.0 here, or as the meter's `told`
says, and counted; what depends on numbers in its shape (`nonzero`, `unique`) is as long as it can be.
Attention is counted as GPU kernels keep it: queries, keys, values, outputs and one number a query, never a
square.
"""

import weakref
from contextlib import contextmanager

import torch
import torch._functorch.config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen2Config

from rlpa_lib.rlpa import learner as learners
from rlpa_lib.rlpa.networks import Backbone
from rlpa_lib.rlpa.processes import Processes

DEVICE = torch.device("meta")
AUTOCAST, LINEAR, TENSOR = torch.autocast, torch.nn.functional.linear, torch.tensor
# the second in inference mode
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default}
# where fake tensors on two devices pass
TOGETHER = {
    torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
QWEN = {  # Qwen/Qwen2.5-3B-Instruct's config.json
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6,
    "max_position_embeddings": 32768,
}


def _nonzero(x):
    """Places as if there were no zero."""
    return x.new_empty((x.numel(), x.ndim), dtype=torch.int64)


def _unique(x, *options):
    """Values, where each stands among them, counts."""
    return x.new_empty(x.numel()), torch.empty_like(x, dtype=torch.int64), x.new_empty(0, dtype=torch.int64)


def _check_together(function, leaves):
    """RuntimeError: operands on two devices. A real GPU refuses most of these; a place on the CPU in a tensor
    of its own it takes, and waits for it each time."""
    devices = {x.device for x in leaves if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"{function}: operands on more than one device: {devices}")


LENGTHS = {torch.ops.aten.nonzero.default: _nonzero, torch.ops.aten._unique2.default: _unique}


def make_tensor(data, *, device=None, **options):
    """In the place of torch.tensor, which on device "meta" gives a tensor that is not fake."""
    made = TENSOR(data, **options)
    return made if device is None else made.to(device)


class Meter(TorchDispatchMode):
    """Counts bytes of live storages on the device, numbers read back, and kinds of matrix products."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.reads = 0
        self.products = set()  # (dtype, smallest side)
        self.dtypes = set()
        self.told = {float: 1.0, int: 1}  # what every number read back is
        self._seen = {}

    def _count(self, tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.device != DEVICE:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            self.dtypes.add(tensor.dtype)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key):
        self.now -= self._seen.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in READS:
            self.reads += args[0].device == DEVICE
            return self.told[float if args[0].is_floating_point() else int]
        if function in LENGTHS:  # the CPU waits for these, too
            self.reads += args[0].device == DEVICE
            return LENGTHS[function](*args)
        if function in PRODUCTS and args[0].device == DEVICE:
            sides = [side for x in args[-2:] for side in x.shape]
            self.products.add((args[-1].dtype, min(sides)))
        if function in TOGETHER:
            _check_together(function, tree_leaves(args))
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            self._count(leaf)
        return out


class Attention(torch.autograd.Function):
    """What a fused kernel keeps for its backward pass, and the shapes that come out."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        made, sums = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        if mask is not None and mask.stride(-2) % 8:  # the memory-efficient kernel pads rows to 16 bytes
            mask = mask.new_empty(*mask.shape[:-1], -(-mask.shape[-1] // 8) * 8)
        ctx.save_for_backward(query, key, value, made, sums, *([] if mask is None else [mask]))
        return made

    @staticmethod
    def backward(ctx, gradient):
        return *(torch.empty_like(x) for x in ctx.saved_tensors[:3]), None


def attend(query, key, value, attn_mask=None, **options):
    """In the place of torch's scaled_dot_product_attention."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) for x in (query, key, value))
        attn_mask = attn_mask if attn_mask is None else attn_mask.to(dtype)
    sides = [query, key, value] + ([] if attn_mask is None else [attn_mask])
    if len({x.device for x in sides}) > 1 or len({x.dtype for x in sides}) > 1:
        raise RuntimeError(f"attention of {[(x.device, x.dtype) for x in sides]}")
    return Attention.apply(query, key, value, attn_mask)


def cast_linear(x, weight, bias=None):
    """In the place of torch's linear: torch.autocast knows no device "meta", so the CPU's switch turns its
    casts on there."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = (side if side is None else side.to(dtype) for side in (x, weight, bias))
    return LINEAR(x, weight, bias)


def switch_autocast(kind, **options):
    """In the place of torch.autocast."""
    return AUTOCAST("cpu" if kind == DEVICE.type else kind, **options)


@contextmanager
def pretended_device(monkeypatch):
    """Within the context tensors are fake; gives the meter."""
    # fake tensors are here for eager work, in which no causal mask is made
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", switch_autocast)
    monkeypatch.setattr(torch, "tensor", make_tensor)
    monkeypatch.setattr(torch.nn.functional, "linear", cast_linear)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(learners, "Backbone", _fake)
    allow = torch._functorch.config.patch(fake_tensor_allow_meta=True)
    with allow, FakeTensorMode(), Meter() as meter:
        yield meter


def make_model(layers=36, dtype=torch.bfloat16):
    """Qwen2.5-3B-Instruct's shapes without numbers."""
    with unset_fake_temporarily(), DEVICE:
        config = Qwen2Config(**{**QWEN, "num_hidden_layers": layers})
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def make_learner(cfg, layers=36):
    """A learner on the pretended device."""
    processes = Processes()
    processes.device = DEVICE
    model = make_model(layers, getattr(torch, cfg.policy.dtype))
    return learners.Learner(model, cfg, seed=0, processes=processes)


def _fake(model, cfg):
    with unset_fake_temporarily():
        network = Backbone(model, cfg).to(DEVICE)
    network.to = lambda device: network  # it is there, and fake weights cannot be swapped
    return fake(network)


def fake(network):
    """The module with its weights and buffers made anew on the pretended device, shared ones once."""
    made = {}

    def anew(tensor):
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
            if isinstance(tensor, nn.Parameter):
                made[id(tensor)] = nn.Parameter(made[id(tensor)], requires_grad=tensor.requires_grad)
        return made[id(tensor)]

    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and not isinstance(tensor, FakeTensor):
                    own[name] = anew(tensor)
    return network
