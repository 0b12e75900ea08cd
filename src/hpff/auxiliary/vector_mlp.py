"""An auxiliary network that maps vectors to class scores.

It is what follows the pooling in DGL's (:class:`~hpff.auxiliary.ConvMLP`), for what is no map.
"""

from __future__ import annotations

from torch import Tensor, nn

from hpff.auxiliary.norm import BatchStatisticsNorm


class VectorMLP(nn.Module):
    """An MLP of constant width; a BatchNorm and a ReLU follow each layer but the last.

    Args:
        width: D.
        num_classes: size of the output.
        hidden_layers: how many layers come before the last.
        hidden_bias: whether these have a bias.
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
        """Class scores (B, num_classes) of vectors (B, D), or of the means of maps (B, D, h, w)."""
        scores: Tensor = self.layers(vectors.mean((2, 3)) if vectors.ndim == 4 else vectors)
        return scores
