"""Augmentation and normalization, batched on the device where the images are.

Workers decode to uint8 and nothing else; here a whole batch is flipped, cropped, blurred and coloured at once. Flip, crop,
resize, blur and low resolution are all linear and separable, so together they are one matrix for the rows and one for the columns of each
image: out = V image H^T, two batched matrix products (34 MFLOP an image of 112 x 112), antialiased, no gather. With flip
alone, the default, no product runs. Not taken: grid_sample (aliases where it shrinks, cannot blur) and per-image loops.
Every number an image gets is a hash of its own seed (`random_streams`): the same on any device, in any batch, on any rank.

Shapes: N images, C = 3 channels, H x W pixels, P random numbers per image.

A seed is an int64 with a layout that matters to the flip only:
  bits 0-23   flip lane: the flip is decided by a hash of these bits alone
  bits 24-62  free; with the flip lane they decide everything else
  bit 63      (the sign) opposite flip: the flip is the other one than the lane says
A key that has to show the query's own photo (an identity with one image) gets the query's flip lane, the sign bit and
free bits of its own: it is always the query's mirror image and otherwise independently augmented.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.precision import without_autocast
from attfc.random_streams import hash_tensor, uniform_tensor

__all__ = ["FLIP_LANE", "OPPOSITE_FLIP", "Augment", "blur_matrix", "grey", "normalize", "resampled", "small_and_back"]

FLIP_LANE = (1 << 24) - 1
"""Mask of the seed bits that decide the flip."""
OPPOSITE_FLIP = -(1 << 63)
"""The seed bit that turns the flip round."""

_ALL_BUT_SIGN = (1 << 63) - 1
_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, what PIL calls "L"
# One number per decision. The values name random streams: changing one changes every augmentation.
_FLIP = 1
_DECISIONS = {
    name: number
    for number, name in enumerate(
        (
            *("crop", "area", "ratio", "top", "left", "color", "brightness", "contrast", "saturation", "blur", "sigma"),
            *("low_resolution", "side"),
        ),
        2,
    )
}


def normalize(images: Tensor) -> Tensor:
    """Map pixels 0 ... 255 to [-1, 1]: (x - 127.5) / 127.5, float32, memory format kept, a new tensor.

    >>> normalize(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return _scale(images.to(torch.float32, copy=True))


@dataclass(frozen=True)
class Augment:
    """Random augmentation and normalization of a batch of images; every transform is off by default except the flip.

    Args:
        flip: probability of a mirror image. At 0 (never) and 1 (always) the opposite-flip bit of a seed has no effect.
        crop_scale: (low, high) share of the image's area that a random crop keeps, resized back; None: no crop.
        crop_ratio: (low, high) width / height of the crop, log-uniform; cut where the box would leave the image.
        crop_probability: share of the images that are cropped.
        brightness: strength b >= 0: pixels times a number from [max(0, 1 - b), 1 + b].
        contrast: likewise, distance from the image's mean grey.
        saturation: likewise, distance of each pixel from its own grey.
        color_probability: share of the images whose colours change (brightness, contrast and saturation together, in this order).
        blur: probability of a Gaussian blur.
        blur_sigma: (low, high) standard deviation of the blur in pixels.
        low_resolution: probability that an image is shrunk, after its blur, and enlarged to its size again.
        low_resolution_side: (low, high) share of the side that it is shrunk to, uniform.

    Raises:
        UserError: a probability outside 0 ... 1, a range that is empty or out of bounds.

    Source: Inception-style crops and colour jitter as torchvision names them. Differs: boxes have fractional pixels and
    are cut instead of drawn again; the colour order is fixed; the crop is antialiased. Low resolution as in AdaFace (arXiv 2204.00964),
    there with probability 0.2. Differs: antialiased and linear, where it draws one of five interpolations, some of which alias.

    >>> augment = Augment(flip=1.0)
    >>> augment(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2), torch.tensor([7]))[0, 0]
    tensor([[ 1., -1.]])
    """

    flip: float = 0.5
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_probability: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    color_probability: float = 1.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    low_resolution: float = 0.0
    low_resolution_side: tuple[float, float] = (0.2, 1.0)

    def __post_init__(self) -> None:
        """Check every option."""
        for name in ("flip", "crop_probability", "color_probability", "blur", "low_resolution"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"augmentation {name} = {value} is a probability: set it to 0 ... 1")
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise UserError(f"augmentation {name} = {value} is a strength: set it to 0 or more")
        ranges = {"crop_scale": 1.0, "crop_ratio": 100.0, "blur_sigma": 100.0, "low_resolution_side": 1.0}
        for name, largest in ranges.items():
            bounds = getattr(self, name)
            if bounds is not None and not (len(bounds) == 2 and 0.0 < bounds[0] <= bounds[1] <= largest):
                raise UserError(
                    f"augmentation {name} = {bounds} must be (low, high) with 0 < low <= high <= {largest:g}"
                )

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augment and normalize.

        Args:
            images: (..., 3, H, W) uint8 RGB on any device; channels-last memory stays channels-last.
            seeds: (...) int64, one seed an image, moved to the images' device if they are elsewhere.

        Returns:
            (..., 3, H, W) float32 in [-1, 1], a new tensor. The random numbers are equal bit for bit in any batch and on any
            device, pixels to the rounding of a matrix product.

        Raises:
            ValueError: shapes or dtypes that do not fit.
        """
        if images.dtype != torch.uint8 or images.ndim < 4 or images.shape[-3] != 3:
            raise ValueError(f"images must be uint8 (..., 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if seeds.dtype != torch.int64 or seeds.shape != images.shape[:-3]:
            raise ValueError(
                f"seeds must be int64 {tuple(images.shape[:-3])}, one per image, got {seeds.dtype} {tuple(seeds.shape)}"
            )
        if images.numel() == 0:
            return normalize(images)
        images_NCHW = images.flatten(0, -4)
        seeds_N = seeds.to(images.device, non_blocking=True).flatten()
        with torch.no_grad(), without_autocast(images):  # bfloat16 would round the weights
            flipped_N = self._flipped(seeds_N)
            moved = self.crop_scale or self.blur or self.low_resolution
            recolored = self.brightness or self.contrast or self.saturation
            draws = self._draws(seeds_N) if moved or recolored else {}
            if not moved and not recolored:
                return _mirrored(images_NCHW, flipped_N, _scale).view(images.shape)
            result = self._resampled(images_NCHW, flipped_N, draws) if moved else _mirrored(images_NCHW, flipped_N)
            if recolored:
                result = self._recolored(result, draws)
            return _scale(result).view(images.shape)

    def _flipped(self, seeds_N: Tensor) -> Tensor:
        if self.flip in (0.0, 1.0):
            return torch.full_like(seeds_N, bool(self.flip), dtype=torch.bool)
        return (uniform_tensor(hash_tensor(_FLIP, seeds_N & FLIP_LANE)) < self.flip) ^ (seeds_N < 0)

    def _draws(self, seeds_N: Tensor) -> dict[str, Tensor]:
        """Every decision's number in [0, 1), (N,) float32 each."""
        numbers_P = torch.arange(len(_DECISIONS), device=seeds_N.device) + min(_DECISIONS.values())
        draws_PN = uniform_tensor(hash_tensor(numbers_P[:, None], (seeds_N & _ALL_BUT_SIGN)[None, :]))
        return dict(zip(_DECISIONS, draws_PN.unbind(0), strict=True))

    def _resampled(self, images_NCHW: Tensor, flipped_N: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Flip, crop, resize, blur and low resolution: out = V image H^T for every image and channel; float32 0 ... 255."""
        height, width = images_NCHW.shape[-2:]
        top_N, left_N, height_N, width_N = self._boxes(draws, height, width)
        sigma_N = _between(draws["sigma"], *self.blur_sigma) * (draws["blur"] < self.blur)
        rows_NHH = _resampling_matrix(height, top_N, height_N)
        columns_NWW = _resampling_matrix(width, left_N, width_N)
        if self.blur:
            rows_NHH = blur_matrix(height, sigma_N) @ rows_NHH
            columns_NWW = blur_matrix(width, sigma_N) @ columns_NWW
        if self.low_resolution:
            share_N = _between(draws["side"], *self.low_resolution_side)
            share_N = torch.where(draws["low_resolution"] < self.low_resolution, share_N, torch.ones_like(share_N))
            rows_NHH = small_and_back(height, (share_N * height).floor().clamp(min=1.0)) @ rows_NHH
            columns_NWW = small_and_back(width, (share_N * width).floor().clamp(min=1.0)) @ columns_NWW
        columns_NWW = torch.where(flipped_N[:, None, None], columns_NWW.flip(1), columns_NWW)
        pixels = resampled(images_NCHW.permute(0, 2, 3, 1), rows_NHH, columns_NWW).permute(0, 3, 1, 2)
        last = images_NCHW.is_contiguous(memory_format=torch.channels_last) and not images_NCHW.is_contiguous()
        return pixels.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _boxes(self, draws: dict[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Crop boxes in pixels, fractional: top, left, height, width, (N,) each."""
        whole = torch.ones_like(draws["crop"])
        if self.crop_scale is None:
            return whole * 0.0, whole * 0.0, whole * height, whole * width
        area_N = _between(draws["area"], *self.crop_scale) * (height * width)
        low, high = torch.tensor(self.crop_ratio, dtype=torch.float64).log().tolist()
        ratio_N = _between(draws["ratio"], low, high).exp()
        cropped_N = draws["crop"] < self.crop_probability
        box_height_N = torch.where(cropped_N, (area_N / ratio_N).sqrt().clamp(1.0, height), whole * height)
        box_width_N = torch.where(cropped_N, (area_N * ratio_N).sqrt().clamp(1.0, width), whole * width)
        return draws["top"] * (height - box_height_N), draws["left"] * (width - box_width_N), box_height_N, box_width_N

    def _recolored(self, pixels: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Brightness, contrast, saturation in this order, clamped to 0 ... 255 after each as an 8-bit image would be."""
        changed_N = draws["color"] < self.color_probability

        def factor(name: str, strength: float) -> Tensor:
            drawn_N = _between(draws[name], max(0.0, 1.0 - strength), 1.0 + strength)
            return torch.where(changed_N, drawn_N, torch.ones_like(drawn_N))[:, None, None, None]

        if self.brightness:
            pixels = (pixels * factor("brightness", self.brightness)).clamp_(0.0, 255.0)
        if self.contrast:
            mean = grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
            pixels = torch.lerp(mean, pixels, factor("contrast", self.contrast)).clamp_(0.0, 255.0)
        if self.saturation:
            pixels = torch.lerp(grey(pixels), pixels, factor("saturation", self.saturation)).clamp_(0.0, 255.0)
        return pixels


def _scale(pixels: Tensor) -> Tensor:
    """Map float32 0 ... 255 to [-1, 1], in place."""
    return pixels.sub_(127.5).div_(127.5)


def _mirrored(
    images_NCHW: Tensor, flipped_N: Tensor, then: Callable[[Tensor], Tensor] = lambda pixels: pixels
) -> Tensor:
    """Flip some of the images and do `then` in place, to float32 0 ... 255."""
    if images_NCHW.device.type != "cpu":
        return then(torch.where(flipped_N[:, None, None, None], images_NCHW.flip(-1), images_NCHW).to(torch.float32))
    # An image at a time stays in the cache, and torch flips channels-last pixels by whole vectors: faster than `where`.
    result = torch.empty_like(images_NCHW, dtype=torch.float32)
    for image, flipped, out in zip(images_NCHW, flipped_N.tolist(), result, strict=True):
        then(out.copy_(image.flip(-1) if flipped else image))
    return result


def resampled(images_NHWC: Tensor, rows_NHH: Tensor, columns_NWW: Tensor) -> Tensor:
    """Return V image H^T of every image and channel: float32 (N, H, W, 3), 0 ... 255, strides of the columns first.

    Args:
        images_NHWC: (N, H, W, 3) of any dtype.
        rows_NHH, columns_NWW: (N, H, H) V and (N, W, W) H, float32; N may be 1, the same for all images.
    """
    height, width = images_NHWC.shape[1:3]
    # Two products with (pixel, channel) side by side, so that channels-last images are used as they lie.
    pixels = images_NHWC.to(torch.float32).reshape(-1, height, width * 3)
    pixels = (rows_NHH @ pixels).view(-1, height, width, 3).transpose(1, 2).reshape(-1, width, height * 3)
    pixels = (columns_NWW @ pixels).view(-1, width, height, 3).transpose(1, 2)
    return pixels.clamp_(0.0, 255.0)  # a product may round past 255


def _between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + draws * (high - low)


def grey(pixels: Tensor) -> Tensor:
    """Return the luma of RGB pixels (N, 3, ...), (N, 1, ...)."""
    red, green, blue = pixels.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue).unsqueeze(1)


def small_and_back(size: int, side_N: Tensor) -> Tensor:
    """Matrices (N, size, size) that shrink to `side` pixels, 1 ... size, antialiased, and enlarge again, linear; side = size: the identity."""
    places = torch.arange(size, device=side_N.device)
    small_NSS = _resampling_matrix(size, torch.zeros_like(side_N), torch.full_like(side_N, size * size) / side_N)
    # Of the small image's rows only the first `side` are there.
    small_NSS = torch.where((places < side_N[:, None])[:, :, None], small_NSS, torch.zeros_like(small_NSS))
    return _resampling_matrix(size, torch.zeros_like(side_N), side_N, side_N) @ small_NSS


def _resampling_matrix(size: int, start_N: Tensor, length_N: Tensor, inside_N: Tensor | None = None) -> Tensor:
    """Matrices (N, size, size) that resize the interval [start, start + length) back to `size` pixels, linear, antialiased.

    Row i holds the weights of output pixel i: a triangle around its centre in the input, as wide as an output pixel but at
    least one input pixel each side, summing to 1 (pixels beyond the border have no weight, nor those from `inside` on). A whole
    interval: the identity.
    """
    places = torch.arange(size, device=start_N.device, dtype=torch.float32) + 0.5
    step_N11 = (length_N / size)[:, None, None]
    centers_NS1 = start_N[:, None, None] + places[:, None] * step_N11
    weights_NSS = (1.0 - (places - centers_NS1).abs() / step_N11.clamp(min=1.0)).clamp_(min=0.0)
    if inside_N is not None:
        weights_NSS = weights_NSS * (places < inside_N[:, None])[:, None, :]
    return weights_NSS / weights_NSS.sum(dim=2, keepdim=True)


def blur_matrix(size: int, sigma_N: Tensor) -> Tensor:
    """Matrices (N, size, size) of a Gaussian of sigma pixels, rows summing to 1; sigma 0: the identity."""
    places = torch.arange(size, device=sigma_N.device, dtype=torch.float32)
    distance = (places[:, None] - places).square()
    # At sigma = 0 the clamp leaves exp(-5e5) = 0 beside the diagonal: exactly the identity.
    weights_NSS = torch.exp(distance * (-0.5 / sigma_N.square().clamp(min=1e-6))[:, None, None])
    return weights_NSS / weights_NSS.sum(dim=2, keepdim=True)
