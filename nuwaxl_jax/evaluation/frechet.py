"""The Frechet distance between Gaussians, and moments that can be gathered in parts and put together.

    d^2((m1, S1), (m2, S2)) = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Dowson and Landau, 1982; Heusel et al., arXiv:1706.08500.) With any factors S1 = A'A and S2 = B'B the last trace is
the nuclear norm of A B': (S1 S2)^(1/2) has the singular values of A B' as its eigenvalues. No matrix square root is
taken, so covariances of few samples, which are singular, need no offset and lose no digits. All in float64.

`Moments` are for sets whose features are too many to hold, or lie on several hosts. The metrics of `protocols` hold the
features of every video, which their intervals draw from, and take `distance_of_samples`.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of centred squares of features, which parts of a set give and `merged` puts together.

    Attributes:
      count: n.
      mean: float64 [d].
      scatter: float64 [d, d], the sum of (x - mean)(x - mean)'.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no sample of `width` features."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: np.ndarray, mask: np.ndarray | None = None) -> Moments:
        """Of a batch.

        Args:
          features: float [n, d].
          mask: bool [n]; rows where it is False are padding and left out.

        Raises:
          ValueError: the shapes do not fit, or a feature is not finite.
        """
        features = _checked(features)
        if mask is not None:
            if np.shape(mask) != features.shape[:1]:
                raise ValueError(f"mask must be [{len(features)}], got {np.shape(mask)}")
            features = features[np.asarray(mask, bool)]
        if not len(features):
            return cls.empty(features.shape[1])
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merged(self, other: Moments) -> Moments:
        """Of both sets together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    def factor(self) -> np.ndarray:
        """A, float64 [d, d], with A'A the covariance (divided by n - 1).

        Raises:
          ValueError: of fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        values, vectors = np.linalg.eigh(self.scatter / (self.count - 1))
        return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def merge(parts: Iterable[Moments]) -> Moments:
    """All parts together, in their order; at least one."""
    first, *rest = parts
    for part in rest:
        first = first.merged(part)
    return first


def distance(one: Moments, other: Moments) -> float:
    """The Frechet distance (squared, as FID and FVD are) between the Gaussians of two sets' moments."""
    return _distance(one.mean, one.factor(), other.mean, other.factor())


def distance_of_samples(one: np.ndarray, other: np.ndarray) -> float:
    """The same of features [n, d] and [m, d] themselves: quick where there are fewer samples than features.

    Raises:
      ValueError: fewer than two samples, other widths, or features that are not finite.
    """
    factors, means = [], []
    for features in (_checked(one), _checked(other)):
        if len(features) < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
        means.append(features.mean(0))
        centred = (features - means[-1]) / np.sqrt(len(features) - 1)
        # Of many samples the triangle of a QR decomposition: the same product A'A in at most d rows.
        factors.append(np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred)
    return _distance(means[0], factors[0], means[1], factors[1])


def _distance(mean: np.ndarray, factor: np.ndarray, other_mean: np.ndarray, other_factor: np.ndarray) -> float:
    if mean.shape != other_mean.shape:
        raise ValueError(f"both sets need features of one width, got {len(mean)} and {len(other_mean)}")
    overlap = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
    spread = np.square(factor).sum() + np.square(other_factor).sum() - 2 * overlap
    return float(np.square(mean - other_mean).sum() + spread)


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"features must be [samples, width], got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features are not all finite; the frames or the weights of the network are wrong")
    return features
