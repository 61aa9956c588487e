"""Pool faces into templates.

A template's vector is sum over its medias of (mean over the media's faces of weight x embedding), at unit length; the embedding is image + mirror
image and the weight the detector score, unless the mode says otherwise (`TemplateMode`). Pooling reads the embeddings once, a block at a time,
sorted by template and media, and adds up segments: no loop over templates.

Sources: Whitelam et al. 2017 (IJB-B), Maze et al. 2018 (IJB-C); weights and pooling as in InsightFace's IJB scripts.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.unit_rows import fault_of, unit_tensor
from attfc.typing import Array, Int64

__all__ = ["TemplateMode", "Templates", "pool_templates"]


_POOL_ROWS = 8192  # rows of a block: 32 MiB at 512 numbers in float64


@dataclass(frozen=True)
class TemplateMode:
    """The three switches of the published script, by its names; the default is N1D1F1.

    Attributes:
        norm: N1, embeddings keep their length, which the pooling then uses as a weight; N0, each is brought to unit length first.
            (InsightFace's ijb_11.py and arcface_torch mean this by N1; its ijb_evals.py means the opposite.)
        detector_score: D1, each face weighs as much as its detector score.
        flip: F1, the embedding is image + mirror image.
    """

    norm: bool = True
    detector_score: bool = True
    flip: bool = True

    @staticmethod
    def parse(text: str) -> "TemplateMode":
        """Return the mode of "N1D1F1"; switches that are not named are on.

        >>> str(TemplateMode.parse("d0"))
        'N1D0F1'
        """
        if not re.fullmatch(r"(?i:(N[01])?(D[01])?(F[01])?)", text) or not text:
            raise UserError(f"mode {text!r} is unknown: use N, D and F with 0 or 1, as in N1D1F1, or all")
        on = {text[k].upper(): text[k + 1] == "1" for k in range(0, len(text), 2)}
        return TemplateMode(on.get("N", True), on.get("D", True), on.get("F", True))

    @staticmethod
    def all() -> tuple["TemplateMode", ...]:
        """Return the eight modes, the default first."""
        return tuple(TemplateMode(*on) for on in itertools.product((True, False), repeat=3))

    def __str__(self) -> str:
        """Return the script's name: N1D1F1."""
        return f"N{int(self.norm)}D{int(self.detector_score)}F{int(self.flip)}"


@dataclass(frozen=True, eq=False)
class Templates:
    """T templates that have a face.

    Attributes:
        ids: (T,) int64 rising, numbers as the lists have them.
        vectors: (T, D) float32 unit rows.
        faces: (T,) int64 usable faces of each.
        empty: (E,) int64 ids of templates that have faces but none of use, or whose faces cancel out.
    """

    ids: Int64
    vectors: Tensor
    faces: Int64
    empty: Int64

    def rows(self, ids: Int64) -> Int64:
        """Return the row of each id, -1 where the template has no face."""
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, places, -1)


def pool_templates(
    image_ND: Array,
    templates: npt.ArrayLike,
    medias: npt.ArrayLike,
    *,
    mirror: Array | None = None,
    weights: npt.ArrayLike | None = None,
    usable: npt.ArrayLike | None = None,
    normalize: bool = False,
) -> Templates:
    """Pool faces into templates.

    v_t = normalize( sum over medias m of t of  1/n_tm  sum over faces i of (t, m) of  w_i e_i ),  e_i = image_i + mirror_i

    Args:
        image_ND: (N, D) embeddings of any length but 0; memory-mapped arrays are read once.
        templates, medias: (N,) int64; a media belongs to its template, equal numbers in two templates are two medias.
        mirror: (N, D) embeddings of the mirrored images, None = none are added.
        weights: (N,) >= 0, e.g. detector scores; None = 1.
        usable: (N,) false for faces to leave out; they do not count in n_tm either.
        normalize: bring e_i to unit length first.

    Raises:
        UserError: sizes that do not match; NaN, infinity or length 0 in the embedding of a usable face; no usable face at all.
    """
    template_N, media_N = np.asarray(templates, dtype=np.int64), np.asarray(medias, dtype=np.int64)
    weight_N = np.ones(len(template_N)) if weights is None else np.asarray(weights, dtype=np.float64)
    usable_N = np.ones(len(template_N), np.bool_) if usable is None else np.asarray(usable, dtype=np.bool_)
    given = {"medias": media_N, "embeddings": image_ND, "mirror": mirror, "weights": weight_N, "usable": usable_N}
    for name, array in given.items():
        if array is not None and len(array) != len(template_N):
            raise UserError(f"{len(array)} {name} for {len(template_N)} faces: pass one of each a face")
    ids = np.unique(template_N)
    order = np.lexsort((media_N, template_N))
    order = order[usable_N[order]]
    if not order.size:
        raise UserError(f"none of {len(template_N)} faces is usable: there is nothing to pool")
    template_S, media_S = template_N[order], media_N[order]
    new_template = np.append(True, template_S[1:] != template_S[:-1])
    new_media = new_template | np.append(True, media_S[1:] != media_S[:-1])
    faces_of_media = np.diff(np.append(np.flatnonzero(new_media), len(order)))
    factor_S = weight_N[order] / np.repeat(faces_of_media, faces_of_media)
    bounds = np.append(np.flatnonzero(new_template), len(order))  # of the templates that have a usable face
    sums_TD = np.empty((len(bounds) - 1, image_ND.shape[1]), dtype=np.float64)
    for first, last in _blocks_of_segments(bounds, _POOL_ROWS):
        begin, end = int(bounds[first]), int(bounds[last])
        rows = order[begin:end]
        rows_BD = np.asarray(image_ND[rows], dtype=np.float64)
        if mirror is not None:
            rows_BD += mirror[rows]
        norms_B = np.sqrt(np.einsum("nd,nd->n", rows_BD, rows_BD))
        bad = np.flatnonzero(~(np.isfinite(norms_B) & (norms_B > 0)))
        if bad.size:
            raise UserError(
                f"the embedding of face {rows[bad[0]]} (template {template_N[rows[bad[0]]]}) has "
                f"{fault_of(norms_B[bad[0]])}: the model has diverged, or the face should be left out"
            )
        rows_BD *= (factor_S[begin:end] / norms_B if normalize else factor_S[begin:end])[:, None]
        np.add.reduceat(rows_BD, bounds[first:last] - begin, axis=0, out=sums_TD[first:last])
    length_T = np.linalg.norm(sums_TD, axis=1)
    sound_T = length_T > 0
    if not sound_T.any():
        raise UserError(f"all {len(sound_T)} templates add up to length 0: are all weights 0?")
    found, faces = template_S[bounds[:-1]][sound_T], np.diff(bounds)[sound_T]
    return Templates(found, unit_tensor(sums_TD[sound_T]), faces, np.setdiff1d(ids, found))


def _blocks_of_segments(bounds: Int64, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of segments that hold about `rows` rows each; a larger segment is a block of its own."""
    first = 0
    while first < len(bounds) - 1:
        last = max(int(np.searchsorted(bounds, bounds[first] + rows, side="right")) - 1, first + 1)
        yield first, last
        first = last
