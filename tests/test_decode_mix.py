"""The compiled middle of a decoding step against torch, for every size of head that it knows."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from adamatch_ray.models import folded_neox
from adamatch_ray.models.decoding import NeoXSession, prefill
from adamatch_ray.models.folded_neox import FoldedNeoX
from adamatch_ray.ops import decode_mix as op
from adamatch_ray.ops.compile import CompilerUnavailable

HEADS = (16, 32, 64, 80, 96, 128)


@pytest.fixture(autouse=True)
def compiler() -> None:
    try:
        op.library()
    except CompilerUnavailable as error:
        pytest.skip(str(error))


class Inputs(NamedTuple):
    """What `decode_mix` reads, and the sizes behind it."""

    wide: Tensor
    kv: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    joined: Tensor


def draw(rows: int, heads: int, head: int, rotary: int, capacity: int) -> Inputs:
    generator = torch.Generator().manual_seed(head)
    hidden, inner = heads * head, 3 * heads * head

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 2

    angles = normal(rows, 1, rotary)
    mask = torch.zeros(rows, 1, 1, capacity)
    for row in range(rows):
        mask[row, ..., 1 : 1 + row] = -torch.inf
    wide = normal(rows, 3 * hidden + 2 * heads * rotary + inner)
    joined = torch.full((rows, hidden + inner), torch.nan)
    return Inputs(wide, normal(2, rows, heads, capacity, head), angles.cos(), angles.sin(), mask, joined)


def reference(given: Inputs, slot: int, masked: bool) -> tuple[Tensor, Tensor]:
    """`joined` and `kv` in plain torch, on copies."""
    wide, kv, cos, sin, mask, joined = (tensor.clone() for tensor in given)
    _, rows, heads, _, head = kv.shape
    hidden, rotary = heads * head, cos.shape[-1]
    parts = wide.split([hidden, hidden, hidden, heads * rotary, heads * rotary, joined.shape[1] - hidden], dim=1)
    query, key, value = (part.reshape(rows, heads, head) for part in parts[:3])
    for x, turned in ((query, parts[3]), (key, parts[4])):
        x[..., :rotary] = x[..., :rotary] * cos + turned.reshape(rows, heads, rotary) * sin
    kv[0, :, :, slot], kv[1, :, :, slot] = key, value
    keys, values = kv[:, :, :, : slot + 1]
    seen = mask[..., : slot + 1] if masked else None
    joined[:, :hidden] = F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=seen).reshape(
        rows, -1
    )
    joined[:, hidden:] = F.gelu(parts[5])
    return joined, kv


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_it_equals_torch(head: int, masked: bool) -> None:
    for slot, rotary in ((13, head // 4), (7, head), (16, 2)):
        given = draw(rows=3, heads=2, head=head, rotary=rotary, capacity=17)
        joined, kv = reference(given, slot, masked)
        op.decode_mix(given.wide, given.kv, given.cos, given.sin, given.mask if masked else None, given.joined, slot)
        torch.testing.assert_close(given.joined, joined, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(given.kv, kv, rtol=1e-6, atol=1e-6)


def test_gelu_holds_far_from_zero() -> None:
    given = draw(rows=1, heads=1, head=16, rotary=4, capacity=2)
    up = torch.linspace(-30, 30, 48)
    given.wide[:, -48:] = up
    op.decode_mix(given.wide, given.kv, given.cos, given.sin, None, given.joined, 0)
    torch.testing.assert_close(given.joined[0, 16:], F.gelu(up), rtol=1e-5, atol=1e-6)


def test_threads_and_neighbours_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given = draw(rows=8, heads=2, head=64, rotary=16, capacity=1100)
            op.decode_mix(given.wide, given.kv, given.cos, given.sin, given.mask, given.joined, 1060)
            found.append(given.joined)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    whole = draw(rows=8, heads=2, head=64, rotary=16, capacity=1100)
    one = Inputs(*(t[:, 5:6].contiguous() if t.dim() == 5 else t[5:6].contiguous() for t in whole))
    op.decode_mix(one.wide, one.kv, one.cos, one.sin, one.mask, one.joined, 1060)
    assert torch.equal(one.joined[0], found[0][5])


def neox(head: int, inner: int = 64) -> PreTrainedModel:
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=2 * head, num_hidden_layers=2, num_attention_heads=2, intermediate_size=inner
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_session_gives_the_same_states_with_it_and_without() -> None:
    model = neox(32)
    states = []
    with torch.inference_mode():
        for compiled in (True, False):
            folded = FoldedNeoX(model)
            assert folded.compiled
            folded.compiled = compiled
            session = NeoXSession(folded, prefill(model, [[1, 2, 3], [4, 5, 6, 7, 8]]), 3)
            ids = torch.tensor([9, 10])
            first = session.step(ids)
            session.keep(torch.tensor([1]))
            states.append(torch.cat([first, session.step(ids[:1])]))
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


def test_other_sizes_dtypes_and_missing_compilers_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not FoldedNeoX(neox(24)).compiled
    assert not FoldedNeoX(neox(32, inner=60)).compiled
    assert not FoldedNeoX(neox(32).to(torch.bfloat16)).compiled  # type: ignore[arg-type]

    def unavailable(head_size: int, inner: int) -> bool:
        raise CompilerUnavailable("no C++ compiler")

    monkeypatch.setattr(folded_neox, "takes", unavailable)
    assert not FoldedNeoX(neox(32)).compiled
