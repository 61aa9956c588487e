"""All pairs of your own embeddings: exact true accept rate (TAR) at a false accept rate (FAR) with intervals by identity, rank-1, identification.

$ python examples/all_pairs_of_your_embeddings.py

Embeddings may come from any model and be a memory-mapped array; the matrix of all pairs is never held.
"""

import numpy as np

from attfc.evaluation import identify, rank_one, resample, score_all_pairs

random = np.random.default_rng(seed=0)
people, images, dimensions = 400, 5, 64
centers = random.normal(size=(people, dimensions))
embeddings = np.repeat(centers, images, axis=0) + 1.3 * random.normal(size=(people * images, dimensions))
labels = np.repeat([f"person {number}" for number in range(people)], images)  # names or numbers

found = score_all_pairs(embeddings, labels, fars=(1e-3, 1e-4, 1e-5), spare=2.0)  # spare: for the interval
tar = found.tar_at_far[1e-4]
interval = resample(found.sample(), resamples=200).interval(("tar_at_far", "0.0001"))

# Some people enrolled with one image, some not at all: who is it, and is it anybody?
first = np.arange(people * images) % images == 0
enrolled = first & (np.arange(people * images) < 300 * images)
searched = identify(embeddings[enrolled], labels[enrolled], embeddings[~first], labels[~first])
nearest = rank_one(embeddings, labels)  # each image against all others

# The same the slow way, with the whole matrix of cosines.
unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
cosines = unit @ unit.T
upper = np.triu_indices(len(unit), 1)
scores, same = cosines[upper], (labels[:, None] == labels)[upper]
barred = np.sort(scores[~same])[::-1][int(1e-4 * (~same).sum())]  # the first impostor that stays out
np.fill_diagonal(cosines, -1)

assert tar == (scores[same] > barred).mean()
assert nearest.rate == (labels[cosines.argmax(axis=1)] == labels).mean()
assert interval.low < tar < interval.high
print(
    f"TAR at FAR 1e-4 over {len(scores):,} pairs: {tar:.1%} [{interval.low:.1%}, {interval.high:.1%}]; "
    f"rank-1 {nearest.rate:.1%}; TPIR at FPIR 0.01 {searched.tpir_at_fpir[0.01]:.1%}"
)
