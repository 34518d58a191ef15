"""Eqs. 5-9 against the equations written out, and several workers against one with everything."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adamatch_ray.losses.contrastive import contrastive_loss, gather_padded, identity
from adamatch_ray.models.adamatch import Embeddings, ImageEmbeddings, TextEmbeddings
from adamatch_ray.ops.late_interaction import naive
from adamatch_ray.train.distributed import Worker

TAU = 0.2


def embeddings(count: int, seed: int = 0, heads: int = 1, dtype: torch.dtype = torch.float64) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)

    mask = torch.arange(6) < torch.randint(1, 7, (count, 1), generator=generator)
    boxes = torch.zeros(count, 5, 4)
    image = ImageEmbeddings(tuple(unit(count, 5, 8).requires_grad_() for _ in range(heads)), boxes, boxes[0])
    text = TextEmbeddings(unit(count, 6, 8).requires_grad_(), mask)
    return Embeddings(image, text, torch.tensor(TAU, dtype=dtype, requires_grad=True))


def different(count: int) -> Tensor:
    """Groups of reports that are all different."""
    return torch.arange(count)


def plain_loss(pairs: Embeddings, group: Tensor | None = None) -> Tensor:
    """The loss as docs/method.md 1.4 writes it, one study after the other; averaged over the image heads."""
    word, mask = pairs.text
    total = torch.zeros((), dtype=word.dtype)
    count = len(word)
    group = different(count) if group is None else group
    for patch in pairs.image.heads:
        s_p2w = torch.zeros(count, count, dtype=word.dtype)
        s_w2p = torch.zeros(count, count, dtype=word.dtype)
        for i in range(count):
            for j in range(count):
                products = patch[i] @ word[j][mask[j]].T  # [P, N_j]
                s_p2w[i, j] = products.max(1).values.mean()
                s_w2p[j, i] = products.max(0).values.mean()
        for k in range(count):
            others = [j for j in range(count) if j == k or group[j] != group[k]]
            loss_image = -torch.log_softmax(s_p2w[k, others] / pairs.temperature, 0)[others.index(k)]
            # Eq. 8: report k against every image, its own being image k.
            loss_text = -torch.log_softmax(s_w2p[k, others] / pairs.temperature, 0)[others.index(k)]
            total = total + (loss_image + loss_text) / (2 * count)
    return total / len(pairs.image.heads)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_loss_and_its_gradients_are_the_equations(count: int, heads: int) -> None:
    pairs = embeddings(count, heads=heads)
    inputs = [*pairs.image.heads, pairs.text.word_BND, pairs.temperature]
    ours, wanted = contrastive_loss(pairs, different(count)).loss, plain_loss(pairs)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_single_precision_agrees() -> None:
    single = contrastive_loss(embeddings(9, dtype=torch.float32), different(9)).loss
    torch.testing.assert_close(single.double(), plain_loss(embeddings(9)), rtol=1e-5, atol=1e-5)


def test_autocast_gathers_words_in_half_and_changes_the_loss_by_rounding_alone() -> None:
    pairs, gathered = embeddings(9, dtype=torch.float32), []

    def gather(x: Tensor) -> Tensor:
        gathered.append(x.dtype)
        return x

    with torch.autocast("cpu", torch.bfloat16):
        half = contrastive_loss(pairs, different(9), gather=gather).loss
    assert torch.bfloat16 in gathered and half.dtype == torch.float32
    gradients = [torch.autograd.grad(loss, [*pairs.image.heads, pairs.text.word_BND]) for loss in
                 (half, contrastive_loss(pairs, different(9)).loss)]  # fmt: skip
    torch.testing.assert_close(half.double(), plain_loss(embeddings(9)), rtol=2e-2, atol=2e-2)
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32 and float((one - other).norm() / other.norm()) < 0.15


def test_a_report_is_told_from_other_images_not_from_other_reports() -> None:
    """Mistake c: eq. 8's softmax runs over images. Over reports, its value would not be this one."""
    pairs = embeddings(6)
    scores = naive(pairs.image.heads[0], *pairs.text)
    own = torch.arange(6)
    image_side = F.cross_entropy(scores.image_to_text_IJ / TAU, own)
    over_images = F.cross_entropy(scores.text_to_image_JI / TAU, own)  # row: a report, columns: images
    over_reports = F.cross_entropy(scores.text_to_image_JI.T / TAU, own)
    loss = contrastive_loss(pairs, different(6)).loss
    torch.testing.assert_close(loss, (image_side + over_images) / 2)
    assert abs((loss - (image_side + over_reports) / 2).item()) > 1e-3


