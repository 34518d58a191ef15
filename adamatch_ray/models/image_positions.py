"""Where an image token lies: a learned vector for each row and each column of the image's grid.

A language model reads an image as one long line; that two tokens lie below each other it would have to learn from
their distance alone. The vectors start at zero, so a pre-trained model is unchanged until it is tuned.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ImagePositions(nn.Module):
    """Vectors that are added to the embeddings of whole images; `image_start` is the id of image code 0."""

    def __init__(self, grid: tuple[int, int], hidden: int, image_start: int) -> None:
        super().__init__()
        self.grid, self.image_start = grid, image_start
        # Named as embeddings, which optimisers tell from other matrices by their name.
        self.row_embedding, self.column_embedding = (nn.Embedding(side, hidden) for side in grid)
        for table in (self.row_embedding, self.column_embedding):
            nn.init.zeros_(table.weight)

    def at(self, cells_N: Tensor) -> Tensor:
        """Vectors [N, H] of cells, counted in raster order from 0."""
        columns = self.grid[1]
        rows = torch.div(cells_N, columns, rounding_mode="floor")
        summed: Tensor = self.row_embedding(rows) + self.column_embedding(cells_N % columns)
        return summed

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, H] for token ids: zero but for the tokens of whole images."""
        cells_BT = image_cells(ids_BT, self.image_start, self.grid[0] * self.grid[1])
        placed = self.at(cells_BT.clamp_min(0).flatten()).view(*ids_BT.shape, -1)
        return placed * (cells_BT >= 0).unsqueeze(-1)


def image_cells(ids_BT: Tensor, image_start: int, count: int) -> Tensor:
    """The cell of each token of a whole image, which is a run of exactly `count` image tokens; -1 for all others.

    Shorter runs are references, pieces of other images.
    """
    index = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    image = ids_BT >= image_start
    nothing = torch.zeros_like(image[:, :1])
    begins = image & ~torch.cat([nothing, image[:, :-1]], dim=1)
    ends = image & ~torch.cat([image[:, 1:], nothing], dim=1)
    first = torch.where(begins, index, 0).cummax(1).values
    last = torch.where(ends, index, ids_BT.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.where(image & (last - first + 1 == count), index - first, -1)


def positions_of(model: PreTrainedModel) -> ImagePositions | None:
    """The model's image positions, where it has any."""
    positions = getattr(model, "image_positions", None)
    assert positions is None or isinstance(positions, ImagePositions)
    return positions


def embed_tokens(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """What goes into the first layer [B, T, H]: embeddings of the ids, and where the tokens of whole images lie."""
    embedded: Tensor = model.get_input_embeddings()(ids_BT)
    positions = positions_of(model)
    return embedded if positions is None else embedded + positions(ids_BT)
