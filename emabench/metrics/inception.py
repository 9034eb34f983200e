"""Inception-v3 as published FID and IS use it: the 2015-12-05 weights and TensorFlow 1's resize.

Numbers of Heusel et al. 2017, Ho et al. 2020 and most others come from that graph: images are resized to 299×299 by
bilinear interpolation without antialiasing and without half-pixel centres, and scaled to (x − 128)/128. torch-fidelity
ports it; torchmetrics' own preprocessing (antialiased since 1.8) gives other numbers.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from emabench.errors import UserError

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
PUBLISHED = "6726825d"  # how the SHA-256 of the file begins


class Inception(nn.Module):
    """images (N, 3, H, W) uint8 → features (N, 2048) and logits without bias (N, 1008), float32.

    Args:
        weights: A file of the network's state_dict; None: torch-fidelity's, downloaded once into torch's cache.

    Raises:
        UserError: The file is missing, is not such a state_dict, or cannot be downloaded.
    """

    num_features = 2048

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = Path(weights) if weights else _downloaded()
        if not path.is_file():
            raise UserError(f"task.inception_weights={weights}: there is no such file")
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()[: len(PUBLISHED)]
        try:
            # A pickle from anywhere must not run code; the library would load it with weights_only=False. It is given
            # what was read safely, as bytes that were made here.
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            safe = io.BytesIO()
            torch.save(dict(state), safe)
            safe.seek(0)
            self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], safe)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise UserError(
                f"task.inception_weights={weights}: {path} does not hold Inception-v3's weights "
                f"({type(error).__name__}); {_how_to_get()}"
            ) from error
        known = "weights of 2015-12-05" if digest == PUBLISHED else f"weights {digest}"
        self.label = f"Inception-v3, {known}, TensorFlow 1's resize"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(images)
        return features, logits


def _downloaded() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=PUBLISHED, progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: another hash
            raise UserError(
                f"task.inception_weights=null: Inception-v3's weights cannot be downloaded ({error}); {_how_to_get()}"
            ) from error
    return path


def _how_to_get() -> str:
    return f"get {FILE} from torch-fidelity's releases and set task.inception_weights=/path/to/it"