def test_an_image_that_suits_every_report_costs_the_reports() -> None:
    """The same, as behaviour: image 0 draws every report to itself, which only a softmax over images notices."""
    word = torch.eye(8, dtype=torch.float64)[:4].unsqueeze(1)
    patch = word.expand(4, 4, 8).clone()
    greedy = patch.clone()
    greedy[0] = torch.eye(8, dtype=torch.float64)[:4]  # its patches match all four reports fully
    text = TextEmbeddings(word, torch.ones(4, 1, dtype=torch.bool))
    boxes = torch.zeros(4, 4, 4)

    def value(heads: Tensor) -> float:
        image = ImageEmbeddings((heads,), boxes, boxes[0])
        return float(contrastive_loss(Embeddings(image, text, torch.tensor(0.07)), different(4)).loss)

    assert value(greedy) > value(patch) + 0.3


def test_padding_words_change_nothing() -> None:
    pairs = embeddings(5)
    word, mask = pairs.text
    longer = TextEmbeddings(F.pad(word, (0, 0, 0, 3), value=9.0), F.pad(mask, (0, 3)))
    torch.testing.assert_close(
        contrastive_loss(pairs._replace(text=longer), different(5)).loss, contrastive_loss(pairs, different(5)).loss
    )


def test_studies_with_the_same_report_are_no_negatives_of_each_other() -> None:
    pairs = embeddings(6)
    group = torch.tensor([7, 3, 7, 5, 3, 7])
    loss = contrastive_loss(pairs, group).loss
    torch.testing.assert_close(loss, plain_loss(pairs, group))
    assert abs((loss - plain_loss(pairs)).item()) > 1e-3


def test_a_batch_of_one_report_has_no_loss_and_finite_gradients() -> None:
    pairs = embeddings(4)
    result = contrastive_loss(pairs, torch.zeros(4, dtype=torch.int64))
    assert result.loss.item() == 0 and result.accuracy.item() == 1
    gradients = torch.autograd.grad(result.loss, [*pairs.image.heads, pairs.text.word_BND, pairs.temperature])
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_the_order_of_a_batch_does_not_matter() -> None:
    pairs = embeddings(8)
    group = torch.tensor([0, 1, 2, 3, 1, 5, 6, 7])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    image = pairs.image._replace(heads=tuple(head[order] for head in pairs.image.heads))
    text = TextEmbeddings(*(part[order] for part in pairs.text))
    shuffled = contrastive_loss(Embeddings(image, text, pairs.temperature), group[order])
    straight = contrastive_loss(pairs, group)
    torch.testing.assert_close(shuffled.loss, straight.loss)
    assert shuffled.accuracy == straight.accuracy


def test_accuracy_counts_images_whose_own_report_scores_highest() -> None:
    pairs = embeddings(7)
    scores = naive(pairs.image.heads[0], *pairs.text).image_to_text_IJ
    result = contrastive_loss(pairs, different(7))
    assert float(result.accuracy) == pytest.approx(float((scores.argmax(1) == torch.arange(7)).float().mean()))
    patch, word = pairs.image.heads[0], pairs.text.word_BND
    copied = pairs._replace(image=pairs.image._replace(heads=(word.detach()[:, :1].expand_as(patch),)))
    assert float(contrastive_loss(copied, different(7)).accuracy) == 1


