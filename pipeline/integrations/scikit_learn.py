"""Encoders of states as transformers of scikit-learn; needs ``dynarep[sklearn]``."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise ImportError(
        "dynarep.pipeline.integrations.scikit_learn needs scikit-learn 1.6 or newer: pip install 'dynarep[sklearn]'"
    ) from None

from dynarep.pipeline.artifacts.pretrained import PretrainedIntent, load_encoder
from dynarep.pipeline.artifacts.storage import ArtifactError


class EncoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Observations (n, observation_dim) to points (n, latent_dim) float32, by a pretrained encoder; nothing is fitted.

    Args:
        encoder: where the encoder is, as ``load_encoder`` takes it.
        replica: which of the artifact's replicas.
        device: where to compute.
        batch_size: rows encoded at once.
    """

    def __init__(self, encoder: str, *, replica: int = 0, device: str = "cpu", batch_size: int = 8192) -> None:
        self.encoder = encoder
        self.replica = replica
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the encoder and see that ``X`` fits it.

        Raises:
            ArtifactError: if the encoder cannot be loaded, reads actions, or ``X`` has another number of columns.
            ValueError: if ``X`` is not a finite array of two axes.
        """
        X = validate_data(self, X)
        encoder = load_encoder(self.encoder, replica=self.replica, device=self.device)
        if not isinstance(encoder, PretrainedIntent):
            raise ArtifactError(f"{encoder.source}: found {type(encoder).__name__}, expected PretrainedIntent")
        encoder.check("X", X.shape[1], 0)
        self.encoder_ = encoder
        self._n_features_out = encoder.latent_dim
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Points of all rows.

        Raises:
            ValueError: if ``X`` is not a finite array with as many columns as in ``fit``.
        """
        check_is_fitted(self)
        return self.encoder_.encode_in_batches(validate_data(self, X, reset=False), batch_size=self.batch_size)
