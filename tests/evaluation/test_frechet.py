"""The Frechet distance against closed forms and the published formula, and moments that are put together of parts."""

import numpy as np
import pytest
import scipy.linalg

from nuwaxl_jax.evaluation import frechet


def _moments(mean, covariance, count=100):
    return frechet.Moments(count, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * (count - 1))


def _features(n, d, seed=0, scale=1.0, shift=0.0):
    """Correlated, with spreads that fall as those of real features do."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(d, d)) @ np.diag(1 / np.arange(1, d + 1))
    return scale * rng.normal(size=(n, d)) @ mixed + shift + 0.1 * rng.normal(size=d)


def _published(one, other, eps=0.0):
    """As pytorch-fid computes it (calculate_frechet_distance); eps: its offset for singular covariances."""
    m1, m2 = one.mean(0), other.mean(0)
    s1, s2 = (np.cov(x, rowvar=False) for x in (one, other))
    offset = eps * np.eye(len(s1))
    root = scipy.linalg.sqrtm((s1 + offset) @ (s2 + offset)).real
    return (m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)


def test_diagonal_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    m1, m2 = rng.normal(size=(2, 7))
    s1, s2 = rng.uniform(0.1, 3, size=(2, 7))
    expected = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)
    made = frechet.distance(_moments(m1, np.diag(s1**2)), _moments(m2, np.diag(s2**2), count=31))
    assert made == pytest.approx(expected, rel=1e-12)


def test_samples_with_exactly_known_moments():
    """Plus and minus each axis: mean 0, covariance 2 / (2 d - 1) diag(s^2)."""
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    s1, s2, apart = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0]), np.array([1.0, -2.0, 0.5])
    expected = np.sum(apart**2) + 2 / 5 * np.sum((s1 - s2) ** 2)
    one, other = corners * s1, corners * s2 + apart
    assert frechet.distance_of_samples(one, other) == pytest.approx(expected, rel=1e-12)
    assert frechet.distance(frechet.Moments.of(one), frechet.Moments.of(other)) == pytest.approx(expected, rel=1e-12)


def _turned(angle, first, second):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    return turn @ np.diag([first, second]) @ turn.T


@pytest.mark.parametrize("angles", [(0.4, 0.4), (0.4, 1.3)], ids=["commuting", "not commuting"])
def test_two_by_two_covariances_against_sqrtm(angles):
    one, other = _turned(angles[0], 4.0, 0.3), _turned(angles[1], 1.0, 2.5)
    assert np.allclose(one @ other, other @ one) == (angles[0] == angles[1])
    root = np.trace(scipy.linalg.sqrtm(one @ other).real)
    expected = 5.0 + np.trace(one) + np.trace(other) - 2 * root
    made = frechet.distance(_moments([1.0, 0.0], one), _moments([0.0, 2.0], other))
    assert made == pytest.approx(expected, rel=1e-10)
    if angles[0] == angles[1]:
        assert made == pytest.approx(5.0 + (2.0 - 1.0) ** 2 + (np.sqrt(0.3) - np.sqrt(2.5)) ** 2, rel=1e-12)


@pytest.mark.parametrize("n, m, d", [(200, 150, 12), (90, 400, 40)])
def test_equals_the_published_implementation(n, m, d):
    one, other = _features(n, d, 1), _features(m, d, 2, scale=1.3, shift=0.2)
    expected = _published(one, other)
    assert frechet.distance_of_samples(one, other) == pytest.approx(expected, rel=1e-7)
    made = frechet.distance(frechet.Moments.of(one), frechet.Moments.of(other))
    assert made == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("n, m", [(5, 9), (2, 30), (6, 80)])
def test_fewer_samples_than_features(n, m):
    """Singular covariances: both ways agree, in both orders, and the offset of the published formula goes to them."""
    one, other = _features(n, 50, 3), _features(m, 50, 4, scale=1.5)
    made = frechet.distance_of_samples(one, other)
    moments = frechet.Moments.of(one), frechet.Moments.of(other)
    assert frechet.distance(*moments) == pytest.approx(made, rel=1e-6)
    assert frechet.distance_of_samples(other, one) == pytest.approx(made, rel=1e-12)
    assert frechet.distance(*moments[::-1]) == pytest.approx(frechet.distance(*moments), rel=1e-9)
    # An offset e adds up to sqrt(e) times spreads to a trace of roots, so it is no more exact than that.
    rough = [abs(_published(one, other, eps) - made) / made for eps in (1e-4, 1e-6, 1e-8)]
    assert rough[0] > rough[1] > rough[2] and rough[2] < 1e-3


@pytest.mark.parametrize("n", [2, 5, 300])
def test_a_set_is_at_zero_from_itself(n):
    features = _features(n, 40, 5)
    trace = np.square(features - features.mean(0)).sum() / (n - 1)
    moments = frechet.Moments.of(features)
    assert abs(frechet.distance_of_samples(features, features)) < 1e-12 * trace
    assert abs(frechet.distance(moments, moments)) < 1e-12 * trace
    # Others with the same moments: the same samples in another order, and turned into moments by other sums.
    assert abs(frechet.distance_of_samples(features, features[::-1])) < 1e-12 * trace
    parts = frechet.merge(frechet.Moments.of(part) for part in np.array_split(features, 2))
    assert abs(frechet.distance(moments, parts)) < 1e-6 * trace


def test_duplicates_and_features_of_rank_one():
    line = np.outer(np.random.default_rng(6).normal(size=20), np.ones(8))  # all eight features are the same number
    wide = 3.0 * line + 1.0
    spread = line[:, 0].std(ddof=1)
    apart = 8 * (wide[:, 0].mean() - line[:, 0].mean()) ** 2
    expected = apart + 8 * (3.0 * spread - spread) ** 2
    assert frechet.distance_of_samples(line, wide) == pytest.approx(expected, rel=1e-10)
    made = frechet.distance(frechet.Moments.of(line), frechet.Moments.of(wide))
    assert made == pytest.approx(expected, rel=1e-6)
    same = np.repeat(_features(1, 8, 7), 5, axis=0)  # no spread at all
    other = _features(30, 8, 8)
    expected = np.sum((same[0] - other.mean(0)) ** 2) + np.trace(np.cov(other, rowvar=False))
    assert frechet.distance_of_samples(same, other) == pytest.approx(expected, rel=1e-12)
    assert frechet.distance_of_samples(same, same) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("cuts", [(1,), (30,), (1, 2, 3, 59), (7, 7, 20), tuple(range(1, 60))])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_parts_put_together_give_the_moments_of_the_whole(cuts, shift):
    """Also far from zero, where sums of squares lose the spread."""
    features = _features(60, 6, 9) + shift
    whole = frechet.Moments.of(features)
    made = frechet.merge(frechet.Moments.of(part) for part in np.split(features, cuts))
    assert made.count == 60
    np.testing.assert_allclose(made.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(made.scatter, whole.scatter, rtol=0, atol=1e-12 * np.abs(whole.scatter).max())
    expected = np.cov(features - shift, rowvar=False)
    np.testing.assert_allclose(made.factor().T @ made.factor(), expected, rtol=0, atol=1e-12 * expected.max())


def test_the_order_of_parts_does_not_matter():
    one, two, three = (frechet.Moments.of(_features(n, 4, n)) for n in (3, 8, 15))
    left, right = one.merged(two).merged(three), three.merged(one.merged(two))
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(left.scatter, right.scatter, rtol=1e-12)


def test_masks_leave_rows_out_and_an_empty_part_changes_nothing():
    features = _features(10, 4, 10)
    mask = np.arange(10) % 3 > 0
    padded = np.where(mask[:, None], features, 1e6)
    made, expected = frechet.Moments.of(padded, mask), frechet.Moments.of(features[mask])
    assert made.count == expected.count == 6
    np.testing.assert_array_equal(made.mean, expected.mean)
    np.testing.assert_array_equal(made.scatter, expected.scatter)
    empty = frechet.Moments.of(features, np.zeros(10, bool))
    assert empty.count == 0
    for nothing in (empty, frechet.Moments.empty(4), frechet.Moments.of(np.zeros((0, 4)))):
        for both in (nothing.merged(expected), expected.merged(nothing)):
            assert both.count == 6
            np.testing.assert_array_equal(both.mean, expected.mean)
            np.testing.assert_array_equal(both.scatter, expected.scatter)
    assert frechet.Moments.empty(4).merged(empty).count == 0


def test_what_has_no_distance_is_refused():
    features = _features(10, 4)
    moments = frechet.Moments.of(features)
    for few in (features[:1], features[:0]):
        with pytest.raises(ValueError, match=f"at least 2 samples, got {len(few)}"):
            frechet.distance_of_samples(features, few)
        with pytest.raises(ValueError, match=f"at least 2 samples, got {len(few)}"):
            frechet.distance(frechet.Moments.of(few), moments)
    with pytest.raises(ValueError, match="one width, got 4 and 3"):
        frechet.distance_of_samples(features, features[:, :3])
    with pytest.raises(ValueError, match="one width, got 3 and 4"):
        frechet.distance(frechet.Moments.of(features[:, :3]), moments)
    for bad in (np.nan, np.inf):
        broken = features.copy()
        broken[3, 1] = bad
        for call in (frechet.Moments.of, lambda x: frechet.distance_of_samples(features, x)):
            with pytest.raises(ValueError, match="not all finite"):
                call(broken)
    with pytest.raises(ValueError, match=r"mask must be \[10\], got \(9,\)"):
        frechet.Moments.of(features, np.ones(9, bool))
    for shape in ((10,), (10, 0), (2, 5, 4)):
        with pytest.raises(ValueError, match=r"must be \[samples, width\]"):
            frechet.Moments.of(np.zeros(shape))