# ---- several workers ------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Two linear maps and a temperature: the part of AdaMatch that the loss sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(8, 8), nn.Linear(8, 8)
        self.log_temperature = nn.Parameter(torch.tensor(TAU).log())
        self.double()

    def forward(self, patch: Tensor, word: Tensor, mask: Tensor) -> Embeddings:
        heads = (F.normalize(self.image(patch), dim=-1),)
        text = TextEmbeddings(F.normalize(self.text(word), dim=-1), mask)
        return Embeddings(ImageEmbeddings(heads, patch, patch[0]), text, self.log_temperature.exp())


def batch_of(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """A worker's part of a batch of six; its words are cut to the longest report it has itself."""
    pairs = embeddings(6, seed=5)
    mine = slice(rank * 6 // world, (rank + 1) * 6 // world)
    mask = pairs.text.mask_BN[mine]
    longest = int(mask.sum(1).max())
    return (
        pairs.image.heads[0][mine].detach(),
        pairs.text.word_BND[mine, :longest].detach(),
        mask[:, :longest],
    )


GROUPS = {
    "different": (0, 1, 2, 3, 4, 5),
    "same across workers": (0, 1, 2, 1, 4, 0),
    "one worker has a single report": (5, 5, 5, 5, 1, 2),
}


def train_step(rank: int, world: int, group: tuple[int, ...], negatives: str) -> dict[str, Tensor]:
    """Loss (mean over workers) and parameter gradients of one step."""
    worker = Worker(rank, world, torch.device("cpu"), bf16=False)
    model = Heads()
    wrapped = worker.wrap(model)
    mine = slice(rank * 6 // world, (rank + 1) * 6 // world)
    result = contrastive_loss(
        wrapped(*batch_of(rank, world)), torch.tensor(group[mine]), rank, worker.gather(negatives)
    )
    result.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor(worker.mean(result.loss), dtype=torch.float64), **gradients}


def distributed_steps(rank: int, world: int, folder: str) -> None:
    """What each spawned process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found = {name: train_step(rank, world, group, "global") for name, group in GROUPS.items()}
    found["local"] = train_step(rank, world, GROUPS["different"], "local")
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_global_negatives_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(distributed_steps, (2, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, group in GROUPS.items():
        wanted = train_step(0, 1, group, "global")
        for rank in range(2):
            assert found[rank][name].keys() == wanted.keys()
            for key, value in wanted.items():
                torch.testing.assert_close(found[rank][name][key], value, rtol=1e-9, atol=1e-12, msg=f"{name}: {key}")
    alone = train_step(0, 1, GROUPS["different"], "global")["loss"]
    assert float(found[0]["local"]["loss"]) < float(alone), "fewer negatives are an easier task"


def test_a_single_worker_gathers_nothing() -> None:
    worker = Worker(0, 1, torch.device("cpu"), bf16=False)
    assert worker.gather("global") is identity and worker.gather("local") is identity
    assert Worker(1, 4, torch.device("cpu"), bf16=False).gather("local") is identity
    model = Heads()
    assert worker.wrap(model) is model


def test_words_are_padded_to_the_longest_report_of_any_worker() -> None:
    pairs = embeddings(3)
    other = torch.ones(3, 9, 8, dtype=torch.float64), torch.ones(3, 9, dtype=torch.bool)

    def gather(x: Tensor) -> Tensor:  # beside a worker whose longest report has nine words
        if x.ndim == 1:
            return torch.cat([x, torch.tensor([9])])
        return torch.cat([x, other[0] if x.ndim == 3 else other[1].to(x.dtype)])

    word, mask = gather_padded(pairs.text.word_BND, pairs.text.mask_BN, gather)
    assert word.shape == (6, 9, 8) and mask.shape == (6, 9) and mask.dtype == torch.bool
    assert torch.equal(mask[:3], F.pad(pairs.text.mask_BN, (0, 3))) and mask[3:].all()
    assert torch.equal(word[:3, :6], pairs.text.word_BND) and not word[:3, 6:].any()
