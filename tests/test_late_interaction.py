import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adamatch_ray.ops import late_interaction as module
from adamatch_ray.ops import native
from adamatch_ray.ops.compile import CompilerUnavailable, compiled
from adamatch_ray.ops.late_interaction import Backend, late_interaction, naive
from adamatch_ray.ops.ragged import Result, Side
from benchmarks.late_interaction import Case, compare

FAST: tuple[Backend, ...] = ("native", "torch")
ALL: tuple[Backend, ...] = (*FAST, "naive")


def batch(
    images: int, texts: int, patches: int, words: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Random patches and words; masks with holes, one text with a single valid word."""
    generator = torch.Generator().manual_seed(seed)
    patch = torch.randn(images, patches, dim, generator=generator, dtype=torch.float64).to(dtype)
    word = torch.randn(texts, words, dim, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(texts, words, generator=generator) < 0.7
    mask[:, words // 2] = True
    mask[0] = False
    mask[0, words - 1] = True
    return patch, word, mask


def gradients(
    backend: Backend, patch: Tensor, word: Tensor, mask: Tensor, patch_mask: Tensor | None = None
) -> list[Tensor]:
    """Scores of both directions and the gradients of a fixed random weighting of them."""
    patch, word = patch.clone().requires_grad_(), word.clone().requires_grad_()
    scores = late_interaction(patch, word, mask, patch_mask, backend=backend)
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=scores.image_to_text_IJ.dtype)
    for score in scores:
        loss = loss + (score * torch.randn(score.shape, generator=generator)).sum()
    return [*(score.detach() for score in scores), *torch.autograd.grad(loss, (patch, word))]


@pytest.mark.parametrize("backend", ALL)
def test_known_answer_in_both_directions(backend: Backend) -> None:
    patch = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [0.0, 0.5]]])
    word = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]])
    mask = torch.tensor([[True, True, False]])
    scores = late_interaction(patch, word, mask, backend=backend)
    assert scores.image_to_text_IJ.tolist() == [[1.5], [0.25]]  # (max(1,0) + max(0,2)) / 2, (max(-1,0) + max(0,.5)) / 2
    assert scores.text_to_image_JI.tolist() == [[1.5, 0.25]]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("images", "texts", "patches", "words", "dim"),
    [(5, 3, 49, 30, 33), (3, 7, 5, 40, 16), (1, 9, 300, 20, 24), (4, 2, 1, 6, 8), (2, 3, 40, 1, 1), (40, 2, 20, 5, 7)],
)
@pytest.mark.parametrize("with_patch_mask", [False, True])
def test_scores_and_gradients_equal_naive(
    backend: Backend, images: int, texts: int, patches: int, words: int, dim: int, with_patch_mask: bool
) -> None:
    patch, word, mask = batch(images, texts, patches, words, dim)
    patch_mask = None
    if with_patch_mask:
        patch_mask = torch.rand(images, patches, generator=torch.Generator().manual_seed(3)) < 0.6
        patch_mask[:, -1] = True
    ours = gradients(backend, patch, word, mask, patch_mask)
    assert ours[0].shape == (images, texts) and ours[1].shape == (texts, images)
    for one, other in zip(ours, gradients("naive", patch, word, mask, patch_mask), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_torch_equals_naive_in_double_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch(7, 4, 9, 6, 5, dtype=torch.float64)
    monkeypatch.setattr("adamatch_ray.ops.ragged.BLOCK_BYTES", 2 * 9 * 6 * 8)  # two images a block
    for one, other in zip(gradients("torch", *inputs), gradients("naive", *inputs), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("backend", ["torch", "naive", "auto"])
def test_gradcheck(backend: Backend) -> None:
    patch, word, mask = batch(3, 2, 4, 5, 6, dtype=torch.float64)
    patch_mask = torch.tensor([[True, True, False, True]] * 3)
    patch.requires_grad_(), word.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: tuple(late_interaction(x, w, mask, patch_mask, backend=backend)), (patch, word)
    )


@pytest.mark.parametrize("backend", ALL)
def test_padding_never_wins_over_negative_scores(backend: Backend) -> None:
    patch = torch.ones(2, 3, 4)
    word = torch.full((2, 5, 4), -1.0)
    mask = torch.tensor([[True, True, False, False, False], [True, False, True, False, True]])
    word[~mask] = 0.0  # a masked score of 0 would beat the valid -4
    ours = gradients(backend, patch, word, mask)
    assert torch.equal(ours[0], torch.full((2, 2), -4.0)) and torch.equal(ours[1], torch.full((2, 2), -4.0))
    assert ours[3][~mask].abs().max() == 0


@pytest.mark.parametrize("backend", FAST)
def test_more_padding_changes_nothing_bitwise(backend: Backend) -> None:
    patch, word, mask = batch(4, 3, 20, 9, 32)
    short = gradients(backend, patch, word, mask)
    wide = torch.nn.functional.pad(word, (0, 0, 0, 6), value=5.0)
    long = gradients(backend, patch, wide, torch.nn.functional.pad(mask, (0, 6)))
    assert all(torch.equal(one, other) for one, other in zip(short[:3], long[:3], strict=True))
    assert torch.equal(short[3], long[3][:, :9]) and long[3][:, 9:].abs().max() == 0


@pytest.mark.parametrize("backend", FAST)
def test_permuted_batch_permutes_scores_and_gradients(backend: Backend) -> None:
    patch, word, mask = batch(9, 5, 21, 8, 16)
    generator = torch.Generator().manual_seed(1)
    i, j = torch.randperm(9, generator=generator), torch.randperm(5, generator=generator)
    before = late_interaction(patch, word, mask, backend=backend)
    after = late_interaction(patch[i], word[j], mask[j], backend=backend)
    tolerance = 0.0 if backend == "native" else 1e-6
    torch.testing.assert_close(after[0], before[0][i][:, j], atol=tolerance, rtol=0)
    torch.testing.assert_close(after[1], before[1][j][:, i], atol=tolerance, rtol=0)


@pytest.mark.parametrize("backend", FAST)
def test_a_row_block_of_images_equals_the_rows_of_the_whole(backend: Backend) -> None:
    patch, word, mask = batch(6, 5, 18, 8, 16)
    whole, part = late_interaction(patch, word, mask), late_interaction(patch[2:4], word, mask, backend=backend)
    torch.testing.assert_close(part[0], whole[0][2:4], atol=1e-6, rtol=0)
    torch.testing.assert_close(part[1], whole[1][:, 2:4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("patches", [3, 40])
def test_first_of_equal_products_takes_the_gradient(backend: Backend, patches: int) -> None:
    patch, word = torch.ones(1, patches, 2), torch.ones(1, 4, 2)
    mask = torch.tensor([[False, True, True, True]])
    patch.requires_grad_(), word.requires_grad_()
    scores = late_interaction(patch, word, mask, backend=backend)
    (to_text,) = torch.autograd.grad(scores.image_to_text_IJ.sum(), word, retain_graph=True)
    assert to_text[0, :, 0].tolist() == pytest.approx([0, 1, 0, 0])
    (to_image,) = torch.autograd.grad(scores.text_to_image_JI.sum(), patch)
    assert to_image[0, :, 0].tolist() == pytest.approx([1] + [0] * (patches - 1))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_multiplied_and_summed_in_fp32(backend: Backend, dtype: torch.dtype) -> None:
    patch, word, mask = batch(3, 4, 17, 9, 256, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients(backend, patch, word, mask)
    exact = gradients("naive", patch.double(), word.double(), mask)
    assert ours[0].dtype == ours[1].dtype == torch.float32 and ours[2].dtype == ours[3].dtype == dtype
    for one, other in zip(ours[:2], exact[:2], strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-5)
    for one, other in zip(ours[2:], exact[2:], strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ALL)
def test_a_text_or_image_without_valid_rows_is_named(backend: Backend) -> None:
    patch, word, mask = batch(3, 4, 5, 6, 8)
    mask[2] = False
    with pytest.raises(ValueError, match=r"word in row\(s\) \[2\]"):
        late_interaction(patch, word, mask, backend=backend)
    mask[2] = True
    with pytest.raises(ValueError, match=r"patch in row\(s\) \[1\]"):
        late_interaction(patch, word, mask, torch.tensor([[True], [False], [True]]).expand(3, 5), backend=backend)


def test_unusable_arguments_say_what_is_wanted() -> None:
    patch, word, mask = batch(3, 4, 5, 6, 8)
    with pytest.raises(ValueError, match="one D"):
        late_interaction(patch[:, :, :4], word, mask)
    with pytest.raises(ValueError, match=r"word_mask_JN must be bool \(4, 6\)"):
        late_interaction(patch, word, mask.long())
    with pytest.raises(ValueError, match="'native' takes fp32, bf16 or fp16 on cpu"):
        late_interaction(patch.double(), word.double(), mask, backend="native")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("patches", "index_bytes"), [(40, 1), (300, 2)])
def test_only_small_indices_are_kept_for_backward(backend: Backend, patches: int, index_bytes: int) -> None:
    images, texts = 6, 5
    patch, word, mask = batch(images, texts, patches, 12, 4)
    patch.requires_grad_(), word.requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        late_interaction(patch, word, mask, backend=backend)
    valid = int(mask.sum())
    rows = 8 * (images * patches + valid + images + texts + 2)  # which rows are valid
    assert sum(kept.values()) == patch.nbytes + word.nbytes + rows + index_bytes * images * texts * patches + (
        index_bytes * images * valid
    )


@pytest.mark.parametrize("backend", FAST)
def test_without_gradients_no_indices_are_computed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, word, mask = batch(3, 4, 5, 6, 8)
    chosen = native if backend == "native" else module.ragged
    kept: list[bool] = []
    real = chosen.forward

    def recorded(images: Side, texts: Side, keep: bool) -> Result:
        kept.append(keep)
        return real(images, texts, keep)

    monkeypatch.setattr(chosen, "forward", recorded)
    scores = late_interaction(patch, word, mask, backend=backend)
    with torch.no_grad():
        late_interaction(patch.requires_grad_(), word, mask, backend=backend)
    assert kept == [False, False] and not scores.image_to_text_IJ.requires_grad


@pytest.mark.parametrize("backend", FAST)
def test_gradient_of_one_side_or_one_direction_alone(backend: Backend) -> None:
    patch, word, mask = batch(3, 4, 5, 6, 8)
    expected = gradients("naive", patch, word, mask)
    word.requires_grad_()
    for name in ("image_to_text_IJ", "text_to_image_JI"):
        ours, peer = (
            torch.autograd.grad(getattr(late_interaction(patch, word, mask, backend=which), name).square().sum(), word)
            for which in (backend, "naive")
        )
        torch.testing.assert_close(ours[0], peer[0])
    assert expected[3].shape == word.shape


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    inputs = batch(70, 6, 20, 9, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients("native", *inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_non_contiguous_inputs() -> None:
    patch, word, mask = batch(3, 4, 6, 6, 8)
    views = patch.mT.contiguous().mT, word.mT.contiguous().mT, mask.T.contiguous().T
    for one, other in zip(gradients("native", *views), gradients("naive", patch, word, mask), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", ALL)
def test_nan_is_not_hidden(backend: Backend) -> None:
    patch, word, mask = batch(3, 4, 20, 6, 8)
    patch[1, 7, 3] = torch.nan
    scores = late_interaction(patch, word, mask, backend=backend)
    assert scores.image_to_text_IJ[1].isnan().all()
    assert scores.image_to_text_IJ[[0, 2]].isfinite().all() and scores.text_to_image_JI[:, [0, 2]].isfinite().all()


def test_without_a_compiler_torch_is_used_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise CompilerUnavailable("no C++ compiler found: install g++")

    monkeypatch.setattr(native, "library", missing)
    for cached in (module._automatic, module._warn_once):
        cached.cache_clear()
    inputs = batch(3, 4, 5, 6, 8)
    try:
        with caplog.at_level(logging.WARNING):
            results = [late_interaction(*inputs) for _ in range(2)]
        assert [record.message.count("install g++") for record in caplog.records] == [1]
        torch.testing.assert_close(results[0], naive(*inputs))
        with pytest.raises(CompilerUnavailable, match="install g\\+\\+"):
            late_interaction(*inputs, backend="native")
    finally:
        module._automatic.cache_clear()


@pytest.mark.slow
def test_several_that_compile_at_once_all_get_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = compiled.__wrapped__  # past the cache: each caller is as a process of its own
    with ThreadPoolExecutor() as pool:
        libraries = list(pool.map(lambda _: build("late_interaction"), range(2)))
    assert all(library.late_interaction_forward for library in libraries)
    files = list((tmp_path / "adamatch_ray").iterdir())
    assert len(files) == 1 and files[0].suffix == ".so"


def test_equal_images_tie_within_a_group_of_images() -> None:
    """Images share vectors in the kernel: neighbours must not leak into each other's maximum."""
    patch, word, mask = batch(30, 3, 21, 8, 16)
    patch[1::2] = patch[0]
    scores = late_interaction(patch, word, mask, backend="native")
    for one, other in pairwise(range(1, 30, 2)):
        assert torch.equal(scores.image_to_text_IJ[one], scores.image_to_text_IJ[other])
        assert torch.equal(scores.text_to_image_JI[:, one], scores.text_to_image_JI[:, other])


@pytest.mark.parametrize("ragged", [True, False])
def test_benchmark_rows_compare_like_with_like(ragged: bool) -> None:
    case = Case(images=3, texts=4, patches=5, words=50, dim=8, ragged=ragged)
    assert case.inputs()[2].all().item() is not ragged
    (row,) = compare(case, "native", repeats=1, memory=False)
    assert row["agreement"] <= 1e-5 and row["unit"] == "s" and json.dumps(row)


TRITON_CHECK = textwrap.dedent(
    """
    import torch
    from adamatch_ray.ops import late_interaction_triton, ragged
    for seed, (images, texts, patches, words, dim) in enumerate([(2, 3, 20, 18, 24), (3, 2, 5, 40, 16)]):
        generator = torch.Generator().manual_seed(seed)
        patch = torch.randn(images, patches, dim, generator=generator)
        word = torch.randn(texts, words, dim, generator=generator)
        patch[0, 3] = patch[0, 1]
        word[1, 4] = word[1, 2]
        word_mask = torch.rand(texts, words, generator=generator) < 0.7
        word_mask[:, 2:5] = True
        patch_mask = torch.rand(images, patches, generator=generator) < 0.7
        patch_mask[:, :4] = True
        sides = ragged.ragged(patch, patch_mask, "patch"), ragged.ragged(word, word_mask, "word")
        ours, peer = (backend.forward(*sides, keep=True) for backend in (late_interaction_triton, ragged))
        for one, other in zip(ours, peer, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        grads = torch.randn(images, texts, generator=generator), torch.randn(texts, images, generator=generator)
        for one, other in zip(
            late_interaction_triton.backward(*sides, ours, *grads), ragged.backward(*sides, peer, *grads), strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        alone = late_interaction_triton.forward(*sides, keep=False)
        assert alone.word_of_patch is None and torch.equal(alone.image_to_text_IJ, ours.image_to_text_IJ)
    """
)


def tensor_core_instructions(kernel: Any, elements: str, constants: dict[str, Any], capability: int) -> int:
    """Multiplications on tensor cores in the PTX of a kernel, compiled without a card; -1 where fp32 units do one."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"patch": elements, "word": elements, "other": elements}
    kinds = {"rows": "*i64", "start": "*i64", "best": "*u8", "of_patch": "*u8", "of_word": "*u8",
             **dict.fromkeys(("patches", "words", "images", "texts", "dim", "items", "total"), "i32")}  # fmt: skip
    named = {name: next((kind for end, kind in kinds.items() if name.endswith(end)), "*fp32")
             for name in kernel.arg_names}  # fmt: skip
    signature = {**named, **{n: f"*{kind}" for n, kind in pointers.items()}, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(
        fn=kernel,
        signature={name: signature[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    code = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8}).asm["ptx"]
    products = len(re.findall(r"\bw?gmma\.mma_async|\bmma\.sync", code))
    return products if len(re.findall(r"\bfma\.rn\.f32", code)) < 64 else -1


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("elements", "times"), [("bf16", 1), ("fp32", 3)])
def test_the_gpu_kernels_multiply_on_tensor_cores(elements: str, times: int, capability: int) -> None:
    """A100 and H100. A product of 64 patches and 128 words: 32 instructions of 16 x 8 x 16 a step of 64 dimensions."""
    kernels = pytest.importorskip(
        "adamatch_ray.ops.late_interaction_triton", reason="triton is not installed: the GPU kernel is not compiled"
    )
    tiles = {"TILE_P": 64, "TILE_N": 128, "TILE_D": 64 if elements == "bf16" else 32}
    forward = {"PRECISION": kernels.FULL, "KEEP": True, **tiles}
    found = tensor_core_instructions(kernels._forward_kernel, elements, forward, capability)
    assert found == 32 * times if capability == 80 else found >= times
    backward = {"PRECISION": kernels.FULL if elements == "fp32" else "tf32", "TILE_R": 64, "TILE_S": 32, "TILE_D": 64}
    assert tensor_core_instructions(kernels._gradient_kernel, elements, backward, capability) >= times


def tf32(x: Tensor) -> Tensor:
    """fp32 rounded to the 10 bits of mantissa that a tensor core reads."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_three_products_of_tf32_are_as_exact_as_fp32() -> None:
    """And one is not: it moves scores by 1e-5, which changes places of maxima."""
    patch, word, _ = (torch.nn.functional.normalize(x.float(), dim=-1) for x in batch(8, 8, 49, 40, 256))
    exact = torch.einsum("ipd,jnd->ijpn", patch.double(), word.double())
    (patch_high, word_high), product = (tf32(patch), tf32(word)), lambda x, e: torch.einsum("ipd,jnd->ijpn", x, e)
    patch_low, word_low = tf32(patch - patch_high), tf32(word - word_high)
    one = product(patch_high, word_high)
    three = product(patch_high, word_low) + product(patch_low, word_high) + one
    full, error = product(patch, word), lambda score: float((score - exact).abs().max())
    assert error(three) < 2 * error(full) < 1e-6 < 10 * error(one)


@pytest.mark.slow
def test_triton_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed: the GPU kernel cannot be interpreted")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", TRITON_CHECK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
