"""An auxiliary network that maps vectors to class scores."""

from __future__ import annotations

from torch import Tensor, nn

from hpff.auxiliary.norm import BatchStatisticsNorm


class VectorMLP(nn.Module):
    """An MLP of constant width for vectors (B, D), giving (B, num_classes).

    A BatchNorm and a ReLU follow each layer but the last. Maps (B, D, h, w) are averaged over
    positions first.
    """

    def __init__(
        self, width: int, num_classes: int, *, hidden_layers: int = 2, hidden_bias: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            linear = nn.Linear(width, width, bias=hidden_bias)
            layers += [linear, BatchStatisticsNorm(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, vectors: Tensor) -> Tensor:
        scores: Tensor = self.layers(vectors.mean((2, 3)) if vectors.ndim == 4 else vectors)
        return scores
